"use strict";

// The tooltips of SVG are slow and do not exist on touch screens: show them at once, and keep the browser from showing them twice.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("figure svg > :not(title) title, figure svg > title")) {
  if (title.parentNode.tagName !== "svg") title.parentNode.dataset.tip = title.textContent;
  if (title.parentNode.tagName !== "svg") title.remove();
}

function place(event) {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const { width, height } = tip.getBoundingClientRect();
  const below = event.clientY + 16 + height < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, innerWidth - width - 8))}px`;
  tip.style.top = `${below ? event.clientY + 16 : event.clientY - height - 12}px`;
}
document.addEventListener("pointermove", place);
document.addEventListener("pointerdown", place);

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

document.getElementById("save-svg").addEventListener("click", () => {
  const figure = document.querySelector("figure .wide svg").cloneNode(true);
  const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
  style.textContent = document.getElementById("figure-style").textContent;
  figure.prepend(style);
  save("timeline.svg", "image/svg+xml", new XMLSerializer().serializeToString(figure));
});
document.getElementById("save-json").addEventListener("click", () => {
  save("timeline.json", "application/json", document.getElementById("timelines").textContent);
});
for (const button of document.querySelectorAll("button")) button.hidden = false;

"use strict";

const original = document.querySelector("figure .wide svg").cloneNode(true);

// Tooltips of SVG come late and not at all on touch screens. Ours take their place: with both, two would show at once.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("figure svg title")) {
  const owner = title.parentNode;
  if (owner.tagName === "svg") {
    owner.removeAttribute("aria-labelledby");
    owner.setAttribute("aria-label", title.textContent);
  } else {
    owner.dataset.tip = title.textContent;
  }
  title.remove();
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
  const figure = original.cloneNode(true);
  const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
  style.textContent = document.getElementById("figure-style").textContent;
  figure.prepend(style);
  save("timeline.svg", "image/svg+xml", new XMLSerializer().serializeToString(figure));
});
document.getElementById("save-json").addEventListener("click", () => {
  save("timeline.json", "application/json", document.getElementById("timelines").textContent);
});
for (const button of document.querySelectorAll("button")) button.hidden = false;

"""Pictures of runs, as vector graphics (SVG) and as PNG: the median over seeds of each figure.

Needs matplotlib, of the extra ``bench``. Each picture fits the width of a page (6.9 inches); a front end has the same
colour and line everywhere, and the colours are those that colour-blind readers can tell apart (Okabe and Ito).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from stream2llm_rag.engine.policy import DEFAULT_POLICY, POLICIES
from stream2llm_rag.errors import InvalidInputError, MissingExtraError
from stream2llm_rag.simulation.runs import EXCEEDING, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 6.9, 2.9
_MANY_DECADES = 300
_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#666666")
_DEFAULT_COLOUR = "#0072B2"
_DASHES: tuple[Any, ...] = ((0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
_OTHERS: dict[str, tuple[str, Any]] = {"ns": ("black", "-"), "native": ("#999999", "-"), "vllm-s": ("#555555", (0, (2, 1)))}
_STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "svg.fonttype": "none",
    "svg.hashsalt": "stream2llm",  # the same runs give the same file
    "savefig.dpi": 200,
}


def draw_all(runs: Sequence[Run], folder: Path, suffixes: Sequence[str] = (".svg", ".png")) -> list[Path]:
    """Draw what the runs have to show into ``folder``, which is made where it is missing. Returns the files, in order.

    For each series with several rates TTFT against the rate; for each cell how TTFT is distributed, and the tokens invalidated,
    where any were, and when all was answered. Raises :class:`MissingExtraError` without matplotlib and
    :class:`InvalidInputError` where a file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench") from error
    with mpl.rc_context(cast("Any", _STYLE)):
        return _save(_pictures(runs), folder, suffixes)


def _pictures(runs: Sequence[Run]) -> Iterator[tuple[str, Figure]]:
    """Each with its name."""
    for series, found in _grouped(runs, lambda run: run.series):
        if len({run.qps for run in found}) > 1:
            yield f"ttft-against-qps {series}", _against_rate(series, found)
    for cell, found in _grouped(runs, lambda run: run.cell):
        yield f"ttft {cell}", _ttft_distribution(cell, found)
        if any(run.num_invalidated[-1] for run in found):
            yield f"invalidated {cell}", _invalidated_distribution(cell, found)
        yield f"completion {cell}", _completion(cell, found)


def _grouped(runs: Iterable[Run], key: Callable[[Run], str]) -> list[tuple[str, list[Run]]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.items())


def _figure(num_panels: int = 1, width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, list(figure.subplots(1, num_panels, squeeze=False)[0])


def _against_rate(series: str, runs: Sequence[Run]) -> Figure:
    figure, panels = _figure(3)
    rates = sorted({run.qps for run in runs if run.qps is not None})
    for axes, percent in zip(panels, ("p50", "p95", "p99"), strict=True):
        for frontend, own in _grouped(runs, lambda run: run.frontend):
            seconds = [_median(getattr(run.summary.ttft_s, percent) for run in own if run.qps == qps) for qps in rates]
            axes.plot(rates, seconds, marker="o", markersize=2.5, **_line(frontend))
        axes.set(title=percent.upper(), xlabel="queries a second", xscale="log", yscale="log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.xaxis.minorticks_off()
        _plain_ticks(axes.yaxis)
    panels[0].set_ylabel("TTFT after the final context, s")
    return _finished(figure, panels[0], series)


def _ttft_distribution(cell: str, runs: Sequence[Run]) -> Figure:
    figure, (axes,) = _figure(width=_WIDTH * 0.75)
    for frontend, own in _grouped(runs, lambda run: run.frontend):
        shares = _resolved(own)
        seconds = [_median(run.ttft_s[index] for run in own) for index in range(len(shares))]
        axes.plot(seconds, shares, **_line(frontend))
    axes.set(xlabel="TTFT after the final context, s", ylabel="share of requests that wait so long", xscale="log", yscale="log")
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    return _finished(figure, axes, cell)


def _invalidated_distribution(cell: str, runs: Sequence[Run]) -> Figure:
    figure, (axes,) = _figure(width=_WIDTH * 0.75)
    for frontend, own in _grouped(runs, lambda run: run.frontend):
        if not any(run.num_invalidated[-1] for run in own):
            continue
        shares = _resolved(own)
        tokens = [_median(run.num_invalidated[index] for run in own) for index in range(len(shares))]
        axes.plot(tokens, shares, **_line(frontend))
    axes.set(xlabel="tokens invalidated by updates", ylabel="share of requests with so many", yscale="log")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain_ticks(axes.yaxis)
    return _finished(figure, axes, cell)


def _resolved(runs: Iterable[Run]) -> list[float]:
    """The shares of :data:`EXCEEDING` that are one request or more."""
    num_measured = min(run.summary.num_measured for run in runs)
    return [share for share in EXCEEDING if share * num_measured >= 1]


def _plain_ticks(axis: Axis) -> None:
    """Numbers a reader can read, on a logarithmic axis: 1, 2 and 5 of each decade, or just 1 where there are many decades."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > _MANY_DECADES else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _completion(cell: str, runs: Sequence[Run]) -> Figure:
    groups = _grouped(runs, lambda run: run.frontend)
    figure, (axes,) = _figure(width=_WIDTH * 0.75, height=0.7 + 0.22 * len(groups))
    for row, (frontend, own) in enumerate(groups):
        seconds = median(run.summary.completion_s for run in own)
        colour = _line(frontend)["color"]
        if math.isfinite(seconds):
            axes.barh(row, seconds, color=colour, height=0.65)
            axes.annotate(f"{seconds:,.1f}", (seconds, row), (3, 0), textcoords="offset points", va="center")
        else:
            axes.annotate("never", (0, row), (3, 0), textcoords="offset points", va="center", color=colour)
    axes.set_yticks(range(len(groups)), [frontend for frontend, _ in groups])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set(xlabel="seconds from the first arrival to the last answer", title=cell)
    return figure


def _finished(figure: Figure, axes: Axes, title: str) -> Figure:
    figure.suptitle(title, fontsize=8)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _line(frontend: str) -> dict[str, Any]:
    """Colour and line of a front end: its policy's, and dotted where it has hints. The default policy's is the broad one."""
    if frontend in _OTHERS:
        colour, style = _OTHERS[frontend]
        return {"label": frontend, "color": colour, "linestyle": style}
    policy, _, hints = frontend.partition("+")
    if policy == DEFAULT_POLICY:
        return {
            "label": frontend,
            "color": _DEFAULT_COLOUR,
            "linestyle": ":" if hints else "-",
            "linewidth": 1.2 if hints else 2.6,
        }
    others = [name for name in POLICIES if name != DEFAULT_POLICY]
    number = others.index(policy) if policy in others else len(others)
    dashes = ":" if hints else _DASHES[number % len(_DASHES)]
    return {"label": frontend, "color": _COLOURS[number % len(_COLOURS)], "linestyle": dashes}


def _median(values: Iterable[float]) -> float:
    """The median, and a gap in the line where that is infinite or there is nothing."""
    found = list(values)
    middle = median(found) if found else math.nan
    return middle if math.isfinite(middle) else math.nan


def _save(pictures: Iterable[tuple[str, Figure]], folder: Path, suffixes: Sequence[str]) -> list[Path]:
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures:
            stem = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
            for suffix in suffixes:
                file = folder / f"{stem}{suffix}"
                figure.savefig(file, metadata={"Date": None} if suffix == ".svg" else None)
                files.append(file)
    except OSError as error:
        raise InvalidInputError(f"pictures cannot be written into {folder}: {error.strerror}. Name another folder.") from error
    return files

"""The figures of a card: PNGs without a background, which read on light and on dark pages.

The same values give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..records import Estimate, Row, Scores

# There is no background: these are dark enough for a white page and light enough for a dark one.
INK = "#7a828e"
VISUAL = "#d9691e"
TEXT = "#4285d6"


def draw_scores(scores: Scores, frozen_layers: tuple[int, ...]) -> bytes:
    """The Layer Contributions: visual and text curves on a log scale, the frozen layers marked."""
    from matplotlib.ticker import MaxNLocator

    layers = range(len(scores.visual))
    floor = _floor(scores)
    with _figure(1) as (png, (axes,)):
        for index, layer in enumerate(frozen_layers):
            label = "frozen" if index == 0 else None
            axes.axvspan(layer - 0.5, layer + 0.5, color=VISUAL, alpha=0.16, linewidth=0, label=label)
        for values, name, color, marker in (
            (scores.text, "text tokens", TEXT, "s"),
            (scores.visual, "visual tokens", VISUAL, "o"),
        ):
            shown = [max(value, floor) for value in values]
            axes.plot(layers, shown, color=color, marker=marker, markersize=4.5, linewidth=1.6, label=name)
            zero = [layer for layer in layers if values[layer] < floor]
            # A log scale has no zero: such a layer sits on the floor with an open marker.
            axes.plot(zero, [floor] * len(zero), marker, color=color, markerfacecolor="white", markersize=6)
        axes.set_yscale("log")
        axes.set_xlim(-0.5, len(scores.visual) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        axes.set_xlabel("decoder layer", color=INK)
        axes.set_ylabel("Layer Contribution (nats)", color=INK)
    return png.getvalue()


def draw_sweep(rows: tuple[Row, ...]) -> bytes:
    """Fidelity and, where it was measured, speed against the number of frozen layers; the chosen number is marked.

    Args:
        rows: of a sweep, by number of frozen layers; one is the chosen one.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    counts = [len(row.frozen_layers or ()) for row in rows]
    chosen = next(len(row.frozen_layers or ()) for row in rows if row.chosen)
    timed = all(row.speed for row in rows)
    with _figure(2 if timed else 1) as (png, panels):
        for index, axes in enumerate(panels):
            label = "chosen" if index == 0 else None
            axes.axvline(chosen, color=VISUAL, alpha=0.16, linewidth=11, label=label)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
            axes.set_xlabel("frozen layers", color=INK)
        for name, color, marker, estimates in (
            ("same first token", TEXT, "s", [row.fidelity.top1_agreement for row in rows]),
            ("same answer", VISUAL, "o", [row.fidelity.exact_match for row in rows]),
        ):
            style = {"color": color, "marker": marker, "markersize": 4.5, "linewidth": 1.6}
            means = [estimate.mean for estimate in estimates]
            panels[0].errorbar(counts, means, yerr=_bars(estimates), label=name, elinewidth=0.9, capsize=2.5, **style)
        panels[0].set_ylim(-0.03, 1.03)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1))
        panels[0].set_ylabel("samples, against the base", color=INK)
        if timed:
            limits = [row.speed[0].limit for row in rows]
            panels[1].plot(counts, limits, color=INK, linewidth=1.4, linestyle="--", label="limit by FLOPs")
            speed_ups = [row.speed[0].speed_up for row in rows]
            panels[1].plot(counts, speed_ups, color=TEXT, marker="D", markersize=4.5, linewidth=1.6, label="speed-up")
            panels[1].set_ylabel("prompt pass, times as fast", color=INK)
    return png.getvalue()


@contextmanager
def _figure(panels: int) -> Iterator[tuple[io.BytesIO, list[Any]]]:
    """So many axes side by side to draw on, and the PNG, which is there afterwards."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    png = io.BytesIO()
    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # not what the user's matplotlibrc says
        figure = Figure(figsize=(8, 3.6), dpi=160, layout=ConstrainedLayoutEngine(wspace=0.06))
        figure.patch.set_alpha(0)
        all_axes = list(figure.subplots(1, panels, squeeze=False)[0])
        yield png, all_axes
        for axes in all_axes:
            axes.set_facecolor("none")
            axes.tick_params(which="both", colors=INK)
            axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
            for spine in axes.spines.values():
                spine.set_visible(False)
        # One row above the panels, whatever number of curves they have.
        named = [found for axes in all_axes for found in zip(*axes.get_legend_handles_labels(), strict=True)]
        figure.legend(*zip(*named, strict=True), loc="outside upper right", ncols=5, frameon=False, labelcolor=INK)
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})


def _bars(estimates: list[Estimate]) -> list[list[float]]:
    """How far the intervals reach below and above the means; nowhere for a single sample."""
    ends = [(estimate.mean, estimate.low, estimate.high) for estimate in estimates]
    low = [mean - (mean if low is None else min(low, mean)) for mean, low, _ in ends]
    high = [(mean if high is None else max(high, mean)) - mean for mean, _, high in ends]
    return [low, high]


def _floor(scores: Scores) -> float:
    """The lowest value a log scale shows: half the smallest contribution that is more than rounding."""
    return min((value for value in (*scores.visual, *scores.text) if value > 1e-9), default=1e-9) / 2

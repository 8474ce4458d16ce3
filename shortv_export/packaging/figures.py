"""The figures of a card: transparent PNGs. The same values give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..records import Estimate, Row, Scores

# Readable on white and on dark pages.
INK = "#7a828e"
VISUAL = "#d9691e"
TEXT = "#4285d6"


def draw_scores(scores: Scores, frozen_layers: tuple[int, ...]) -> bytes:
    """Draws the Layer Contributions of visual and text tokens on a log scale, with the frozen layers shaded."""
    from matplotlib.ticker import MaxNLocator

    layers = range(len(scores.visual))
    # The lower end of the log scale: half the smallest contribution above rounding errors.
    floor = min((value for value in (*scores.visual, *scores.text) if value > 1e-9), default=1e-9) / 2
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
            # A log scale has no zero: open markers on the floor stand for it.
            axes.plot(zero, [floor] * len(zero), marker, color=color, markerfacecolor="white", markersize=6)
        axes.set_yscale("log")
        axes.set_xlim(-0.5, len(scores.visual) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        axes.set_xlabel("decoder layer", color=INK)
        axes.set_ylabel("Layer Contribution (nats)", color=INK)
    return png.getvalue()


def draw_sweep(rows: tuple[Row, ...]) -> bytes:
    """Draws fidelity and, if measured, speed against the number of frozen layers, with the chosen number shaded."""
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
            panels[1].set_ylabel("prefill, times as fast", color=INK)
    return png.getvalue()


@contextmanager
def _figure(panels: int) -> Iterator[tuple[io.BytesIO, list[Any]]]:
    """Yields a buffer and axes side by side. The buffer holds the PNG when the context ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    png = io.BytesIO()
    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # ignores the user's matplotlibrc
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
        # One legend for all panels, in a row above them.
        named = [found for axes in all_axes for found in zip(*axes.get_legend_handles_labels(), strict=True)]
        figure.legend(*zip(*named, strict=True), loc="outside upper right", ncols=5, frameon=False, labelcolor=INK)
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})


def _bars(estimates: list[Estimate]) -> list[list[float]]:
    """The lengths of the error bars below and above the means; 0 for a single sample."""
    ends = [(estimate.mean, estimate.low, estimate.high) for estimate in estimates]
    low = [mean - (mean if low is None else min(low, mean)) for mean, low, _ in ends]
    high = [(mean if high is None else max(high, mean)) - mean for mean, _, high in ends]
    return [low, high]

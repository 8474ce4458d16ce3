"""The figures of a card: transparent PNGs. The same values give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from ..records import Estimate, Frozen, Row, Scores

# Readable on white and on dark pages, and apart from each other for colour-blind eyes where they meet in a figure.
INK = "#7a828e"
VISUAL = "#d9691e"
TEXT = "#4285d6"
ATTENTION = "#8a63d2"
FFN = "#1f9e7a"
SPEED = "#1f9e7a"

_CURVE: dict[str, Any] = {"markersize": 4.5, "linewidth": 1.6, "elinewidth": 0.9, "capsize": 2.5}


def draw_scores(scores: Scores, frozen: Frozen) -> bytes:
    """Draws what each layer contributes, on a log scale, and what is frozen.

    Whole frozen layers are shaded behind the Layer Contributions of visual and, if measured, of text tokens. If single
    operators are frozen, the curves are those of attention alone, of the FFN alone and of both, and two rows of marks
    below say which of them visual tokens skip.
    """
    if frozen.operators:
        curves = _operator_curves(scores)
    else:
        curves = [(scores.visual, "visual tokens", VISUAL, "o")]
        if scores.text:
            curves.insert(0, (scores.text, "text tokens", TEXT, "s"))
    layers = range(len(scores.visual))
    # The lower end of the log scale: half the smallest contribution above rounding errors.
    floor = min((value for values, *_ in curves for value in values if value > 1e-9), default=1e-9) / 2
    with _figure(1, marks=bool(frozen.operators)) as (png, (axes, *below)):
        for index, layer in enumerate(() if below else frozen.layers):
            label = "frozen" if index == 0 else None
            axes.axvspan(layer - 0.5, layer + 0.5, color=VISUAL, alpha=0.16, linewidth=0, label=label)
        for values, name, color, marker in curves:
            shown = [max(value, floor) for value in values]
            axes.plot(layers, shown, color=color, marker=marker, markersize=4.5, linewidth=1.6, label=name)
            zero = [layer for layer in layers if values[layer] < floor]
            # A log scale has no zero: open markers on the floor stand for it.
            axes.plot(zero, [floor] * len(zero), marker, color=color, markerfacecolor="white", markersize=6)
        if any(value < floor for values, *_ in curves for value in values):
            axes.plot([], [], "o", color=INK, markerfacecolor="white", markersize=6, label="zero")
        axes.set_yscale("log")
        axes.set_ylabel("KL divergence (nats)" if below else "Layer Contribution (nats)", color=INK)
        for marks in below:
            _draw_marks(marks, frozen, len(layers))
        (below or [axes])[-1].set_xlabel("decoder layer", color=INK)
        _number_layers([axes, *below], len(layers))
    return png.getvalue()


def _operator_curves(scores: Scores) -> list[tuple[tuple[float, ...], str, str, str]]:
    """The means by which single operators were chosen; if they were given, the Layer Contributions alone."""
    if scores.positions is None:
        return [(scores.visual, "visual tokens", VISUAL, "o")]
    found = scores.operators(scores.positions)
    means = {name: tuple(fmean(values) for values in zip(*rows, strict=True)) for name, rows in found.items()}
    return [
        (means["visual"], "both left out", VISUAL, "o"),
        (means["attention"], "attention left out", ATTENTION, "s"),
        (means["ffn"], "FFN left out", FFN, "D"),
    ]


def _draw_marks(axes: Any, frozen: Frozen, num_layers: int) -> None:
    """Two rows: a filled square where visual tokens skip the operator of a layer, a dot where they do not."""
    rows = (("FFN", "ffn", FFN), ("attention", "attention", ATTENTION))
    for row, (_, operator, color) in enumerate(rows):
        for layer in range(num_layers):
            mark, ink, size = ("s", color, 8) if (operator, layer) in frozen.parts else (".", INK, 3)
            axes.plot(layer, row, mark, color=ink, markersize=size)
    axes.plot([], [], "s", color=INK, label="skipped by visual tokens")
    axes.set_yticks(range(2), [name for name, *_ in rows])
    axes.set_ylim(-0.7, 1.7)


def _number_layers(all_axes: list[Any], num_layers: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for axes in all_axes:
        axes.set_xlim(-0.5, num_layers - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))


def draw_sweep(rows: tuple[Row, ...]) -> bytes:
    """Draws fidelity and, if measured, speed against how much is frozen, with the package's own row shaded.

    That is the number of frozen layers; if single operators are frozen, the FLOPs, with a curve for operators and one
    for whole layers.
    """
    chosen = next(row for row in rows if row.chosen)
    timed = all(row.speed for row in rows)
    by_flops = bool(chosen.frozen.operators)
    with _figure(2 if timed else 1) as (png, panels):
        for index, axes in enumerate(panels):
            label = "chosen" if index == 0 else None
            axes.axvline(_amount(chosen, by_flops), color=VISUAL, alpha=0.16, linewidth=11, label=label)
            _label_amounts(axes, by_flops)
        first, answer = "same first token", "same answer"
        if by_flops:
            whole = tuple(row for row in rows if not row.frozen.operators)
            single = tuple(row for row in rows if row.frozen.operators or row.frozen == Frozen())
            curves = [(whole, answer, "whole layers", TEXT, "s:"), (single, answer, "single operators", VISUAL, "o-")]
        else:
            curves = [(rows, first, first, TEXT, "s:"), (rows, answer, answer, VISUAL, "o-")]
        for curve in curves:
            _draw_fidelity(panels[0], *curve, by_flops=by_flops)
        panels[0].set_ylim(-0.03, 1.03)
        panels[0].set_ylabel("same answer as the base's" if by_flops else "samples, against the base", color=INK)
        if timed:
            _draw_speed(panels[1], tuple(sorted(rows, key=lambda row: _amount(row, by_flops))), by_flops)
    return png.getvalue()


def _amount(row: Row, by_flops: bool) -> float:
    """Where a row stands on the horizontal axis."""
    return float(row.flops_ratio or 0) if by_flops else float(len(row.frozen.layers))


def _label_amounts(axes: Any, by_flops: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if by_flops else 12, integer=not by_flops))
    if by_flops:
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.invert_xaxis()
    axes.set_xlabel("FLOPs, of the base's" if by_flops else "frozen layers", color=INK)


def _draw_fidelity(
    axes: Any, rows: tuple[Row, ...], measure: str, name: str, color: str, style: str, *, by_flops: bool
) -> None:
    from matplotlib.ticker import PercentFormatter

    rows = tuple(sorted(rows, key=lambda row: _amount(row, by_flops)))
    found = [row.fidelity.exact_match if measure == "same answer" else row.fidelity.top1_agreement for row in rows]
    amounts, means = [_amount(row, by_flops) for row in rows], [estimate.mean for estimate in found]
    axes.errorbar(amounts, means, yerr=_bars(found), fmt=style, label=name, color=color, **_CURVE)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_speed(axes: Any, rows: tuple[Row, ...], by_flops: bool) -> None:
    """The speed-ups with the ranges of their rounds, and their limits. Those that are void are left out."""
    amounts, limits = [_amount(row, by_flops) for row in rows], [row.speed[0].limit for row in rows]
    axes.plot(amounts, limits, color=INK, linewidth=1.4, linestyle="--", label="limit by FLOPs")
    speeds = [row.speed[0] for row in rows]
    if not all(speed.too_noisy for speed in speeds):
        void = Estimate(math.nan, math.nan, math.nan)  # which breaks the line
        found = [
            void if speed.too_noisy else Estimate(speed.speed_up, min(speed.ratios), max(speed.ratios))
            for speed in speeds
        ]
        style = {"fmt": "D-.", "label": "speed-up", "color": SPEED, **_CURVE}
        axes.errorbar(amounts, [estimate.mean for estimate in found], yerr=_bars(found), **style)
    axes.set_ylabel("prefill, times as fast", color=INK)


@contextmanager
def _figure(panels: int, *, marks: bool = False) -> Iterator[tuple[io.BytesIO, list[Any]]]:
    """Yields a buffer and axes side by side, or with `marks` one and a low one below it, on the same layers.

    The buffer holds the PNG when the context ends.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    png = io.BytesIO()
    with matplotlib.rc_context(matplotlib.rcParamsDefault):  # ignores the user's matplotlibrc
        figure = Figure(figsize=(8, 3.6), dpi=160, layout=ConstrainedLayoutEngine(wspace=0.06))
        figure.patch.set_alpha(0)
        if marks:
            all_axes = list(figure.subplots(2, 1, sharex=True, height_ratios=(5, 1)))
        else:
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

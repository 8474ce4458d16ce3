"""Presents an evaluation: notes beside its numbers, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import (
    ALL_EQUAL,
    FEW_SAMPLES,
    MIN_SAMPLES,
    NO_CPU_MEMORY,
    TOO_NOISY,
    Accuracy,
    Estimate,
    Evaluation,
    Pair,
    Row,
    Speed,
)
from ..samples import DrawnSamples


def notes_on(
    samples: DrawnSamples, rows: Sequence[Row], text_tokens: int, visual_tokens: int, *, on_cpu: bool
) -> tuple[str, ...]:
    """What a reader of the numbers must know: limits of the samples, and settings of the baselines.

    Args:
        samples: that were evaluated on.
        rows: the results.
        text_tokens, visual_tokens: of the prompt at which the baselines' FLOPs were matched with ShortV's.
        on_cpu: whether the model ran on a CPU.
    """
    notes = []
    number = len(samples.samples)
    compared = [found for row in rows for found in (row.accuracy, *row.groups.values()) if found]
    if min([number, *(found.num_samples for found in compared)]) < MIN_SAMPLES:
        notes.append(FEW_SAMPLES)
    means = [(number, kl) for row in rows for kl in (row.fidelity.first_token_kl, row.fidelity.answer_kl)]
    means += [(found.num_samples, found.difference) for found in compared]
    if any(size >= MIN_SAMPLES and estimate.low is None for size, estimate in means):
        notes.append(ALL_EQUAL)
    if any(speed.too_noisy for row in rows for speed in row.speed):
        notes.append(TOO_NOISY)
    overlap = samples.record.get("overlap", 0)
    if overlap is None:
        notes.append("It is not known which samples the layers were chosen by; these may be among them.")
    elif overlap:
        notes.append(f"The layers were chosen by {overlap} of these {number} samples.")
    answered = rows[0].accuracy.num_samples if rows[0].accuracy else number
    if answered < number:
        notes.append(f"Accuracy is over the {answered} of {number} samples that have an answer.")
    if rows[0].speed and on_cpu:
        notes.append(NO_CPU_MEMORY)
    if baselines := [row.name for row in rows if row.baseline]:
        notes.append(
            "FastV and VTW run in the ShortV paper's setting, and where another one takes no more FLOPs than this "
            f"package at {text_tokens} + {visual_tokens} tokens, in that too."
        )
        if not any(name.startswith("cosine") for name in baselines):
            notes.append("Cosine selection is left out: the package holds no cosine distances.")
    return tuple(notes)


def tables(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Tables as ``(title, lines)``; the first line is the heading. A star marks the package's own row."""
    fidelity: list[tuple[str, ...]] = [
        ("frozen", "FLOPs", "KL first token", "same first token", "KL answer", "same answer")
    ]
    accuracy: list[tuple[str, ...]] = [("frozen", "group", "samples", "base", "changed", "difference", "p")]
    speed: list[tuple[str, ...]] = [
        ("frozen", "tokens", "first token, ms", "prefill, ms", "speed-up", "control", "limit", "reached")
    ]
    for row in evaluation.rows:
        name = f"{row.name} *" if row.chosen and len(evaluation.rows) > 1 else row.name
        flops, found = "-" if row.flops_ratio is None else f"{row.flops_ratio:.1%}", row.fidelity
        first = (_shown(found.first_token_kl, 4), _shown(found.top1_agreement))
        fidelity.append((name, flops, *first, _shown(found.answer_kl, 4), _shown(found.exact_match)))
        answered = {"all": row.accuracy} if row.accuracy else {}
        for group, value in (answered | (row.groups if row.chosen else {})).items():
            means = (_shown(value.base), _shown(value.changed), _shown(value.difference))
            accuracy.append((name, group, str(value.num_samples), *means, _p_value(value)))
        for timed in row.speed:
            tokens = f"{timed.text_tokens}+{timed.visual_tokens}"
            times = (_milliseconds(timed.first_token_seconds), _milliseconds(timed.prefill_seconds))
            speed.append((name, tokens, *times, *_speed_up(timed)))
    found_tables = (("Fidelity to the base", fidelity), ("Accuracy", accuracy), ("Prefill speed", speed))
    return [(title, lines) for title, lines in found_tables if len(lines) > 1]


def _shown(estimate: Estimate, digits: int = 3) -> str:
    text = f"{estimate.mean:.{digits}f}"
    if estimate.low is None:
        return text
    return f"{text} [{estimate.low:.{digits}f},{estimate.high:.{digits}f}]"  # a table breaks lines at spaces


def _p_value(accuracy: Accuracy) -> str:
    if accuracy.p_value is None:
        return "-"
    return "<0.001" if accuracy.p_value < 0.001 else f"{accuracy.p_value:.3f}"


def _speed_up(speed: Speed) -> tuple[str, ...]:
    """The speed-up and the control with the ranges of their rounds, the limit and what was reached of it."""
    times, control = (
        f"{median:.2f}x [{min(ratios):.2f},{max(ratios):.2f}]"
        for median, ratios in ((speed.speed_up, speed.ratios), (speed.control, speed.control_ratios))
    )
    limit = f"{speed.limit:.2f}x"
    if speed.too_noisy:
        return "too noisy", control, limit, "-"
    return times, control, limit, f"{speed.share_of_limit:.0%}"


def _milliseconds(seconds: Pair | None) -> str:
    return f"{seconds.base * 1e3:.4g} -> {seconds.changed * 1e3:.4g}" if seconds else "-"

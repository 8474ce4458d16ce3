"""An evaluation as tables for a terminal."""

from __future__ import annotations

from ..records import Estimate, Evaluation, Pair


def tables(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Titles and lines; the first line is the heading. A star marks the row of the package itself."""
    names = [f"{row.name} *" if row.chosen and len(evaluation.rows) > 1 else row.name for row in evaluation.rows]
    fidelity: list[tuple[str, ...]] = [("frozen", "FLOPs", "KL first token", "same", "KL answer", "same answer")]
    accuracy: list[tuple[str, ...]] = [("frozen", "group", "samples", "base", "changed", "difference")]
    speed: list[tuple[str, ...]] = [
        ("frozen", "tokens", "first token, ms", "prefill, ms", "speed-up", "limit", "reached")
    ]
    for name, row in zip(names, evaluation.rows, strict=True):
        found = row.fidelity
        kl = (_shown(found.first_token_kl, 4), _shown(found.answer_kl, 4))
        same = (_shown(found.top1_agreement), _shown(found.exact_match))
        flops = "-" if row.flops_ratio is None else f"{row.flops_ratio:.1%}"
        fidelity.append((name, flops, kl[0], same[0], kl[1], same[1]))
        answered = {"all": row.accuracy} if row.accuracy else {}
        for group, value in (answered | (row.groups if row.chosen else {})).items():
            means = (_shown(value.base), _shown(value.changed), _shown(value.difference))
            accuracy.append((name, group, str(value.num_samples), *means))
        for timed in row.speed:
            tokens = f"{timed.text_tokens}+{timed.visual_tokens}"
            times = (_milliseconds(timed.first_token_seconds), _milliseconds(timed.prefill_seconds))
            limit = (f"{timed.speed_up:.2f}x", f"{timed.limit:.2f}x", f"{timed.share_of_limit:.0%}")
            speed.append((name, tokens, *times, *limit))
    tables = (("Fidelity to the base", fidelity), ("Accuracy", accuracy), ("Speed of the prompt pass", speed))
    return [(title, lines) for title, lines in tables if len(lines) > 1]


def _shown(estimate: Estimate, digits: int = 3) -> str:
    text = f"{estimate.mean:.{digits}f}"
    if estimate.low is None:
        return text
    return f"{text}\n[{estimate.low:.{digits}f},\N{NO-BREAK SPACE}{estimate.high:.{digits}f}]"


def _milliseconds(seconds: Pair | None) -> str:
    return f"{seconds.base * 1e3:.4g} -> {seconds.changed * 1e3:.4g}" if seconds else "-"

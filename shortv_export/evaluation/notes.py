"""What a reader of an evaluation's numbers must know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..records import NO_CPU_MEMORY, NO_WIDTH, SINGLE_SAMPLE, Row

if TYPE_CHECKING:
    from ..samples import DrawnSamples


def notes_on(samples: DrawnSamples, rows: Sequence[Row], *, on_cpu: bool) -> tuple[str, ...]:
    """Notes on the samples, the intervals and what was not measured."""
    notes = []
    if len(samples.samples) == 1:
        notes.append(SINGLE_SAMPLE)
    shares = [share for row in rows for share in (row.fidelity.top1_agreement, row.fidelity.exact_match)]
    if any(share.has_no_width for share in shares):
        notes.append(NO_WIDTH)
    overlap = samples.record.get("overlap", 0)
    if overlap is None:
        notes.append("It is not known which samples the layers were chosen by; these may be among them.")
    elif overlap:
        notes.append(f"The layers were chosen by {overlap} of these {len(samples.samples)} samples.")
    answered = rows[0].accuracy.num_samples if rows[0].accuracy else len(samples.samples)
    if answered < len(samples.samples):
        notes.append(f"Accuracy is over the {answered} of {len(samples.samples)} samples that have an answer.")
    if rows[0].speed and on_cpu:
        notes.append(NO_CPU_MEMORY)
    return tuple(notes)


def notes_on_baselines(rows: Sequence[Row], text_tokens: int, visual_tokens: int) -> tuple[str, ...]:
    """Notes on the settings of the other methods, whose cost was matched at these numbers of tokens."""
    names = [row.name for row in rows if row.baseline]
    if not names:
        return ()
    budget = f"no more FLOPs than this package at {text_tokens} + {visual_tokens} tokens"
    notes = [f"FastV and VTW run in the ShortV paper's setting, and where another one takes {budget}, in that too."]
    if not any(name.startswith("cosine") for name in names):
        notes.append("Cosine selection is left out: the package holds no cosine distances.")
    return tuple(notes)

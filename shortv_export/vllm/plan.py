"""Which rows of a step are text, and how they fall into runs. Needs torch and numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Plan:
    """The text rows of one step that has visual rows.

    A *run* is a longest row of neighbouring text rows of one request. To a causal attention kernel, each run is a
    sequence of its own: its queries come last among the keys up to the run's end, those of visual tokens included.

    Attributes:
        rows: `(text,)` int64 on the device: numbers of the text rows. Without any, the first visual row, as a filler,
            because kernels take no empty query.
        filler: whether `rows` is such a filler, whose results are dropped.
        num_visual: visual rows of the step.
        starts: `(runs + 1,)` int32 on the host: where each run starts in `rows`, and the end of the last.
        request: `(runs,)` int64 on the host: the request that each run belongs to, by its place in the batch.
        rows_after: `(runs,)` int64 on the host: rows of the same request in this step that follow the run.
        longest: rows in the longest run.
        calls: what frozen modules did in this step: kind of module -> number of calls.
    """

    rows: torch.Tensor
    filler: bool
    num_visual: int
    starts: torch.Tensor
    request: torch.Tensor
    rows_after: torch.Tensor
    longest: int
    calls: dict[str, int] = field(default_factory=dict)

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """The text rows of `(rows, ...)`."""
        return states[self.rows]

    def put(self, text_states: torch.Tensor, num_rows: int) -> torch.Tensor:
        """`(text, ...)` -> `(num_rows, ...)` with zeros at all other rows."""
        states = text_states.new_zeros(num_rows, *text_states.shape[1:])
        return states if self.filler else states.index_copy_(0, self.rows, text_states)

    def count(self, kind: str) -> None:
        """Notes that a frozen module of this kind worked on the text rows only."""
        self.calls[kind] = self.calls.get(kind, 0) + 1


def make_plan(visual: torch.Tensor, query_start_loc: torch.Tensor, device: torch.device) -> Plan:
    """Finds the text rows of a step.

    Args:
        visual: `(scheduled rows,)` bool on the host, True at visual tokens. Rows of padding may follow in the step.
        query_start_loc: `(requests + 1,)` on the host: where each request's rows start. Empty requests may follow.
        device: of `Plan.rows`. The copy to it is the only thing that happens there.
    """
    rows = np.flatnonzero(~visual.numpy())
    filler = not len(rows)
    if filler:
        rows = np.zeros(1, dtype=np.int64)
    ends = query_start_loc.numpy()[1:].astype(np.int64)
    request = np.searchsorted(ends, rows, side="right")
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (np.diff(rows) != 1) | (np.diff(request) != 0)
    starts = np.append(np.flatnonzero(first), len(rows))
    request = request[starts[:-1]]
    return Plan(
        rows=torch.from_numpy(rows).to(device, non_blocking=True),
        filler=filler,
        num_visual=len(visual) - (0 if filler else len(rows)),
        starts=torch.from_numpy(starts.astype(np.int32)),
        request=torch.from_numpy(request),
        rows_after=torch.from_numpy(ends[request] - 1 - rows[starts[1:] - 1]),
        longest=int(np.diff(starts).max()),
    )

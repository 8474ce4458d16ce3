"""How far long work is, on standard error: a bar at a terminal, or else one line every ten seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

INTERVAL = 10.0
"""Seconds between two lines."""

logger = logging.getLogger(__name__)


@contextmanager
def progress(
    description: str, total: int, unit: str, *, done: int = 0, hidden: bool = False
) -> Iterator[Callable[[int], object]]:
    """Shows progress inside the context, which gets a function to call with the units that were done since.

    Nothing is shown if messages are not, as with `--json`.

    Args:
        description: what is done, such as ``"Scoring"``.
        total: number of units.
        unit: what is counted, in the singular; ``"B"`` for bytes.
        done: units that were done before.
        hidden: show nothing, as in all processes but one.
    """
    if hidden or not logger.isEnabledFor(logging.INFO):
        yield lambda _: None
    elif sys.stderr is not None and sys.stderr.isatty():
        with tqdm(desc=description, total=total, unit=unit, unit_scale=unit == "B", initial=done) as bar:
            yield lambda count: bar.update(min(count, total - bar.n))
    else:
        yield _Lines(description, total, unit, done)


class _Lines:
    """Says every `INTERVAL` seconds how much is done."""

    def __init__(self, description: str, total: int, unit: str, done: int) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self.told = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done = min(self.done + count, self.total)
        if time.monotonic() - self.told < INTERVAL:
            return
        self.told = time.monotonic()
        if self.unit == "B":
            logger.info("%s: %.1f of %.1f GB", self.description, self.done / 1e9, self.total / 1e9)
        else:
            logger.info("%s: %d of %d %ss", self.description, self.done, self.total, self.unit)

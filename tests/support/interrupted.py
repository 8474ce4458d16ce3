"""Interrupts a measurement, as Ctrl-C does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shortv_export.measure.partial_results import PartialResults


@contextmanager
def interrupted_after(count: int) -> Iterator[None]:
    """Interrupts what runs inside the context after so many results, and checks that it was interrupted."""
    add = PartialResults.add

    def interrupt(self: PartialResults, *result: Any) -> None:
        add(self, *result)
        if len(self.values) == count:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialResults, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield

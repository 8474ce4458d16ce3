"""Xet storage: how the client sends and fetches large files where `hf_xet` is installed.

It has servers of its own. Behind some proxies they cannot be reached; then files go without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_T = TypeVar("_T")


@contextmanager
def xet_storage(offered: bool) -> Iterator[None]:
    """Lets the client use Xet storage in this context, or not. HF_HUB_DISABLE_XET forbids it in any case."""
    from huggingface_hub import constants

    disabled = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = disabled or not offered
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = disabled


def is_of_xet(error: BaseException) -> bool:
    """Whether Xet storage failed. Unlike the rest of the client, hf_xet raises Python's own errors."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        return False
    if isinstance(error, errors.HfHubHTTPError):
        return "/xet-" in str(error.response.url)
    others = (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    return isinstance(error, OSError | RuntimeError) and not isinstance(error, others)


def plain_if_xet_fails(action: Callable[[], _T]) -> _T:
    """Runs a download. If Xet storage fails, which has its own retries, runs it once more without."""
    try:
        return action()
    except Exception as error:
        if not is_of_xet(error):
            raise
    with xet_storage(offered=False):
        return action()

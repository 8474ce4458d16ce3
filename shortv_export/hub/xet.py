"""Xet storage, which the client uses for large files if `hf_xet` is installed.

Some proxies block its servers; then files are transferred without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_T = TypeVar("_T")


@contextmanager
def xet_storage(offered: bool) -> Iterator[None]:
    """Turns Xet storage on or off while the context lasts. HF_HUB_DISABLE_XET keeps it off."""
    from huggingface_hub import constants

    disabled = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = disabled or not offered
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = disabled


def is_of_xet(error: BaseException) -> bool:
    """Whether Xet storage failed. Unlike the rest of the client, hf_xet raises built-in exceptions."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        return False
    if isinstance(error, errors.HfHubHTTPError):
        return "/xet-" in str(error.response.url)
    others = (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    return isinstance(error, OSError | RuntimeError) and not isinstance(error, others)


def plain_if_xet_fails(action: Callable[[], _T]) -> _T:
    """Runs a download. If Xet storage fails, runs it once more without. hf_xet has its own retries."""
    try:
        return action()
    except Exception as error:
        if not is_of_xet(error):
            raise
    with xet_storage(offered=False):
        return action()

"""Requests to the Hub: repeated where that helps, and their errors in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from ..errors import ShortVError, one_line

_T = TypeVar("_T")

DELAYS: tuple[float, ...] = (1, 2, 4, 8, 16)
"""Seconds between the tries of one request. The client repeats uploads itself, but not these."""
_TRANSIENT = {408, 429, 500, 502, 503, 504}


def retry(
    action: Callable[[], _T],
    what: str,
    reasons: Mapping[int, str] | None = None,
    passing: tuple[type[Exception], ...] = (),
) -> _T:
    """Runs an idempotent request until it gets an answer.

    Args:
        action: the request.
        what: what it is about, for messages.
        reasons: what a refusal's status means here.
        passing: exceptions that the caller handles.

    Raises:
        ShortVError: it is refused, or fails again and again.
    """
    for delay in (*DELAYS, None):
        try:
            return action()
        except Exception as error:  # told apart by what can be done about it
            if isinstance(error, (ShortVError, *passing)):
                raise
            if delay is None or not is_transient(error):
                raise hub_error(error, what, reasons) from error
            time.sleep(seconds_to_wait(error, delay))
    raise AssertionError("the last try returns or raises")


def hub_error(error: Exception, what: str, reasons: Mapping[int, str] | None = None) -> ShortVError:
    """An exception of huggingface_hub in one line.

    Args:
        error: the exception. One that is no failure of the network or of the Hub is a bug, and is raised again.
        what: what was asked for, such as ``"model acme/base"``.
        reasons: what a refusal's status means here: the end of a sentence that begins with `what`.
    """
    from huggingface_hub import errors, is_offline_mode

    if isinstance(error, ShortVError):
        return error
    if not isinstance(error, errors.HTTPError | OSError | ValueError | RuntimeError):
        raise error
    cause = one_line(error.__cause__ or error).rstrip(".")
    if given := (reasons or {}).get(status_of(error) or 0):
        reason = given
    elif isinstance(error, errors.GatedRepoError):
        reason = "is gated; accept its conditions on its Hub page, then log in with `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "is not on the Hub, or is private; check the name, or log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = "has no such revision; give a branch, a tag or a commit of it"
    elif is_offline_mode():
        reason = "is not in the cache, and HF_HUB_OFFLINE forbids to download it; unset that variable"
    elif isinstance(error, errors.HfHubHTTPError):
        reason = f"was refused by the Hub, try again later: {cause}"
    elif isinstance(error, errors.HFValidationError):
        reason = "is neither a folder here nor a Hub id such as llava-hf/llava-1.5-7b-hf"
    else:
        reason = f"could not be reached ({cause}); check the network"
    return ShortVError(f"{what} {reason}.")


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that an exception is about; None if there was none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_transient(error: BaseException | None) -> bool:
    """Whether trying again may help. The client wraps a failed upload, whose reason is the cause."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    while error is not None:
        if (status := status_of(error)) is not None:
            return status in _TRANSIENT
        if isinstance(error, HTTPError | ConnectionError | TimeoutError):
            return not isinstance(error, OfflineModeIsEnabled)
        error = error.__cause__
    return False


def seconds_to_wait(error: BaseException, delay: float) -> float:
    """The delay, or what the server asks for, at most a minute."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return min(float(asked), 60.0) if asked.isdigit() else delay

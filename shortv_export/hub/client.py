"""Requests to the Hub: retries, and errors in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from ..errors import ShortVError, UnavailableError, one_line

_T = TypeVar("_T")

DELAYS: tuple[float, ...] = (1, 2, 4, 8, 16)
"""Seconds between the tries of a request. huggingface_hub itself retries uploads only."""
_TRANSIENT = {408, 429, 500, 502, 503, 504}


def retry(
    action: Callable[[], _T],
    what: str,
    reasons: Mapping[int, str] | None = None,
    passing: tuple[type[Exception], ...] = (),
) -> _T:
    """Runs an idempotent request, again after transient errors.

    Args:
        action: the request.
        what, reasons: for the error (see `hub_error`).
        passing: exceptions that are raised unchanged.

    Raises:
        ShortVError: the request is refused, or its last try fails.
    """
    for delay in (*DELAYS, None):
        try:
            return action()
        except Exception as error:  # the client raises many kinds
            if isinstance(error, (ShortVError, *passing)):
                raise
            if delay is None or not is_transient(error):
                raise hub_error(error, what, reasons) from error
            time.sleep(seconds_to_wait(error, delay))
    raise AssertionError("the last try returns or raises")


def hub_error(error: Exception, what: str, reasons: Mapping[int, str] | None = None) -> ShortVError:
    """Converts an exception of huggingface_hub to an error of one line.

    Args:
        error: the exception. It is raised again if neither the network nor the Hub can be its cause.
        what: the subject of the message, such as ``"model acme/base"``.
        reasons: HTTP status -> what it means for this request, as a predicate for `what`.
    """
    from huggingface_hub import errors, is_offline_mode

    if isinstance(error, ShortVError):
        return error
    if not isinstance(error, errors.HTTPError | OSError | ValueError | RuntimeError):
        raise error
    answered = isinstance(error, errors.HfHubHTTPError)
    cause = one_line(error if answered else error.__cause__ or error).rstrip(".")
    if given := (reasons or {}).get(status_of(error) or 0):
        reason = given
    elif isinstance(error, errors.GatedRepoError):
        reason = "is gated; accept its conditions on its Hub page, then log in with `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "is not on the Hub, or is private; check the name, or log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = "has no such revision; give a branch, a tag or a commit of it"
    elif is_offline_mode():
        reason = "is not in the cache, and HF_HUB_OFFLINE forbids downloads; unset that variable"
    elif isinstance(error, errors.HfHubHTTPError):
        reason = f"was refused by the Hub{', try again later' if is_transient(error) else ''}: {cause}"
    elif isinstance(error, errors.HFValidationError):
        return ShortVError(f"{what} is neither a folder here nor a Hub id such as llava-hf/llava-1.5-7b-hf.")
    elif isinstance(error, errors.HTTPError | OSError):
        reason = f"could not be reached ({cause}); check the network"
    else:
        reason = f"failed: {cause}"
    return UnavailableError(f"{what} {reason}.")


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception reports; None if there was no response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_transient(error: BaseException | None) -> bool:
    """Whether another try may help. The causes of an exception count, because the client wraps failed uploads."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    while error is not None:
        if (status := status_of(error)) is not None:
            return status in _TRANSIENT
        if isinstance(error, HTTPError | ConnectionError | TimeoutError):
            return not isinstance(error, OfflineModeIsEnabled)
        error = error.__cause__
    return False


def seconds_to_wait(error: BaseException, delay: float) -> float:
    """The server's ``Retry-After``, at most a minute; without it, `delay`."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return min(float(asked), 60.0) if asked.isdigit() else delay

"""Requests to the Hub: retries, and errors in one line. How long an answer may take is in `patience`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from huggingface_hub import errors, is_offline_mode
from huggingface_hub.utils import httpx

from ..errors import ShortVError, UnavailableError, one_line
from .patience import NoAnswer
from .session import TRANSIENT, BadAnswer

_T = TypeVar("_T")

DELAYS: tuple[float, ...] = (1, 2, 4, 8, 16)
"""Seconds between the tries of a request. huggingface_hub itself retries uploads only."""
_LONGEST = 90.0  # seconds, after which a request is not tried again


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
    started = time.monotonic()
    for delay in (*DELAYS, None):
        try:
            return action()
        except Exception as error:  # the client raises many kinds
            if isinstance(error, (ShortVError, *passing)):
                raise
            if delay is None or not is_transient(error) or time.monotonic() - started > _LONGEST:
                raise hub_error(error, what, reasons) from error
            time.sleep(seconds_to_wait(error, delay))
    raise AssertionError("the last try returns or raises")


def hub_error(error: Exception, what: str, reasons: Mapping[int, str] | None = None) -> ShortVError:
    """Converts an exception of huggingface_hub to an error of one line.

    Args:
        error: the exception. One that is neither of the network nor of the Hub, such as a KeyError, comes from an
            answer that huggingface_hub cannot take apart.
        what: the subject of the message, such as ``"model acme/base"``.
        reasons: HTTP status -> what it means for this request, as a predicate for `what`.
    """
    if isinstance(error, ShortVError):
        return error
    cause = _cause(error)
    error = cause if isinstance(cause, errors.HfHubHTTPError) else error
    detail = one_line(cause).partition(" For more information check: ")[0].rstrip(".")
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
        reason = f"was refused by the Hub{', try again later' if is_transient(error) else ''}: {detail}"
    elif isinstance(error, errors.HFValidationError):
        return ShortVError(f"{what} is neither a folder here nor a Hub id such as llava-hf/llava-1.5-7b-hf.")
    elif isinstance(cause, httpx.HTTPError | ConnectionError | TimeoutError) and not isinstance(cause, _UNREADABLE):
        reason = f"could not be reached ({detail}); check the network"
    elif isinstance(cause, OSError | RuntimeError) and not isinstance(cause, RecursionError):
        reason = f"failed: {detail}"
    else:
        kind = "" if isinstance(cause, _UNREADABLE) else f"{type(cause).__name__}: "
        return UnavailableError(
            f"{what}: the Hub's answer cannot be read ({kind}{detail}); try again later, and check the network: "
            "a proxy may have answered."
        )
    return UnavailableError(f"{what} {reason}.")


_UNREADABLE = (BadAnswer, httpx.DecodingError)


def _cause(error: BaseException) -> BaseException:
    """What the client has wrapped, if it has."""
    while error.__cause__ is not None and not isinstance(error, httpx.HTTPError):
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an exception reports; None if there was no response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_transient(error: BaseException | None) -> bool:
    """Whether another try may help. The causes of an exception count, because the client wraps failed uploads."""
    network = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
    while error is not None and not isinstance(error, BadAnswer | NoAnswer):
        if (status := status_of(error)) is not None:
            return status in TRANSIENT
        if isinstance(error, (*network, ConnectionError, TimeoutError)):
            return not isinstance(error, errors.OfflineModeIsEnabled)
        error = error.__cause__
    return False


def seconds_to_wait(error: BaseException, delay: float) -> float:
    """The server's ``Retry-After``, at most a minute; without it, `delay`."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return min(float(asked), 60.0) if re.fullmatch(r"[0-9]+", asked) else delay

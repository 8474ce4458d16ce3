"""Checks parsed JSON against the declared types of a record, with pydantic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ShortVError, one_line

if TYPE_CHECKING:
    from pydantic import ConfigDict, ValidationError

T = TypeVar("T")

STRICT: ConfigDict = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""A record's ``__pydantic_config__``: no text for a number, no bool for an integer, no undeclared fields."""


def validated(kind: type[T], data: Any, refusal: str, advice: str = "") -> T:
    """Converts parsed JSON to a dataclass or pydantic model `kind`. Declared tuples are read from lists.

    Args:
        kind: the dataclass or pydantic model.
        data: the parsed JSON.
        refusal: the beginning of the error, such as ``"evaluation.json is not an evaluation"``.
        advice: the end of the error: what to do.

    Raises:
        ShortVError: `data` does not have the declared types.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        # In strict mode, only JSON input may give a list for a tuple or an integer for a float.
        return TypeAdapter(kind).validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        reason = _reason(error)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:
        reason = "it has a number that is not finite"
    except ShortVError as error:  # from `__post_init__` of a record
        reason = one_line(error).rstrip(".")
    raise ShortVError(f"{refusal}: {reason}{advice and '; '}{advice}.") from None


def _reason(error: ValidationError) -> str:
    """The first problem that pydantic found. Keys from the file are untrusted, so they are quoted and shortened."""
    found = error.errors(include_url=False)[0]
    path, message = found["loc"], found["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    place = f"{'.'.join(map(str, path))!r:.80}"
    if found["type"] == "json_invalid":
        return "it is nested too deeply, or has text that is not valid Unicode"
    if found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"it has an unknown field {place}"
    if not path:
        return message
    # The first part of the path is a declared field. Other parts may be keys from the file.
    return f"its {path[0]} is missing, or not what belongs there ({place}: {message})"

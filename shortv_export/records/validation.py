"""Checks parsed JSON against the declared types of a record, with pydantic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ShortVError, one_line

if TYPE_CHECKING:
    from pydantic import ConfigDict, ValidationError

T = TypeVar("T")

STRICT: ConfigDict = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""A record's ``__pydantic_config__``: no text for a number, no bool for an integer, no field that is not declared."""


def validated(kind: type[T], data: Any, refusal: str, advice: str = "") -> T:
    """Parsed JSON as a `kind`, a dataclass or a pydantic model. Lists become tuples where tuples are declared.

    Args:
        kind: what is declared.
        data: the parsed JSON.
        refusal: how the error begins, such as ``"evaluation.json is not an evaluation"``.
        advice: how it ends: what to do.

    Raises:
        ShortVError: `data` is something else.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        # Strict types accept a list for a tuple, and an integer for a float, in JSON only.
        return TypeAdapter(kind).validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        reason = _reason(error)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:
        reason = "it has a number that is not finite"
    except ShortVError as error:  # of a record's own check
        reason = one_line(error).rstrip(".")
    raise ShortVError(f"{refusal}: {reason}{advice and '; '}{advice}.") from None


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong. Keys from the file are quoted and cut."""
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
    # The first part of the path is a declared field; the others may be keys from the file.
    return f"its {path[0]} is missing, or not what belongs there ({place}: {message})"

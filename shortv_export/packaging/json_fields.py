"""Changes one field in the text of a JSON file and leaves the rest of the text as it is, so that it can be undone."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


class _Member(NamedTuple):
    """A field of an object, and where in the text its name begins, its value begins and its value ends."""

    name: str
    start: int
    value: int
    end: int


def with_field(text: str, field: str, before: str | None, after: str | None) -> str:
    """The text with another value of a field. Swapping `before` and `after` gives the first text again.

    Args:
        text: of a JSON object.
        field: its name; ``a.b`` is the field ``b`` of the object in the field ``a``.
        before: the value's JSON text, as it stands there; None for a missing field.
        after: the new value's; None to remove a field that was added so.

    Raises:
        ValueError: the text is not JSON, or does not have the value `before` there, once.
    """
    *parents, name = field.split(".")
    try:
        start, members = _members(text, _SPACE.match(text).end())  # type: ignore[union-attr]
        for parent in parents:
            start, members = _members(text, _single(members, parent).value)
        if before is None:
            if any(member.name == name for member in members):
                raise ValueError(f"it has {field} already")
            return text[:start] + _added(text, start, members, name, after) + text[start:]
        member = _single(members, name)
    except (IndexError, RecursionError):
        raise ValueError("it is not valid JSON") from None
    if text[member.value : member.end] != before:
        raise ValueError(f"its {field} is not {before}")
    if after is not None:
        return text[: member.value] + after + text[member.end :]
    added = _added(text, start, members[1:], name, before)
    if not text.startswith(added, start):
        raise ValueError(f"its {field} is not at the beginning")
    return text[:start] + text[start + len(added) :]


def _added(text: str, start: int, others: list[_Member], name: str, value: str | None) -> str:
    """A new first field of the object that begins at `start`, set like the one that follows it."""
    if not others:
        return f'"{name}": {value}'
    return f'{_SPACE.match(text, start)[0]}"{name}": {value},'  # type: ignore[index]


def _single(members: list[_Member], name: str) -> _Member:
    found = [member for member in members if member.name == name]
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} fields {name}")
    return found[0]


def _members(text: str, index: int) -> tuple[int, list[_Member]]:
    """Where the inside of the object at an index begins, and its fields."""

    def skip(index: int) -> int:
        return _SPACE.match(text, index).end()  # type: ignore[union-attr]

    if text[index] != "{":
        raise ValueError("it is not a JSON object")
    inside, members = index + 1, []
    index = skip(inside)
    while text[index] != "}":
        start = index
        name, index = _DECODER.raw_decode(text, start)
        value = skip(skip(index) + 1)  # after the colon
        _, end = _DECODER.raw_decode(text, value)
        members.append(_Member(name, start, value, end))
        index = skip(end)
        index = skip(index + 1) if text[index] == "," else index
    return inside, members

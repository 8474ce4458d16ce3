"""Checks the Hub's answers before huggingface_hub takes them apart, which checks almost nothing of them."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from huggingface_hub import hf_api
from pydantic import TypeAdapter, ValidationError

from ..errors import one_line
from . import shapes

_REPO = r"/api/(?:model|dataset)s/[^/]+(?:/[^/]+)?"
_SHAPES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/api/whoami-v2", shapes.Account),
    ("GET", rf"{_REPO}/refs", shapes.References),
    ("GET", rf"{_REPO}/tree/.*", list[shapes.Entry]),
    ("GET", rf"{_REPO}/commits/.*", list[shapes.PastCommit]),
    ("GET", rf"{_REPO}/discussions", shapes.Discussions),
    ("GET", rf"{_REPO}(?:/revision/[^/]+)?", shapes.Info),
    ("POST", rf"{_REPO}/paths-info/.*", list[shapes.Entry]),
    ("POST", rf"{_REPO}/preupload/.*", shapes.UploadModes),
    ("POST", rf"{_REPO}/commit/.*", shapes.Committed),
    ("POST", r"/api/repos/create", shapes.Created),
    ("POST", r"/api/validate-yaml", shapes.Remarks),
    ("POST", r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", shapes.Objects),
)


def check_answer(method: str, path: str, content: bytes, *, partial: bool = False) -> str:
    """What is wrong with the answer to a request of the Hub's API; empty if nothing is, or it is no such request.

    Args:
        partial: whether some fields of a repository only were asked for; then they are not checked.
    """
    problem = ""
    for asked, pattern, shape in _SHAPES:
        if method == asked and re.fullmatch(pattern, path) and not (partial and shape is shapes.Info):
            problem = _problem(shape, content)
            # The name of a repository may look like the end of another address.
            if not problem:
                return _problem_of_client(path, content) if shape is shapes.Info else ""
    return problem


def error_answer(content: bytes) -> bytes:
    """The body of a refusal as huggingface_hub can read it: the Hub's own, or text of another server as the Hub's."""
    try:
        json.loads(content)
    except json.JSONDecodeError:
        text = content[:1000].decode("utf-8", "replace").strip()
        return json.dumps({"error": one_line(text)} if text and not text.startswith("<") else {}).encode()
    except (ValueError, RecursionError):
        return b"{}"
    return b"{}" if _problem(shapes.Failure, content) else content


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _problem(shape: Any, content: bytes) -> str:
    try:
        _adapter(shape).validate_json(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if found["type"] == "json_invalid":
            return "it is not JSON" if content.strip() else "it is empty"
        place = ".".join(map(str, found["loc"]))
        return f"{place or 'it'}: {found['msg'][:1].lower()}{found['msg'][1:]}"
    return ""


def _problem_of_client(path: str, content: bytes) -> str:
    """What huggingface_hub cannot make of the rest of an answer, such as the metadata of a card."""
    try:
        make = hf_api.ModelInfo if path.startswith("/api/models/") else hf_api.DatasetInfo
        make(**json.loads(content))
    except Exception as error:  # it raises many kinds
        return f"{type(error).__name__}: {one_line(error)}"
    return ""

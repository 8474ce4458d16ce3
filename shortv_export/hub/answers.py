"""What the Hub answers, as far as huggingface_hub and this tool read it. An answer may have more fields.

huggingface_hub checks almost nothing of it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Annotated, Any, Literal

from huggingface_hub import hf_api
from huggingface_hub.utils import parse_datetime
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ..errors import one_line


def _is_date(text: str) -> str:
    parse_datetime(text)
    return text


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


_Size = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(min_length=1)]
_Sha1 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Date = Annotated[str, AfterValidator(_is_date)]


class _Entity(_Answer):
    type: str | None = None
    name: str | None = None


class _Scope(_Answer):
    entity: _Entity
    permissions: list[str]


class _FineGrained(_Answer):
    scoped: list[_Scope] | None = None
    everywhere: list[str] | None = Field(None, alias="global")  # a word of Python


class _Token(_Answer):
    role: str | None = None
    fineGrained: _FineGrained | None = None


class _Auth(_Answer):
    accessToken: _Token | None = None


class _Organisation(_Answer):
    name: _Name
    roleInOrg: str | None = None


class _Account(_Answer):
    name: _Name
    auth: _Auth = _Auth()
    orgs: list[_Organisation] = []


class _SiblingLfs(_Answer):
    size: _Size
    sha256: _Sha256
    pointerSize: _Size


class _Sibling(_Answer):
    rfilename: _Name
    size: _Size | None = None
    blobId: str | None = None
    lfs: _SiblingLfs | None = None


class _Info(_Answer):
    id: _Name
    sha: _Sha1 | None = None
    private: bool | None = None
    gated: bool | Literal["auto", "manual"] | None = None
    siblings: list[_Sibling] | None = None
    tags: list[str] | None = None
    lastModified: _Date | None = None
    createdAt: _Date | None = None


class _Lfs(_Answer):
    oid: _Sha256
    size: _Size
    pointerSize: _Size


class _File(_Answer):
    type: Literal["file"]
    path: _Name
    oid: _Sha1
    size: _Size
    lfs: _Lfs | None = None
    xetHash: str | None = None


class _Folder(_Answer):  # or whatever else is no file
    type: str
    path: _Name
    oid: _Sha1


def _kind(entry: Any) -> str:
    return "file" if isinstance(entry, dict) and entry.get("type") == "file" else "folder"


_Entry = Annotated[Annotated[_File, Tag("file")] | Annotated[_Folder, Tag("folder")], Discriminator(_kind)]


class _Reference(_Answer):
    name: _Name
    ref: _Name
    targetCommit: _Sha1


class _References(_Answer):
    branches: list[_Reference]
    converts: list[_Reference]
    tags: list[_Reference]
    pullRequests: list[_Reference] | None = None


class _Author(_Answer):
    user: str


class _Commit(_Answer):
    id: _Sha1
    authors: list[_Author]
    date: _Date
    title: str
    message: str


class _DiscussionRepo(_Answer):
    name: _Name
    type: str


class _Discussion(_Answer):
    title: str
    num: int
    author: dict[str, Any] = {}
    createdAt: _Date
    status: Literal["open", "closed", "merged", "draft"]
    repo: _DiscussionRepo
    isPullRequest: bool


class _Discussions(_Answer):
    count: _Size
    start: _Size
    discussions: list[_Discussion]

    @model_validator(mode="after")
    def _has_an_end(self) -> _Discussions:
        if self.count > self.start and not self.discussions:
            raise ValueError("an empty page before the last one")
        return self


class _Created(_Answer):
    url: _Name


class _UploadMode(_Answer):
    path: str
    uploadMode: Literal["lfs", "regular"]
    shouldIgnore: bool
    oid: str | None = None


class _UploadModes(_Answer):
    files: list[_UploadMode]


class _Committed(_Answer):
    commitUrl: str
    commitOid: _Sha1
    pullRequestUrl: str | None = None


class _Action(_Answer):
    href: str
    header: dict[str, Any] | None = None


class _Actions(_Answer):
    upload: _Action | None = None
    verify: _Action | None = None


class _ObjectError(_Answer):
    code: int
    message: str


class _Object(_Answer):
    oid: _Sha256
    size: _Size
    actions: _Actions | None = None
    error: _ObjectError | None = None


class _Objects(_Answer):
    transfer: str | None = None
    objects: list[_Object]


class _Remark(_Answer):
    message: str


class _Remarks(_Answer):
    errors: list[_Remark] = []
    warnings: list[_Remark] = []


class _Failure(_Answer):
    error: str | list[str] | None = None
    error_description: str | None = None
    errors: list[_Remark] | None = None
    warnings: list[_Remark] | None = None


_REPO = r"/api/(?:model|dataset)s/[^/]+(?:/[^/]+)?"
_SHAPES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/api/whoami-v2", _Account),
    ("GET", rf"{_REPO}/refs", _References),
    ("GET", rf"{_REPO}/tree/.*", list[_Entry]),
    ("GET", rf"{_REPO}/commits/.*", list[_Commit]),
    ("GET", rf"{_REPO}/discussions", _Discussions),
    ("GET", rf"{_REPO}(?:/revision/[^/]+)?", _Info),
    ("POST", rf"{_REPO}/paths-info/.*", list[_Entry]),
    ("POST", rf"{_REPO}/preupload/.*", _UploadModes),
    ("POST", rf"{_REPO}/commit/.*", _Committed),
    ("POST", r"/api/repos/create", _Created),
    ("POST", r"/api/validate-yaml", _Remarks),
    ("POST", r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", _Objects),
)


def check_answer(method: str, path: str, content: bytes) -> str:
    """What is wrong with the answer to a request of the Hub's API; empty if nothing is, or it is no such request."""
    problem = ""
    for asked, pattern, shape in _SHAPES:
        if method == asked and re.fullmatch(pattern, path):
            problem = _problem(shape, content)
            # The name of a repository may look like the end of another address.
            if not problem:
                return _problem_of_client(path, content) if shape is _Info else ""
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
    return b"{}" if _problem(_Failure, content) else content


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

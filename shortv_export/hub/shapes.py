"""What the Hub answers, as far as huggingface_hub and this tool read it. An answer may have more fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from huggingface_hub.utils import parse_datetime
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


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
    accessToken: _Token = _Token()


class _Organisation(_Answer):
    name: _Name
    roleInOrg: str | None = None


class Account(_Answer):
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


class Info(_Answer):
    id: _Name
    sha: _Sha1
    private: bool = False
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


Entry = Annotated[Annotated[_File, Tag("file")] | Annotated[_Folder, Tag("folder")], Discriminator(_kind)]


class _Reference(_Answer):
    name: _Name
    ref: _Name
    targetCommit: _Sha1


class References(_Answer):
    branches: list[_Reference]
    converts: list[_Reference]
    tags: list[_Reference]
    pullRequests: list[_Reference] | None = None


class _Author(_Answer):
    user: str


class PastCommit(_Answer):
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


class Discussions(_Answer):
    count: _Size
    start: _Size
    discussions: list[_Discussion]

    @model_validator(mode="after")
    def _has_an_end(self) -> Discussions:
        if self.count > self.start and not self.discussions:
            raise ValueError("an empty page before the last one")
        return self


class Created(_Answer):
    url: _Name


class _UploadMode(_Answer):
    path: str
    uploadMode: Literal["lfs", "regular"]
    shouldIgnore: bool
    oid: str | None = None


class UploadModes(_Answer):
    files: list[_UploadMode]


class Committed(_Answer):
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


class Objects(_Answer):
    transfer: str | None = None
    objects: list[_Object]


class _Remark(_Answer):
    message: str


class Remarks(_Answer):
    errors: list[_Remark] = []
    warnings: list[_Remark] = []


class Failure(_Answer):
    error: str | list[str] | None = None
    error_description: str | None = None
    errors: list[_Remark] | None = None
    warnings: list[_Remark] | None = None

"""The shapes of the Hub's answers: those that it gives pass, also with what this tool does not know."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shortv_export.hub.answers import check_answer, error_answer

SHA, SHA256 = "0" * 40, "0" * 64
FILE = {"type": "file", "path": "a.bin", "oid": SHA, "size": 3}
INFO = {"id": "acme/base", "sha": SHA, "private": False, "gated": "auto", "siblings": [{"rfilename": "a"}]}
DISCUSSIONS = "/api/models/acme/base/discussions"


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/api/whoami-v2", {"name": "acme", "auth": {"accessToken": {"role": "read"}}, "orgs": [], "more": 1}),
        ("GET", "/api/whoami-v2", {"name": "acme", "auth": {"type": "oauth"}}),
        ("GET", "/api/models/acme/base", INFO),
        ("GET", "/api/models/gpt2", {**INFO, "cardData": {"license": "mit"}, "gguf": {"total": 1}}),
        ("GET", "/api/datasets/acme/data/revision/main", {**INFO, "createdAt": "2024-01-02T03:04:05.000Z"}),
        ("GET", "/api/models/acme/refs", INFO),  # a model of this name
        ("GET", "/api/models/gpt2/refs", {"branches": [], "tags": [], "converts": []}),
        ("GET", "/api/models/acme/base/tree/main", [FILE, {"type": "directory", "path": "b", "oid": SHA}]),
        ("GET", "/api/models/acme/base/tree/main/b", [{"type": "submodule", "path": "c", "oid": SHA, "url": "x"}]),
        ("POST", "/api/models/acme/base/paths-info/main", [{**FILE, "lfs": None, "securityFileStatus": None}]),
        ("GET", DISCUSSIONS, {"count": 0, "start": 0, "discussions": []}),
        ("POST", "/api/models/acme/base/branch/x", "anything"),
        ("HEAD", "/api/models/acme/base", None),
        ("GET", "/acme/base/resolve/main/config.json", "anything"),
    ],
)
def test_what_the_hub_answers(method: str, path: str, answer: Any) -> None:
    assert check_answer(method, path, json.dumps(answer).encode()) == ""


@pytest.mark.parametrize(
    ("method", "path", "answer", "problem"),
    [
        ("GET", "/api/whoami-v2", {}, "name: field required"),
        ("GET", "/api/models/acme/base", [], "it: input should be"),
        ("GET", "/api/models/acme/base", {**INFO, "sha": "main"}, "sha: string should match"),
        ("GET", "/api/models/acme/base", {"id": "acme/base"}, "sha: field required"),
        ("GET", "/api/models/acme/base", {**INFO, "siblings": {"a": 1}}, "siblings: "),
        ("GET", "/api/models/acme/base", {**INFO, "safetensors": [1]}, "TypeError: "),
        ("GET", "/api/datasets/acme/data", {**INFO, "createdAt": "yesterday"}, "createdAt: "),
        ("GET", "/api/models/acme/base/tree/main", [{**FILE, "size": "3"}], "0.file.size: "),
        ("GET", "/api/models/acme/base/tree/main", [{**FILE, "size": -3}], "0.file.size: "),
        ("GET", "/api/models/acme/base/tree/main", [None], "0"),
        ("GET", DISCUSSIONS, {"count": 9, "start": 0, "discussions": []}, "an empty page before the last one"),
    ],
)
def test_what_it_does_not(method: str, path: str, answer: Any, problem: str) -> None:
    assert problem in check_answer(method, path, json.dumps(answer).encode())


def test_a_client_may_ask_for_some_fields_only() -> None:
    assert check_answer("GET", "/api/models/acme/base", b'{"id": "acme/base"}', partial=True) == ""
    assert check_answer("GET", "/api/models/acme/base/tree/main", b"{}", partial=True)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": "no", "more": [1]}', {"error": "no", "more": [1]}),
        (b'{"error": ["a", "b"]}', {"error": ["a", "b"]}),
        (b'{"error": 5}', {}),
        (b"[1]", {}),
        (b"\xff", {}),
        (b"", {}),
        (b"<html>Bad gateway</html>", {}),
        (b"slow\ndown", {"error": "slow down"}),
        (b"[" * 100_000, {}),
    ],
)
def test_refusals(body: bytes, expected: Any) -> None:
    assert json.loads(error_answer(body)) == expected

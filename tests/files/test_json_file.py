"""Files are read and written whole, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files.disk import check_space, same_device
from shortv_export.files.json_file import json_text, read_json, write_json, write_text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    value = {"z": [1, 1.0, 1e-7, None, True], "a": {"ä": "\n"}}
    write_json(tmp_path / "new" / "file.json", value)
    assert read_json(tmp_path / "new" / "file.json") == value
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.json"]
    assert (tmp_path / "new" / "file.json").read_bytes() == json_text(value).encode()
    assert (tmp_path / "new" / "file.json").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(float("nan"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        ("[" * 10**5, "not valid"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: str | bytes | None, words: str) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ShortVError, match=words):
        read_json(path)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b" " * (1 << 20) + b"1")
    with pytest.raises(ShortVError, match="is larger than 1,048,576 bytes"):
        read_json(tmp_path / "file.json", most=1 << 20)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(ShortVError, match="not valid Unicode"):
        write_text(path, "\ud800")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]
    with pytest.raises(ShortVError, match="cannot write"):
        write_text(path / "below", "new")


def test_disk_space(tmp_path: Path) -> None:
    nowhere = tmp_path / "not" / "yet"
    check_space(nowhere, 1, "this", "do that")
    with pytest.raises(ShortVError, match=r"^this needs 1000000000\.0 GB, and .* are free in .*; do that\.$"):
        check_space(nowhere, 10**18, "this", "do that")
    assert same_device(nowhere, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_depth(tmp_path: Path, opening: str) -> None:
    closing = {"[": "]", "{": "}"}
    path = tmp_path / "deep.json"

    def write(depth: int) -> None:
        text = (opening * depth)[: depth * len(opening)]
        path.write_text(text + "0" + "".join(closing[each] for each in reversed(text) if each in closing))

    write(100 // sum(map(opening.count, closing)))
    read_json(path)
    for depth in (101, 400):
        write(depth)
        with pytest.raises(ShortVError, match="is nested more than 100 levels deep"):
            read_json(path)
    write(100_000)
    with pytest.raises(ShortVError, match="is not valid JSON"):
        read_json(path)

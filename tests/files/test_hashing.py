"""Hashes of large files are remembered, and never believed of a file that changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files import hashing
from shortv_export.files.hashing import file_sha256

LONG_AGO = time.time_ns() - 10**12
CONTENT = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setattr(hashing, "_LARGE", len(CONTENT))
    monkeypatch.setattr(hashing, "_SETTLED", -1.0)  # nobody can set the time of the last change into the past
    return tmp_path / "hf-home" / "shortv-export" / "sha256.json"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write(tmp_path / "model.safetensors", CONTENT)


def write(path: Path, content: bytes, mtime_ns: int = LONG_AGO) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


@pytest.fixture
def poison(cache: Path) -> Callable[[], None]:
    """Puts a wrong hash in for everything that is remembered: who returns it did not read the file."""

    def poison() -> None:
        cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), "remembered")))

    return poison


def true_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_read_once(weights: Path, poison: Callable[[], None]) -> None:
    assert file_sha256(weights, remembered=True) == true_sha256(weights)
    poison()
    assert file_sha256(weights, remembered=True) == "remembered"
    weights.with_name("link").symlink_to(weights)
    assert file_sha256(weights.with_name("link"), remembered=True) == "remembered"
    # A check reads the file, and puts right what is remembered.
    assert file_sha256(weights) == true_sha256(weights)
    assert file_sha256(weights, remembered=True) == true_sha256(weights)


@pytest.mark.parametrize("position", [0, 4095, len(CONTENT) // 2, len(CONTENT) - 1])
def test_a_changed_file_is_read_again(weights: Path, poison: Callable[[], None], position: int) -> None:
    file_sha256(weights, remembered=True)
    poison()
    with weights.open("r+b") as file:
        file.seek(position)
        file.write(b"changed"[: len(CONTENT) - position])
    assert file_sha256(weights, remembered=True) == true_sha256(weights)


def test_other_content_with_all_the_same_numbers(weights: Path, poison: Callable[[], None]) -> None:
    """The same inode, size and time, as when an archive is unpacked over it."""
    file_sha256(weights, remembered=True)
    poison()
    write(weights, CONTENT[::-1])
    assert file_sha256(weights, remembered=True) == true_sha256(weights)


def test_a_copy_or_another_size_is_another_file(weights: Path, poison: Callable[[], None]) -> None:
    file_sha256(weights, remembered=True)
    poison()
    copy = write(weights.with_name("copy"), CONTENT)
    assert file_sha256(copy, remembered=True) == true_sha256(weights)
    write(weights, CONTENT + b"more")
    assert file_sha256(weights, remembered=True) == true_sha256(weights)


def test_damage_in_place_is_noticed(weights: Path, poison: Callable[[], None]) -> None:
    """A byte that none of the samples holds, and the modification time put back."""
    file_sha256(weights, remembered=True)
    poison()
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(len(CONTENT) // 4)
        file.write(b"\0" if CONTENT[len(CONTENT) // 4] else b"\1")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert file_sha256(weights, remembered=True) == true_sha256(weights)


def test_small_and_fresh_files_are_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_SETTLED", 2.0)
    for path in (write(tmp_path / "small", b"x"), write(tmp_path / "fresh", CONTENT, time.time_ns())):
        assert file_sha256(path, remembered=True) == true_sha256(path)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[]", "not JSON", '{"a": '])
def test_a_damaged_cache_is_ignored(weights: Path, cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert file_sha256(weights, remembered=True) == true_sha256(weights)
    assert list(json.loads(cache.read_text()).values()) == [true_sha256(weights)]


def test_a_cache_that_cannot_be_written_is_done_without(weights: Path, cache: Path) -> None:
    cache.parent.parent.write_bytes(b"a file where the folder should be")
    assert file_sha256(weights, remembered=True) == true_sha256(weights)


def test_files_side_by_side_are_all_remembered(tmp_path: Path, cache: Path) -> None:
    files = [write(tmp_path / str(number), bytes([number]) + CONTENT) for number in range(8)]
    with ThreadPoolExecutor(4) as workers:
        hashes = list(workers.map(file_sha256, files))
    assert hashes == [true_sha256(path) for path in files]
    assert sorted(json.loads(cache.read_text()).values()) == sorted(hashes)


def test_the_cache_stays_small_and_names_no_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_MOST_ENTRIES", 2)
    files = [write(tmp_path / f"private-{number}", bytes([number]) + CONTENT) for number in range(3)]
    for path in files:
        file_sha256(path)
    assert list(json.loads(cache.read_text()).values()) == [true_sha256(path) for path in files[1:]]
    assert "private" not in cache.read_text()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShortVError, match="does not exist"):
        file_sha256(tmp_path / "nowhere")

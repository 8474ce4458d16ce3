"""Partial results: whatever lies at their name, no traceback and no wrong number."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export.errors import ShortVError, notes_of
from shortv_export.measure.partial_results import PartialResults

VALUES = {"visual": [0.5, 0.25]}


def is_valid(values: Any) -> bool:
    return isinstance(values, dict) and isinstance(values.get("visual"), list) and len(values["visual"]) == 2


def results(output: Path, **options: Any) -> PartialResults:
    return PartialResults(output, "settings", is_valid=is_valid, **options)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two samples have been measured."""
    output = tmp_path / "scores.json"
    first = results(output)
    first.add("a", "lc", VALUES)
    first.add("b", "lc", VALUES)
    return output


def lines_of(output: Path) -> tuple[Path, list[bytes]]:
    path = output.with_name("scores.json.partial.jsonl")
    return path, [line for line in path.read_bytes().splitlines() if line]


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(line: bytes) -> bytes:
        record = json.loads(line)
        change(record)
        return json.dumps(record).encode()

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: b"null",
        lambda line: b"[]",
        lambda line: b'[["settings", "settings"]]',
        lambda line: b'"settings"',
        lambda line: b"5",
        lambda line: b"{}",
        lambda line: b"NaN",
        lambda line: b"\xff\xfe" + line,
        lambda line: line.decode().encode("utf-16"),
        lambda line: line[:-1],
        lambda line: line[: len(line) // 2],
        lambda line: line * 2,
        lambda line: b"\0" * 100,
        lambda line: b"[" * 100_000,
        lambda line: b"9" * 10_000,
        lambda line: b"x" * 20_000_000,
        changed(lambda record: record["values"].update(visual=[9.0, 9.0])),
        changed(lambda record: record["values"]["visual"].append(1.0)),
        changed(lambda record: record["values"].update(visual=[float("nan"), 1.0])),
        changed(lambda record: record.update(values=None)),
        changed(lambda record: record.update(sample=["a"])),
        changed(lambda record: record.update(sample="c")),
        changed(lambda record: record.update(settings="others")),
        changed(lambda record: record.pop("what")),
        changed(lambda record: record.pop("sha256")),
        changed(lambda record: record.update(sha256=None)),
    ],
)
def test_damaged_lines_are_left_out(
    output: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    path, (first, second) = lines_of(output)
    path.write_bytes(damage(first) + b"\n" + second + b"\n")
    with caplog.at_level(logging.WARNING, "shortv_export"):
        found = results(output)
    assert found.get("a", "lc") is None
    assert found.get("b", "lc") == VALUES
    assert set(found.values) == {("b", "lc")}
    (message,) = caplog.messages
    assert "damaged lines are left out" in message


def test_lines_with_a_checksum_and_other_values(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As another version may write them."""
    path, _ = lines_of(output)
    path.unlink()
    other = PartialResults(output, "settings")
    for number, values in enumerate([None, [], {"visual": [1.0]}, {"visual": "ab"}, {}]):
        other.add(str(number), "lc", values)  # type: ignore[arg-type]
    del other  # another run would wait for it
    assert results(output).values == {}
    assert "5 damaged lines" in caplog.text


def test_other_settings_are_ignored_in_silence(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert PartialResults(output, "others").values == {}
    assert caplog.messages == []


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious").touch()


def make_socket(path: Path) -> None:
    os.chdir(path.parent)  # the path of a socket is short
    socket.socket(socket.AF_UNIX).bind(path.name)


NO_FILES: list[Callable[[Path], object]] = [
    make_folder,
    os.mkfifo,
    make_socket,
    lambda path: path.symlink_to("/dev/full"),
    lambda path: path.symlink_to("precious"),
    lambda path: path.symlink_to(path.name),
    lambda path: path.symlink_to("nowhere"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").write_text("precious")
    own, other = (tmp_path / f"scores.json.partial{name}.jsonl" for name in ("", "-1"))
    make(own)
    with pytest.raises(ShortVError, match="is not a regular file; remove it"):
        results(tmp_path / "scores.json")
    os.rename(own, other)  # of a process that this run does not have
    found = results(tmp_path / "scores.json")
    found.add("a", "lc", VALUES)
    found.delete()
    assert os.path.lexists(other), "it is not ours to remove"
    assert not own.exists()
    assert (tmp_path / "precious").read_text() == "precious"


def test_names_that_only_look_alike(tmp_path: Path) -> None:
    for name in ("scores.json.partial-x.jsonl", "scores.json.partial.jsonl.bak", "scoresXjson.partial.jsonl"):
        (tmp_path / name).write_text("mine")
    found = results(tmp_path / "scores.json")
    found.add("a", "lc", VALUES)
    found.delete()
    assert len(list(tmp_path.iterdir())) == 3


def test_two_runs_on_one_output(output: Path) -> None:
    one, two = results(output), results(output)
    one.add("c", "lc", VALUES)
    with pytest.raises(ShortVError, match=r"another run writes .*scores\.json; wait for it"):
        two.add("d", "lc", VALUES)
    with pytest.raises(ShortVError, match="another run writes"):
        results(output)
    one.delete()
    two.add("d", "lc", VALUES)
    assert set(results_of_another_process(output)) == {("d", "lc")}


def results_of_another_process(output: Path) -> dict[tuple[str, str], Any]:
    return results(output, process=1).values


def add_and_fail(results: PartialResults, error: BaseException) -> None:
    with results.kept():
        results.add("c", "lc", VALUES)
        raise error


def test_an_exception_says_what_is_kept_and_lets_another_run_go_on(output: Path) -> None:
    one = results(output)
    for error in (KeyboardInterrupt(), ShortVError("the disk is full.")):
        with pytest.raises(type(error)):
            add_and_fail(one, error)
        assert notes_of(error) == ["3 samples are kept, run the same command to go on"]
        results(output).add("d", "lc", VALUES)
    for nothing in (PartialResults(None, ""), results(output.with_name("other.json"))):
        error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt), nothing.kept():
            raise error
        assert notes_of(error) == []


def test_a_full_disk(output: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (lines_of(output)[0].stat().st_size + 10, hard))
    try:
        found = results(output)
        with pytest.raises(ShortVError, match=r"partial\.jsonl: File too large\.") as raised, found.kept():
            found.add("c", "lc", VALUES)
        assert notes_of(raised.value) == ["2 samples are kept, run the same command to go on"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = results(output)
    assert set(again.values) == {("a", "lc"), ("b", "lc")}
    again.add("c", "lc", VALUES)
    again.delete()

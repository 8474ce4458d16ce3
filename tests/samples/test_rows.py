"""Which rows a data set has, and what happens to those that are no samples."""

from __future__ import annotations

import csv
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from shortv_export.errors import ShortVError
from shortv_export.samples import tables
from shortv_export.samples.places import Folder
from shortv_export.samples.rows import DataSet
from shortv_export.samples.source import Source
from tests.support.sample_data import draw, movie, needs_av, parquet, png, refusal, write_rows

ODD_NAMES = (
    *("crash test.png", "steam train.png", "val_3.png", "test-0.png", "train.png", "validation.png", "dev.png"),
    *("train-00000-of-00002.png", "a[1].png", "b*.png", "c?.png", "{d}.png", "e#f.png", "g%20h.png", "i\nj.png"),
    *("模型.png", "e\u0301.png", "k l .png", "UPPER.PNG", "Mixed.JpEg", "~m.png", "-n.png", "o'p\".png", "q.tar.png"),
    *("train/r.png", "test/r.png", "val/deep/er/s.png", "data/t.png", "__u__/v.png", "w.png/x.png", "y=1,z=2.png"),
    *("metadata/2.png", "README.md.png", "config.json.png"),
)
HIDDEN = (".hidden.png", ".cache/a.png", "sub/.thumbnails/b.png", "sub/._c.png")


def fill(folder: Path, names: tuple[str, ...], suffixes: tuple[str, ...] = (".png", ".jpeg")) -> list[Path]:
    """Writes a picture of its own to each name; returns what a walk of the folder's own finds."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number + 1))
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if name.lower().endswith(suffixes) and name[0] != "."]
    return found


def all_of(data: Path, number: int) -> list[Any]:
    """The samples of a draw of all rows, of which there must be so many."""
    samples = list(draw(data, num_samples=number).samples)
    assert f"has {number} usable samples (0 unreadable)" in refusal(data, num_samples=number + 1)
    return samples


def test_all_pictures_of_a_folder_are_one_set(tmp_path: Path) -> None:
    found = fill(tmp_path, ODD_NAMES + HIDDEN)
    assert len(found) == len(ODD_NAMES)
    samples = all_of(tmp_path, len(found))
    assert len({sample.digest for sample in samples}) == len(found)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_all_rows_of_metadata_are_one_set(tmp_path: Path, suffix: str) -> None:
    """Of a metadata file in each folder, which names pictures beside it and below."""
    found = fill(tmp_path, ODD_NAMES)
    by_folder: dict[Path, list[dict[str, str]]] = {}
    for path in found:
        folder = tmp_path / path.relative_to(tmp_path).parts[0]
        folder = folder if folder.is_dir() else tmp_path
        row = {"file_name": path.relative_to(folder).as_posix(), "question": f"{path} ?", "answer": path.name}
        by_folder.setdefault(folder, []).append(row)
    assert len(by_folder) > 5
    for folder, rows in by_folder.items():
        path = folder / f"metadata.{suffix}"
        if suffix == "jsonl":
            write_rows(path, rows)
        elif suffix == "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_bytes(parquet({key: [row[key] for row in rows] for key in rows[0]}))
    samples = all_of(tmp_path, len(found))
    assert {sample.question for sample in samples} == {f"{path} ?" for path in found}
    numbers = {name: number for number, name in enumerate(ODD_NAMES, start=1)}
    for sample in samples:
        name = Path(sample.question.removesuffix(" ?")).relative_to(tmp_path).as_posix()
        assert sample.images[0].getpixel((0, 0))[1] == numbers[name]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_all_tables_of_a_folder_are_one_set(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a.bin").write_bytes(png(1))
    names = ("train/0", "test/0", "test", "crash test", "val_3", "data/train-00000-of-00002", "UPPER")
    for name in names:
        path = tmp_path / f"{name}.{suffix.upper() if name == 'UPPER' else suffix}"
        path.parent.mkdir(exist_ok=True)
        if suffix == "parquet":
            path.write_bytes(parquet({"image": ["a.bin", "a.bin"], "question": [f"{name} 0", f"{name} 1"]}))
        elif suffix == "csv":
            path.write_text(f"image,question\na.bin,{name} 0\na.bin,{name} 1\n", encoding="utf-8")
        else:
            write_rows(path, [{"image": "a.bin", "question": f"{name} {number}"} for number in range(2)])
    samples = all_of(tmp_path, 2 * len(names))
    assert {sample.question for sample in samples} == {f"{name} {number}" for name in names for number in range(2)}


@needs_av
def test_all_videos_of_a_folder_are_one_set(tmp_path: Path) -> None:
    for number, name in enumerate(("crash test.mkv", "val_3.mkv", "train/a.MKV")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        movie(tmp_path / "made.mkv", range(number, number + 1))
        (tmp_path / "made.mkv").rename(tmp_path / name)
    assert len(all_of(tmp_path, 3)) == 3


def test_links_within_a_folder(tmp_path: Path) -> None:
    """A file's link is a row; a folder's is not followed, so that links that loop end."""
    folder = tmp_path / "data"
    found = fill(folder, ("a.png", "sub/b.png"))
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "c.png").symlink_to("sub/b.png")
    (tmp_path / "linked").symlink_to(folder)
    assert {sample.images[0].getpixel((0, 0))[1] for sample in all_of(folder, len(found) + 1)} == {1, 2}
    assert len(all_of(tmp_path / "linked", 3)) == 3


def test_a_snapshot_of_the_hubs_cache(tmp_path: Path) -> None:
    """Its files are links to blobs beside it."""
    snapshot = tmp_path / "datasets--acme--a" / "snapshots" / ("0" * 40)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, content in (("a.png", png(1)), ("metadata.jsonl", b'{"file_name": "a.png", "question": "?"}\n')):
        (blobs / name).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert draw(snapshot, num_samples=1).samples[0].question == "?"


def test_local_data_has_no_splits_and_configurations(tmp_path: Path) -> None:
    fill(tmp_path, ("train/a.png", "test/b.png"))
    for key in ("split=test", "config=default", "revision=main", "images=a,image_id=b", "prompt=x,split=train"):
        message = refusal(f"{tmp_path}:{key}", num_samples=1)
        assert "where all rows are one set; leave out" in message
        assert "name the subfolder or the file" in message
    assert draw(tmp_path / "test", num_samples=1).samples[0].images[0].getpixel((0, 0))[1] == 2


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, ("a.png",))
    caplog.set_level(logging.INFO, logger="shortv_export")
    draw(tmp_path, num_samples=1)
    assert caplog.messages == []
    for name in ("questions.jsonl", "clip.mp4", "more.zip"):
        (tmp_path / name).write_bytes(b"")
    draw(tmp_path, num_samples=1)
    (message,) = caplog.messages
    assert "3 files beside the images are left out, such as 'clip.mp4'" in message


def test_two_metadata_files_of_one_folder(tmp_path: Path) -> None:
    fill(tmp_path, ("a.png",))
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "question": "?"}])
    (tmp_path / "metadata.csv").write_text("file_name,question\na.png,?\n", encoding="utf-8")
    assert "two metadata files in one folder (metadata.csv, metadata.jsonl); keep one" in refusal(tmp_path)


# Rows that are no samples

GOOD = 12


def table(tmp_path: Path, bad: list[Any], kind: str = "jsonl", good: int = GOOD, **columns: Any) -> Path:
    """A table of good rows, with bad ones among them; text stands for a line of its own."""
    (tmp_path / "a.png").write_bytes(png(1))
    rows = [{"image": "a.png", "question": f"{number} ?", "answer": "yes", **columns} for number in range(good)]
    rows[good // 2 : good // 2] = bad
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        keys = dict.fromkeys(key for row in rows for key in row)
        path.write_bytes(parquet({key: [row.get(key) for row in rows] for key in keys}))
    return path


BAD_ROWS = [
    {"image": "a.png", "question": None},
    {"image": "a.png", "question": ""},
    {"image": "a.png", "question": " \n"},
    {"image": "a.png", "question": 7},
    {"image": "a.png", "question": ["a", "b"]},
    {"image": "a.png", "question": {"text": "?"}},
    {"image": "a.png", "question": True},
    {"image": "a.png", "question": "\ud800"},
    {"image": "a.png"},
    {"question": "?"},
    {},
    {"image": None, "question": "?"},
    {"image": [], "question": "?"},
    {"image": 7, "question": "?"},
    {"image": {"bytes": 7, "path": None}, "question": "?"},
    {"image": {"bytes": None, "path": 7}, "question": "?"},
    {"image": {"bytes": "iVBOR", "path": None}, "question": "?"},
    {"image": {"url": "a.png"}, "question": "?"},
    {"image": ["a.png", None], "question": "?"},
    {"image": ["a.png", 7], "question": "?"},
    {"image": ["a.png"] * 1025, "question": "?"},
    {"image": "a.png", "question": "?", "answer": {"text": "yes"}},
    {"image": "a.png", "question": "?", "answer": [["yes"]]},
    {"image": "a.png", "question": "?", "answer": "\ud800"},
    *("[]", "7", "null", '"text"', "{", '{"image": "a.png"', "not JSON", '{"a": ' + "9" * 5000 + "}"),
    *("[" * 100_000, '{"a":' * 900 + "1" + "}" * 900),
]


def test_a_bad_row_ends_only_itself(tmp_path: Path) -> None:
    """Each alone among good ones, also if a single sample is asked for; and all of them together."""
    for bad in BAD_ROWS:
        data = table(tmp_path, [bad])
        result = draw(data, num_samples=GOOD)
        assert {sample.question for sample in result.samples} == {f"{number} ?" for number in range(GOOD)}, bad
        assert result.record["skipped"] <= 1
        assert f"has {GOOD} usable samples (1 unreadable)" in refusal(data, num_samples=GOOD + 1), bad
        assert all(len(draw(data, num_samples=1, seed=seed).samples) == 1 for seed in range(3))
    data = table(tmp_path, BAD_ROWS, good=4 * len(BAD_ROWS))
    result = draw(data, num_samples=4 * len(BAD_ROWS))
    assert len(result.samples) == 4 * len(BAD_ROWS)
    assert 0 < result.record["skipped"] <= len(BAD_ROWS)


@pytest.mark.parametrize("kind", ["json", "parquet", "metadata", "csv"])
def test_rows_without_a_question_in_other_formats(tmp_path: Path, kind: str) -> None:
    bad = [{"image": "a.png", "question": None}, {"image": "a.png", "question": ""}, {"image": None, "question": "?"}]
    if kind == "metadata":
        table(tmp_path, [])
        (tmp_path / "rows.jsonl").unlink()
        rows: list[dict[str, Any]] = [{"file_name": "a.png", "question": f"{number} ?"} for number in range(GOOD)]
        rows += [{"file_name": "a.png", "question": None}, {"file_name": None, "question": "?"}, {"question": "?"}]
        write_rows(tmp_path / "metadata.jsonl", rows)
        data = tmp_path
    elif kind == "csv":
        data = table(tmp_path, []).with_suffix(".csv")
        lines = ["image,question", *(f"a.png,{number} ?" for number in range(GOOD)), "a.png,", "a.png", ",?"]
        data.write_text("\n".join(lines), encoding="utf-8")
    else:
        data = table(tmp_path, bad, kind)
    assert len(draw(data, num_samples=GOOD).samples) == GOOD
    assert f"has {GOOD} usable samples (3 unreadable)" in refusal(data, num_samples=GOOD + 1)


@pytest.mark.parametrize(
    ("value", "found"), [(7, "int"), (["?"], "list"), ({"a": "?"}, "dict"), (True, "bool"), (1.5, "float")]
)
def test_a_wrong_column_of_questions_gets_advice(tmp_path: Path, value: Any, found: str) -> None:
    data = table(tmp_path, [], question=value)
    for number in (1, GOOD):
        message = refusal(data, num_samples=number)
        assert message == f"{data}: its column 'question' holds {found}, not text; name another column."


def test_a_column_without_any_question(tmp_path: Path) -> None:
    message = refusal(table(tmp_path, [], question=None), num_samples=4)
    assert "4 of 4 samples have no question; the last one: the row has no question" in message


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("a", "a"), (["a", "b"], "a"), (7, "7"), (0.5, "0.5"), (True, "True"), (None, None), ([], None), ([None], None)],
)
def test_answers(tmp_path: Path, answer: Any, expected: str | None) -> None:
    assert {each.answer for each in draw(table(tmp_path, [], answer=answer), num_samples=GOOD).samples} == {expected}
    assert "its column 'answer' holds dict, not text" in refusal(table(tmp_path, [], answer={"a": 1}), num_samples=1)


def test_groups(tmp_path: Path) -> None:
    bad = [
        {"image": "a.png", "question": "?", **group}
        for group in ({"type": None}, {}, {"type": ["a"]}, {"type": {"a": 1}}, {"type": "\ud800"})
    ]
    data = table(tmp_path, bad, good=20, type="one")
    result = draw(data, num_samples=20, group_by="type")
    assert {sample.group for sample in result.samples} == {"one"}
    assert "(5 unreadable)" in refusal(data, num_samples=21, group_by="type")
    assert draw(table(tmp_path, [], type=7), num_samples=1, group_by="type").samples[0].group == "7"
    assert "no column 'none' to group by" in refusal(data, num_samples=1, group_by="none")


def test_a_list_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every length of the parts, so that they end everywhere: in a name, a number, a character."""
    (tmp_path / "a.png").write_bytes(png(1))
    rows: list[Any] = [{"image": "a.png", "question": f'{number} é模 \\ "]}}'} for number in range(4)]
    data = tmp_path / "rows.json"
    odd = [12345, None, "text", [1, {"a": [2]}], -1.5e3, True]
    data.write_text(
        "\ufeff \n" + json.dumps([*rows[:2], *odd, *rows[2:]], ensure_ascii=False, indent=1), encoding="utf-8"
    )
    for length in (*range(6, 40), 1 << 20):
        monkeypatch.setattr(tables, "_CHUNK", length)
        with data.open("rb") as file:
            found = list(tables.TABLES["json"][".json"](file))
        assert [row for row in found if isinstance(row, dict)] == rows
        assert len(found) == len(rows) + len(odd)
    for broken in ("[", "[{}", '[{"a": 1}, {"b"', "[{},, x]", "[1, 2"):
        data.write_text(broken, encoding="utf-8")
        assert "its list is not valid JSON" in refusal(data)
    data.write_text("[]", encoding="utf-8")
    assert "it holds no samples" in refusal(data)


def test_types_that_differ_between_rows(tmp_path: Path) -> None:
    """Readers of whole columns fail over these."""
    rows = [{"image": "a.png", "question": "1 ?", "answer": answer} for answer in ("yes", 7, ["a"], None, True, 0.5)]
    data = table(tmp_path, rows, good=2)
    drawn = {sample.answer for sample in draw(data, num_samples=8).samples}
    assert drawn == {"yes", "7", "a", None, "True", "0.5"}


def test_columns_that_only_later_rows_have(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    write_rows(tmp_path / "rows.jsonl", [{"image": "a.png"}, {"image": "a.png", "question": "?"}])
    assert draw(tmp_path / "rows.jsonl", num_samples=1).samples[0].question == "?"


@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_few_samples_among_some_bad_ones(tmp_path: Path, number: int) -> None:
    """Three bad rows never end a draw, however few samples are asked for; bad ones among many are counted."""
    data = table(tmp_path, [{}] * 3, good=number)
    for seed in range(5):
        assert len(draw(data, num_samples=number, seed=seed).samples) == number
    data = table(tmp_path, [{}] * 20, good=number)
    assert any("samples have no readable image" in _outcome(data, number, seed) for seed in range(5))


def _outcome(data: Path, number: int, seed: int) -> str:
    try:
        return str(draw(data, num_samples=number, seed=seed).record["skipped"])
    except ShortVError as error:
        return str(error)


def test_the_user_is_told_what_was_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="shortv_export")
    bad = [{"image": f"gone{number}.png", "question": "?"} for number in range(3)]
    data = table(tmp_path, [*bad, {"image": "a.png", "question": None}], good=40)
    result = draw(data, num_samples=40)
    skipped = result.record["skipped"]
    (message,) = caplog.messages
    assert f"{skipped} of {40 + skipped} rows were skipped" in message
    assert "for this reason: it does not exist" in message
    message = refusal(data, num_samples=41)
    assert "has 40 usable samples (4 unreadable)" in message
    assert "The last unreadable one: " in message
    caplog.clear()
    draw(table(tmp_path, []), num_samples=GOOD)
    assert caplog.messages == []


def test_samples_that_the_caller_cannot_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are asked about one by one, and skipped and counted as unreadable ones are."""
    caplog.set_level(logging.INFO, logger="shortv_export")
    data = table(tmp_path, [], good=40)
    asked = []

    def usable(sample: Any) -> str | None:
        asked.append(sample.question)
        return "too odd" if sample.question in ("3 ?", "5 ?") else None

    result = draw(data, num_samples=38, usable=usable)
    assert {sample.question for sample in result.samples} == {f"{n} ?" for n in range(40)} - {"3 ?", "5 ?"}
    assert asked.count("0 ?") == 1
    assert 0 < result.record["skipped"] == len(asked) - 38 <= 2
    assert "for this reason: too odd" in caplog.messages[0]
    assert "samples cannot be used; the last one: no" in refusal(data, num_samples=8, usable=lambda sample: "no")
    # Samples that are set apart are not asked about.
    asked.clear()
    draw(data, num_samples=1, exclude=result.record["sample_digests"], allow_fewer=True, usable=lambda sample: None)
    assert "has 0 usable samples" in refusal(
        data, num_samples=1, exclude=draw(data, num_samples=40).record["sample_digests"], usable=usable
    )
    assert asked == []


# What is no file


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["a.png", "metadata.jsonl", "rows.parquet", "rows.jsonl", "folder"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop", "folder", "outside", "dangling"])
def test_what_is_no_regular_file_of_the_data(tmp_path: Path, place: str, kind: str) -> None:
    """As a picture, it is a bad row; as what names the rows, or as the data itself, it is refused in one line."""
    folder = tmp_path / "data"
    fill(folder, tuple(f"good{number}.png" for number in range(GOOD)))
    odd = folder / place
    outside = tmp_path / "outside"
    outside.write_bytes(png(3) if place == "a.png" else b'{"file_name": "good0.png", "question": "?"}\n')
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            if len(str(odd)) > 100:
                pytest.skip("the path of a socket is short")
            server.bind(str(odd))
    elif kind == "folder":
        odd.mkdir()
        if place == "folder":
            assert "holds no images" in refusal(odd)
            return
    else:
        odd.symlink_to({"device": "/dev/zero", "loop": odd.name, "outside": outside, "dangling": "gone"}[kind])
    data = odd if place in ("folder", "rows.parquet", "rows.jsonl") else folder
    if place == "a.png" or (place == "metadata.jsonl" and kind == "folder"):
        assert len(draw(data, num_samples=GOOD).samples) == GOOD
        if kind != "folder":
            assert f"has {GOOD} usable samples (1 unreadable)" in refusal(data, num_samples=GOOD + 1)
    elif (place, kind) == ("rows.jsonl", "outside"):  # the user named this link
        assert len(draw(f"{data}:image=file_name", num_samples=1).samples) == 1
    else:
        refusal(data, num_samples=1)
    if place.startswith("rows"):  # in a folder of tables
        alone = tmp_path / "alone"
        alone.mkdir()
        odd.rename(alone / place)
        refusal(alone, num_samples=1)


@pytest.mark.parametrize(
    "data",
    ["x" * 300, "a/" + "x" * 300, "x" * 5000, "~nobody", "~nobody/a", "a\0b", "\0", ":prompt=x", " ", "a\nb", "-"],
)
def test_names_that_are_none(data: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, ("a.png",))
    with pytest.raises(ShortVError) as caught:
        draw(data)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("start", "reason"), [(b'{"image": "', "a line of more than"), (b'[{"image": "', "an item that is too long")]
)
def test_a_table_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, reason: str) -> None:
    """It is refused before memory is full. The file is sparse, and larger than memory."""
    monkeypatch.setattr(tables, "_MOST_LINE", 1 << 24)
    data = tmp_path / "rows.jsonl"
    with data.open("wb") as file:
        file.write(start)
        file.truncate(1 << 40)
    assert reason in refusal(data)


def test_folders_of_names_that_are_sorted(tmp_path: Path) -> None:
    """So that the same data and seed give the same samples on every file system."""
    names = [path.relative_to(tmp_path).as_posix() for path in fill(tmp_path, ODD_NAMES)]
    found = [name for name in Folder(tmp_path).names() if name != "notes.txt"]
    assert found == sorted(names)
    assert DataSet.open(Source.parse(str(tmp_path))).layout.shards == found

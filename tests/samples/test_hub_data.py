"""Data sets on a loopback Hub: in a process of its own, because `datasets` reads HF_ENDPOINT once."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from shortv_export.loopback import LoopbackHub
from tests.support.sample_data import (
    EIGHT_OF_30,
    card,
    movie,
    needs_av,
    parquet,
    picture,
    png,
    probe,
)

NUMBER = 12


def test_hub(tmp_path: Path) -> None:
    cells = [{"bytes": png(index), "path": f"{index}.png"} for index in range(NUMBER)]
    questions = [f"what is {index} ?" for index in range(NUMBER)]
    gqa: dict[str, bytes | Path] = {
        "README.md": card(
            ("testdev_balanced_images", "testdev", "i.parquet"),
            ("testdev_balanced_instructions", "testdev", "q.parquet"),
        ),
        "i.parquet": parquet({"id": [f"n{index}" for index in range(NUMBER)], "image": cells}),
        "q.parquet": parquet(
            {"imageId": [f"n{index}" for index in range(NUMBER)], "question": questions, "answer": ["yes"] * NUMBER}
        ),
    }
    flickr: dict[str, bytes | Path] = {
        "README.md": card(("default", "test", "t.parquet")),
        "t.parquet": parquet({"image": cells, "caption": [["a", "b"]] * NUMBER, "img_id": list(range(NUMBER))}),
    }
    script: dict[str, bytes | Path] = {"script.py": b"raise SystemExit('ran')", "README.md": b"a script"}
    outside: dict[str, bytes | Path] = {
        "t.parquet": parquet({"image": [{"bytes": None, "path": str(tmp_path / "own.png")}], "question": ["?"]}),
        "README.md": card(("default", "test", "t.parquet")),
    }
    text: dict[str, bytes | Path] = {"data.jsonl": b'{"image": "own.png", "question": "?"}\n'}
    folder: dict[str, bytes | Path] = {f"{index:02d}.png": png(index) for index in range(NUMBER)}
    folder["metadata.jsonl"] = "".join(
        json.dumps({"file_name": f"{index:02d}.png", "question": question}) + "\n"
        for index, question in enumerate(questions)
    ).encode()
    picture(0).save(tmp_path / "own.png")
    with LoopbackHub() as hub:
        revision = hub.create_repo("datasets/lmms-lab/GQA", files=gqa)
        hub.create_repo("datasets/lmms-lab/flickr30k", files=flickr)
        for name, files in (("script", script), ("outside", outside), ("text", text), ("folder", folder)):
            hub.create_repo(f"datasets/acme/{name}", files=files)
        hub.create_repo("datasets/other/gated", files=flickr, gated=True)
        calls: list[dict[str, Any]] = [
            {"data": "paper", "num_samples": 9},
            {"data": "paper", "num_samples": 9},
            {"data": "lmms-lab/flickr30k", "num_samples": 2},
            {"data": "lmms-lab/GQA", "num_samples": 2},
            {"data": "acme/none"},
            {"data": "acme/script"},
            {"data": "acme/outside", "num_samples": 1},
            {"data": "acme/text", "num_samples": 1},
            {"data": "acme/folder", "num_samples": 3},
            {"data": "other/gated:prompt=?", "num_samples": 1},
            {"data": "lmms-lab/flickr30k:prompt=?,revision=v9"},
        ]
        outcomes = probe(hub, tmp_path / "home", *calls)
        assert hub.errors == []
        assert hub.token not in json.dumps(outcomes)
    paper, again, flickr_only, gqa_only, none, script_only, outside_only, text_only, images, gated, no_revision = (
        outcomes
    )
    assert paper == again
    samples = paper["samples"]
    assert len(samples) == 9
    for question, answer, green, _ in samples[:5]:
        assert (question, answer) == (f"what is {green} ?\nAnswer the question using a single word or phrase.", "yes")
    assert {question for question, *_ in samples[5:]} == {"Provide a one-sentence caption for the provided image."}
    sources = paper["record"]["sources"]
    assert [source["num_samples"] for source in sources] == [5, 4]
    assert (sources[0]["repo_id"], sources[0]["revision"]) == ("lmms-lab/GQA", revision)
    assert (sources[0]["config"], sources[0]["split"]) == ("testdev_balanced_instructions", "testdev")
    assert paper["record"]["data"] == "paper"

    assert "has no column 'question'; there are: image, caption, img_id." in flickr_only
    assert "testdev_balanced_instructions" in gqa_only
    assert "is not on the Hub, or is private" in none
    assert "acme/script cannot be read" in script_only
    assert "names a local file" in outside_only
    assert "holds text, not images" in text_only
    assert {f"what is {green} ?" == question for question, _, green, _ in images["samples"]} == {True}
    assert "other/gated" in gated
    assert "revision v9 has no such revision" in no_revision
    assert all(len(message.splitlines()) == 1 for message in outcomes if isinstance(message, str))


def test_frames_on_the_hub(tmp_path: Path) -> None:
    clip = [{"bytes": png(number), "path": None} for number in range(30)]
    columns = {"clip": [clip] * 3, "question": ["a ?", "b ?", "c ?"]}
    with LoopbackHub() as hub:
        files: dict[str, bytes | Path] = {"README.md": card(("default", "test", "t.parquet"))}
        hub.create_repo("datasets/acme/clips", files=files | {"t.parquet": parquet(columns)})
        (outcome,) = probe(hub, tmp_path / "home", {"data": "acme/clips:video=clip,frames=4,fps=2", "num_samples": 3})
        assert hub.errors == []
    assert {question for question, *_ in outcome["samples"]} == {"a ?", "b ?", "c ?"}
    assert [greens for _, _, *greens, _ in outcome["samples"]] == [[0, 7, 15, 22]] * 3
    assert outcome["record"]["num_videos"] == 3
    assert outcome["record"]["data"] == "acme/clips:video=clip,frames=4,fps=2"


@needs_av
def test_films_on_the_hub(tmp_path: Path) -> None:
    """As files of a repository that only its members may read, streamed; a film's path that is not one is refused."""
    movie(tmp_path / "a.mkv", range(30))
    films: dict[str, bytes | Path] = {
        "a.mkv": (tmp_path / "a.mkv").read_bytes(),
        "metadata.jsonl": b'{"video_file_name": "a.mkv", "question": "a ?"}\n',
    }
    outside: dict[str, bytes | Path] = {
        "t.parquet": parquet({"video": [{"bytes": None, "path": str(tmp_path / "a.mkv")}], "question": ["?"]}),
        "README.md": card(("default", "test", "t.parquet")),
    }
    with LoopbackHub() as hub:
        hub.create_repo("datasets/loopback/films", files=films, private=True)
        hub.create_repo("datasets/loopback/outside", files=outside)
        calls = [{"data": f"loopback/{name}", "num_samples": 1} for name in ("films", "outside")]
        found, refused = probe(hub, tmp_path / "home", *calls)
        (unknown,) = probe(hub, tmp_path / "stranger", calls[0], logged_in=False)
        assert hub.errors == []
    ((question, _, *greens, _),) = found["samples"]
    assert (question, greens) == ("a ?", EIGHT_OF_30)
    assert "is not on the Hub, or is private" in unknown
    assert "names a local file instead of holding its video" in refused


def test_hub_data_is_not_downloaded_whole(tmp_path: Path) -> None:
    rows = [{"image": [{"bytes": png(index), "path": None}] * 300, "question": ["?"] * 300} for index in range(40)]
    files: dict[str, bytes | Path] = {f"t-{index:02d}.parquet": parquet(columns) for index, columns in enumerate(rows)}
    with LoopbackHub() as hub:
        hub.create_repo("datasets/acme/large", files={**files, "README.md": card(("default", "test", "t-*.parquet"))})
        (outcome,) = probe(hub, tmp_path / "home", {"data": "acme/large", "num_samples": 4})
        assert hub.errors == []
        asked = {Path(request.path).name for request in hub.requests if request.method == "GET"}
    assert len(outcome["samples"]) == 4
    assert 1 <= len(asked & files.keys()) < 30


def test_formats_on_the_hub(tmp_path: Path) -> None:
    """Also rows of types that differ, and rows that are no samples."""
    import pyarrow as pa

    columns = {"image": [png(index) for index in range(NUMBER)], "question": [f"what is {n} ?" for n in range(NUMBER)]}
    arrow = io.BytesIO()
    with pa.ipc.new_stream(arrow, pa.table(columns).schema) as stream:
        stream.write_table(pa.table(columns))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as packed:
        for index in range(NUMBER):
            for suffix, content in (("png", png(index)), ("question.txt", f"what is {index} ?".encode())):
                member = tarfile.TarInfo(f"a/{index}.{suffix}")
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    rows = [{"file_name": f"{index:02d}.png", "question": f"what is {index} ?"} for index in range(NUMBER)]
    odd: list[Any] = [{"file_name": "00.png", "question": question} for question in (None, 7)]
    pictures: dict[str, bytes | Path] = {f"{index:02d}.png": png(index) for index in range(NUMBER)}
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, *odd]).encode() + b"{"
    table = "file_name,question\n" + "".join(f"{row['file_name']},{row['question']}\n" for row in rows) + "00.png,\n"
    ids = {"id": [str(index) for index in range(NUMBER)], "image": columns["image"]}
    questions: list[Any] = [{"key": str(index), "question": f"what is {index} ?"} for index in range(NUMBER)]
    questions += [{"key": [1], "question": "?"}, {"question": "?"}, {"key": "none", "question": "?"}]
    repositories: dict[str, dict[str, bytes | Path]] = {
        "arrow": {"data.arrow": arrow.getvalue()},
        "webdataset": {"data.tar": archive.getvalue()},
        "lines": pictures | {"metadata.jsonl": lines},
        "csv": pictures | {"metadata.csv": table.encode()},
        "pictures": {f"train/{name}": content for name, content in pictures.items()},
        "joined": {
            "images.parquet": parquet(ids),
            "questions.jsonl": "".join(json.dumps(row) + "\n" for row in questions).encode(),
            "README.md": card(("default", "train", "questions.jsonl"), ("images", "train", "images.parquet")),
        },
    }
    with LoopbackHub() as hub:
        for name, files in repositories.items():
            hub.create_repo(f"datasets/acme/{name}", files=files)
        options = {
            "webdataset": ":image=png,question=question.txt",
            "pictures": ":prompt=what ?",
            "joined": ":images=images,image_id=key",
        }
        calls = [{"data": f"acme/{name}{options.get(name, '')}", "num_samples": NUMBER} for name in repositories]
        found = dict(zip(repositories, probe(hub, tmp_path / "home", *calls), strict=True))
        assert hub.errors == []
    for name in ("arrow", "webdataset", "lines", "csv", "joined"):
        assert isinstance(found[name], dict), found[name]
        drawn = {(question, green) for question, _, green, _ in found[name]["samples"]}
        assert drawn == {(f"what is {index} ?", index) for index in range(NUMBER)}, name
    assert {green for _, _, green, _ in found["pictures"]["samples"]} == set(range(NUMBER))

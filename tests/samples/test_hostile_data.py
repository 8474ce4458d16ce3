"""Data that anybody may have made: it opens nothing but its own files, and ends nothing but its own rows."""

from __future__ import annotations

import csv
import http.server
import io
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.core
import pytest

from shortv_export.loopback import LoopbackHub
from shortv_export.samples.decode import Unusable, sample_of
from shortv_export.samples.repository import Repository
from shortv_export.samples.source import Source
from tests.support.sample_data import draw, parquet, picture, png, probe, refusal, write_rows

pytestmark = pytest.mark.timeout(120)


class Bait(http.server.ThreadingHTTPServer):
    """A server that somebody else could have, with a picture at every address. It counts requests."""

    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Bait

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(png(99))))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(png(99))

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def bait() -> Iterator[Bait]:
    server = Bait(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    assert server.requests == 0


class _Spy(fsspec.AbstractFileSystem):
    """A file system with a picture at every path."""

    protocol = "spy"

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        return io.BytesIO(png(99))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(png(99)), "type": "file"}

    def ls(self, path: str, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return [self.info(path)]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file system of fsspec is asked for, not even this one, which is registered."""
    asked: list[str] = []
    find = fsspec.core.get_filesystem_class

    def note(protocol: str) -> Any:
        asked.append(protocol)
        return find(protocol)

    fsspec.register_implementation("spy", _Spy, clobber=True)
    assert fsspec.open("spy://x").open().read() == png(99)
    for module in (sys.modules["fsspec.registry"], fsspec.core):  # `fsspec.registry` is a table in that module
        monkeypatch.setattr(module, "get_filesystem_class", note)
    yield
    assert asked == []


def evil_names(folder: Path, url: str) -> list[str]:
    """Names of pictures that a row must not open, though there is one at each. `folder` becomes the data's."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "out.png").write_bytes(png(98))
    folder.mkdir(exist_ok=True)
    (folder / "link.png").symlink_to(outside / "out.png")
    (folder / "linked").symlink_to(outside)
    references = json.dumps({"version": 1, "templates": {}, "refs": {"x": ["{{ 7 * 7 }}", 0, 1]}})
    (folder / "references.json").write_text(references, encoding="utf-8")
    return [
        *(
            f"{url}/x.png",
            f"HTTP{url[4:]}/x.png",
            "spy://x.png",
            "spy://x.png::spy://y.png",
            "simplecache::spy://x.png",
        ),
        *(f"reference://x::{folder}/references.json", "reference://x::references.json", f"zip://x.png::{url}/x.zip"),
        *("ssh://127.0.0.1/x.png", "memory://x.png", "hf://datasets/acme/other@main/x.png", "github://a:b@main/x.png"),
        *(
            f"file://{outside}/out.png",
            f"local://{outside}/out.png",
            f"data:image/png,{url}",
            "filecache::spy://x.png",
        ),
        *(f"{outside}/out.png", "../outside/out.png", "x/../../outside/out.png", f"./../{outside.name}/out.png"),
        *("link.png", "linked/out.png", "/dev/zero", "/proc/self/environ", "~/x.png", "", ".", "\0", "a\0.png"),
        *(f"{'x' * 5000}.png", "gone.png"),
    ]


def rows_of(names: list[str], good: list[str]) -> list[tuple[str, str]]:
    """Pairs of a name and a question."""
    return [*((name, f"evil {name!r}") for name in names), *((name, "good ?") for name in good)]


def write(folder: Path, way: str, pairs: list[tuple[str, str]]) -> Path:
    """Writes rows in one of the ways in which a row can name a picture; returns the data."""
    column, _, kind = way.partition(" in ")
    if column.endswith("s"):
        rows: list[dict[str, Any]] = [{column: ["good.png", name], "question": text} for name, text in pairs]
    elif kind.endswith("cells"):
        rows = [{column: {"bytes": None, "path": name}, "question": text} for name, text in pairs]
    else:
        rows = [{column: name, "question": text} for name, text in pairs]
    if "csv" in kind:
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [column, "question"])
            writer.writeheader()
            writer.writerows(rows)
        return folder
    if "parquet" in kind:
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        name = "metadata.parquet" if "metadata" in kind else "data.parquet"
        (folder / name).write_bytes(parquet(columns))
        return folder / name if name == "data.parquet" else folder
    write_rows(folder / ("metadata.jsonl" if "metadata" in kind else "data.jsonl"), rows)
    return folder if "metadata" in kind else folder / "data.jsonl"


@pytest.mark.parametrize(
    "way",
    [
        *("file_name in metadata", "file_names in metadata", "file_name in metadata.csv"),
        *("file_name in metadata.parquet", "file_names in metadata.parquet"),
        *("image in jsonl", "images in jsonl", "image in jsonl cells", "file_name in jsonl"),
        *("image in parquet", "images in parquet", "image in parquet cells"),
    ],
)
def test_a_row_names_files_of_its_own_data_only(tmp_path: Path, bait: Bait, spy: None, way: str) -> None:
    folder = tmp_path / "data"
    names = evil_names(folder, bait.url)
    if "csv" in way:  # has no null character
        names = [name for name in names if "\0" not in name]
    (folder / "good.png").write_bytes(png(1))
    good = 4 * len(names)
    data = write(folder, way, rows_of(names, ["good.png"] * good))
    result = draw(data, num_samples=good)
    assert {sample.question for sample in result.samples} == {"good ?"}
    pixels = {image.tobytes() for sample in result.samples for image in sample.images}
    assert pixels == {picture(1).tobytes()}
    assert 0 < result.record["skipped"] <= len(names)
    # All of them, one by one: nothing else was skipped, nothing was let in.
    write(folder, way, rows_of(names, []))
    message = refusal(data, num_samples=good)
    assert f"{len(names)} of {len(names)} samples have no readable image" in message
    for name in names:
        write(folder, way, rows_of([name], []))
        assert "no readable image" in refusal(data, num_samples=1)


@pytest.mark.parametrize("column", ["video_file_name", "video_file_names"])
def test_a_video_is_a_file_of_its_own_data(tmp_path: Path, bait: Bait, spy: None, column: str) -> None:
    folder = tmp_path / "data"
    names = evil_names(folder, bait.url)
    (folder / "good.png").write_bytes(png(1))
    data = write(folder, f"{column} in metadata", rows_of(names, []))
    message = refusal(data, num_samples=4 * len(names))
    assert f"{len(names)} of {len(names)} samples have no readable video" in message


# On the Hub


def test_rows_on_the_hub_name_files_of_their_own_repository(tmp_path: Path, bait: Bait) -> None:
    """Files are named as `datasets` names them: with the repository and its commit. Other names are not opened."""
    folder = tmp_path / "data"
    names = evil_names(folder, bait.url)
    good = 4 * len(names)
    metadata = "".join(
        json.dumps({"file_name": name, "question": text}) + "\n" for name, text in rows_of(names, ["sub/a.png"] * good)
    ).encode()
    several = b"".join(
        json.dumps({"file_names": ["sub/a.png", name], "question": "several ?"}).encode() + b"\n" for name in names
    )
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.write(png(5))
        file.truncate((128 << 20) + 1)
    files: dict[str, bytes | Path] = {"sub/a.png": png(7), "metadata.jsonl": metadata, "b.png": png(8)}
    with LoopbackHub() as hub:
        hub.create_repo("datasets/acme/pictures", files=files)
        hub.create_repo("datasets/acme/several", files={"sub/a.png": png(7), "metadata.jsonl": several})
        sized = b'{"file_name": "large.png", "question": "large ?"}\n' + b'{"file_name": "b.png", "question": "b ?"}\n'
        sized_files: dict[str, bytes | Path] = {"large.png": large, "b.png": png(8), "metadata.jsonl": sized}
        hub.create_repo("datasets/acme/sized", files=sized_files)
        calls = [
            {"data": "acme/pictures", "num_samples": good},
            {"data": "acme/several", "num_samples": good},
            {"data": "acme/sized", "num_samples": 1},
        ]
        pictures, several_found, sized_found = probe(hub, tmp_path / "home", *calls)
        fetched = [request.path for request in hub.requests if request.method == "GET"]
        assert hub.errors == []
    assert {(question, green) for question, _, green, _ in pictures["samples"]} == {("good ?", 7)}
    assert len(pictures["samples"]) == good
    assert 0 < pictures["record"]["skipped"] <= len(names)
    assert f"{len(names)} of {len(names)} samples have no readable image" in several_found
    assert [question for question, *_ in sized_found["samples"]] == ["b ?"]
    assert not any(path.endswith("large.png") for path in fetched)


def test_a_cell_names_a_file_of_its_repository_and_commit(hub: LoopbackHub, tmp_path: Path, bait: Bait) -> None:
    own = hub.create_repo("datasets/acme/own", files={"p/a.png": png(7)})
    other = hub.create_repo("datasets/acme/other", files={"a.png": png(9)})
    place, source = Repository("acme/own", own), Source.parse("acme/own:image=image,prompt=?")
    evil = [
        *(
            place.prefix + name
            for name in ("p/../p/a.png", f"p/a.png::{bait.url}", bait.url, "gone.png", "p", ".", "")
        ),
        *(f"hf://datasets/acme/own@{commit}/p/a.png" for commit in (other, "main", own[:7], own.upper())),
        *("hf://datasets/acme/own/p/a.png", f"hf://datasets/acme/other@{other}/a.png"),
        *(f"reference://x::{place.prefix}p/a.png", f" {place.prefix}p/a.png", f"{bait.url}/a.png", "p/a.png"),
    ]
    for name in evil:
        with pytest.raises(Unusable):
            sample_of({"image": {"bytes": None, "path": name}}, source, place)
    sample = sample_of({"image": {"bytes": None, "path": f"{place.prefix}p/a.png"}}, source, place)
    assert sample.images[0].tobytes() == picture(7).tobytes()


def test_a_card_takes_data_from_its_own_repository_only(tmp_path: Path, bait: Bait) -> None:
    """Neither the configuration asked for nor another one is resolved if any names something else."""
    table = tmp_path / "own.jsonl"
    write_rows(table, [{"image": "x", "question": "?"}])
    evil = [
        *(f"{bait.url}/t.parquet", f"zip://t.parquet::{bait.url}/x.zip", "reference://x::t.parquet"),
        *(str(table), f"file://{table}", f"file:{table}", f"data:,{bait.url}", "../other/t.parquet"),
        *("x/../../t.parquet", "memory://x.jsonl", "hf://datasets/acme/other/t.parquet", "t.parquet::memory://"),
    ]
    forms = [
        "data_files: {}",
        "data_files: [t.parquet, {}]",
        "data_files:\n  - split: train\n    path: {}",
        "data_files:\n  - split: train\n    path: [t.parquet, {}]",
        "data_dir: {}",
        "data_files: t.parquet\n- config_name: second\n  data_files: {}",
    ]
    texts = [form.format(json.dumps(evil[0])) for form in forms] + [forms[0].format(json.dumps(each)) for each in evil]
    cards = [f"configs:\n- config_name: first\n  {text}\n" for text in texts]
    files: dict[str, bytes | Path] = {"t.parquet": parquet({"image": [png(1)], "question": ["?"]})}
    with LoopbackHub() as hub:
        for number, card in enumerate(cards):
            hub.create_repo(f"datasets/acme/a{number}", files=files | {"README.md": f"---\n{card}---\n".encode()})
            hub.create_repo(f"datasets/acme/b{number}", files=files | {".huggingface.yaml": card.encode()})
        names = [f"{kind}{number}" for number in range(len(cards)) for kind in "ab"]
        outcomes = probe(
            hub, tmp_path / "home", *({"data": f"acme/{n}:config=first", "num_samples": 1} for n in names)
        )
        assert hub.errors == []
    for name, outcome in zip(names, outcomes, strict=True):
        assert f"the card of acme/{name} takes data from" in outcome
        assert len(outcome.splitlines()) == 1


def test_files_that_datasets_would_take_for_something_else(tmp_path: Path, bait: Bait) -> None:
    """A name of a file that is a chain of addresses, archives, scripts, and formats that are not read."""
    good: dict[str, bytes | Path] = {"a.png": png(1)}
    yaml = ".huggingface.yaml"
    levels = [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12)]
    laughs = "\n".join(["x0: &x0 [a]", *levels]).encode()
    levels = [f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    merges = "\n".join(["x0: &x0 {a: 1}", *levels]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", png(2))
        archive.writestr(f"x::{bait.url}/b.png", png(2))
    repositories: dict[str, dict[str, bytes | Path]] = {
        "chain": good | {"x::memory::y.png": png(2)},
        "packed": {"a.zip": packed.getvalue()},
        "lines": {"a.jsonl.zip": packed.getvalue()},
        "hidden": {"a.ndjson": packed.getvalue()},
        "script": good | {"script.py": b"raise SystemExit('ran')"},
        "text": {"a.txt": b"text"},
        "pickles": {"a.pkl": b"cos\nsystem\n(S'false'\ntR."},
        "laughs": good | {yaml: laughs},
        "merges": good | {yaml: merges},
        "bomb": good | {yaml: b"configs: &a [" + b"*a, " * 9 + b"*a]\n"},
        "deep": good | {yaml: b"configs: " + b"[" * 5000 + b"]" * 5000},
        "number": good | {yaml: b"x: " + b"9" * 900_000},
        "binary": good | {yaml: b"x: \xff\xfe"},
    }
    with LoopbackHub() as hub:
        for name, files in repositories.items():
            hub.create_repo(f"datasets/acme/{name}", files=files)
        calls = [{"data": f"acme/{name}:prompt=?", "num_samples": 1} for name in repositories]
        found = dict(zip(repositories, probe(hub, tmp_path / "home", *calls), strict=True))
        assert hub.errors == []
    assert "a name like an address" in found["chain"]
    assert "no archives" in found["packed"]
    assert "more than 1,000,000 values" in found["laughs"]
    assert "merges fields" in found["merges"]
    for name, message in found.items():
        assert isinstance(message, str), name
        assert len(message.splitlines()) == 1
        assert f"acme/{name}" in message

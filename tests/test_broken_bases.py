"""Bases whose files are broken in any way, given to every command that takes one: done, or one line.

``make broken-bases`` tries many hundreds and says how long the slowest refusal took and how much memory the largest.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shortv_export.base import worker as limits
from tests.support.broken import breakage
from tests.support.packages import write_questions
from tests.support.tiny_families import base_class, tiny_model
from tests.support.tiny_processors import PROCESSORS, build_tiny_base, missing, tiny_tokenizer

EXAMPLES = int(os.environ.get("SHORTV_BROKEN_BASES", 15))
FAMILIES = ("llava", "gemma3", "qwen2_5_vl")
COMMANDS = ("score", "package", "push", "evaluate")
SETTINGS = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits.SECONDS, "chat template", 2.0)
    monkeypatch.setattr(limits, "MEMORY", 1 << 30)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        name: (build_tiny_base if not missing(name) else build_without_processor)(folder / name, name)
        for name in FAMILIES
    }


def build_without_processor(folder: Path, name: str) -> Path:
    """A base whose processor needs a package that is not installed. All else of it is read first."""
    tiny_model(name).save_pretrained(folder)
    tiny_tokenizer(PROCESSORS[name]).save_pretrained(folder)
    processor = {"processor_class": f"{base_class(name).__name__.removesuffix('ForConditionalGeneration')}Processor"}
    (folder / "processor_config.json").write_text(json.dumps(processor), "utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def questions(photos: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "questions"
    return write_questions(folder, {"coffee": photos["coffee"]}, ["what is this ?"], (32, 32))


class Peak:
    """The most memory of this process and its children, and the time, while the context lasts."""

    def __enter__(self) -> Peak:
        self.memory, self.start, self.done = 0, time.perf_counter(), threading.Event()
        self.before = self._now()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watcher.join()
        self.seconds = time.perf_counter() - self.start

    def _now(self) -> int:
        total, process = 0, psutil.Process()
        for each in (process, *process.children(recursive=True)):
            try:
                total += each.memory_info().rss - (each.memory_info().shared if each != process else 0)
            except psutil.Error:
                continue
        return total

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self.memory = max(self.memory, self._now() - self.before)


class Tried:
    """What came of the commands that were run."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.slowest: tuple[float, str] = (0.0, "")
        self.largest: tuple[float, str] = (0.0, "")

    def add(self, status: int, peak: Peak, what: str) -> None:
        self.statuses.append(status)
        if status:
            self.slowest = max(self.slowest, (peak.seconds, what))
            self.largest = max(self.largest, (peak.memory / 2**20, what))

    def __str__(self) -> str:
        counts = {status: self.statuses.count(status) for status in sorted({*self.statuses})}
        return (
            f"\n{len(self.statuses)} commands, by exit status: {counts}; slowest refusal {self.slowest[0]:.1f} s "
            f"({self.slowest[1]}), largest {self.largest[0]:.0f} MiB ({self.largest[1]})"
        )


def command(name: str, base: Path, out: Path, questions: Path) -> list[Any]:
    drawn = ("--data", questions, "--num-samples", 1)
    return {
        "score": ["score", base, *drawn, "--output", out / "scores.json"],
        "package": ["package", base, out / "package", "--frozen-layers", "1"],
        "push": ["push", base, "loopback/model", "--dry-run", "--frozen-layers", "1", "--license", "mit"],
        "evaluate": [
            *("evaluate", base, *drawn, "--output", out / "evaluation.json"),
            *("--no-speed", "--max-new-tokens", 2, "--force-overlap"),
        ],
    }[name]


def check(status: int, out: str, err: str, left: Path) -> None:
    """Done, or one line and nothing left behind."""
    assert status in (0, 1, 2), err
    assert "Traceback" not in out + err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == bool(status), err
    assert not any(word in line for line in errors for word in ("internal error", "unexpected error", "a bug"))
    if status:
        assert not list(left.iterdir()), "something is left behind"


@pytest.mark.timeout(60 + 20 * EXAMPLES)
def test_generated(
    run: Any, hub: Any, bases: dict[str, Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = {name: tmp_path / f"{name}-package" for name in FAMILIES if not missing(name)}
    for name in packages:
        assert run("package", bases[name], packages[name], "--frozen-layers", "1")[0] == 0
    tried = Tried()

    def empty(name: str) -> Path:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        return tmp_path / name

    def attempt(name: str, base: Path, what: str) -> Path:
        out = empty("out")
        out.mkdir()
        with Peak() as peak:
            status, printed, err = run(*command(name, base, out, questions))
        tried.add(status, peak, f"{name}: {what}")
        check(status, printed, err, out)
        return out

    @SETTINGS
    @given(data=st.data(), family=st.sampled_from(FAMILIES), name=st.sampled_from(COMMANDS))
    def break_one(data: st.DataObject, family: str, name: str) -> None:
        name = name if family in packages else "push"
        whole = packages[family] if name == "evaluate" else bases[family]
        base = shutil.copytree(whole, empty("broken"))
        what = data.draw(breakage(base))
        out = attempt(name, base, what)
        if name == "package" and (out / "package").is_dir():  # of a base whose processor or weights may be broken
            attempt("evaluate", Path(shutil.move(out / "package", empty("made"))), what)

    break_one()
    with capsys.disabled():
        print(tried if EXAMPLES > 15 else "", end="")


# The kinds that had no bounds


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def endless_template(base: Path) -> None:
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    (base / "chat_template.jinja").write_text(loops, "utf-8")


def enormous_pictures(base: Path) -> None:
    size = {"size": {"shortest_edge": 10**6}, "crop_size": {"height": 10**6, "width": 10**6}}
    edit(base / "processor_config.json", lambda value: value["image_processor"].update(size))


def growing_tokenizer(base: Path) -> None:
    grow = {"type": "Replace", "pattern": {"Regex": "[A-Z]"}, "content": "USER" * 4}
    normalizer = {"type": "Sequence", "normalizers": [grow] * 20}
    edit(base / "tokenizer.json", lambda value: value.update(normalizer=normalizer))


def countless_layers(base: Path) -> None:
    edit(base / "config.json", lambda value: value["vision_config"].update(num_hidden_layers=10**8))


def many_layers(base: Path) -> None:
    edit(base / "config.json", lambda value: value["vision_config"].update(num_hidden_layers=400))


def endless_layers(base: Path) -> None:
    """Allowed in each part, but not to be built in the time there is."""
    many_layers(base)
    edit(base / "config.json", lambda value: value["text_config"].update(num_hidden_layers=4000))


def wide_layers(base: Path) -> None:
    edit(base / "config.json", lambda value: value["text_config"].update(intermediate_size=2**30))


def large_picture(base: Path) -> None:
    edit(base / "config.json", lambda value: value["vision_config"].update(image_size=10**6))


def long_list(base: Path) -> None:
    text = (base / "config.json").read_text("utf-8")
    (base / "config.json").write_text('{"x": [' + "1, " * (20 << 20) + "1], " + text[1:], "utf-8")


def large_integer_on_the_card(base: Path) -> None:
    (base / "README.md").write_text(f"---\nx: {'9' * 900_000}\n---\n", "utf-8")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("score", endless_template, "its chat template takes more than 2 seconds"),
        ("score", enormous_pictures, "its processor takes more than 1 GiB of memory"),
        ("score", growing_tokenizer, "its tokenizer takes more than 1 GiB of memory"),
        ("package", countless_layers, "its config.json has 'num_hidden_layers' 100000000; use at most 4096"),
        ("package", many_layers, "its config.json describes a model of"),
        ("push", endless_layers, "its config.json takes more than 1 seconds"),
        ("package", wide_layers, "its config.json describes a model of"),
        ("package", large_picture, "its config.json describes a model of"),
        ("package", long_list, "config.json is larger than 4,194,304 bytes"),
        ("package", large_integer_on_the_card, "names no licence"),
    ],
)
def test_what_had_no_bounds(
    run: Any,
    hub: Any,
    bases: dict[str, Path],
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[Path], None],
    says: str,
) -> None:
    base, out = shutil.copytree(bases["llava"], tmp_path / "broken"), tmp_path / "out"
    out.mkdir()
    change(base)
    monkeypatch.setitem(limits.SECONDS, "config.json", 1.0 if change is endless_layers else 60.0)
    status, printed, err = run(*command(name, base, out, questions))
    assert status == 1
    assert says in err
    check(status, printed, err, out)

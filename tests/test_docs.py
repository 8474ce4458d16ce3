"""README, docs/, CONTRIBUTING and the cards: commands parse, Python compiles, links resolve.

Commands of README and docs/ are also run, with a tiny base and a loopback Hub.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.packages import write_questions
from tests.support.typed import command_group, parse

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
CARDS = [*sorted((ROOT / "model_cards" / "examples").rglob("*.md")), ROOT / "shortv_export/demo/model/README.md"]

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks in one of these languages."""
    return [text for _, language, text in _BLOCK.findall(page.read_text("utf-8")) if language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks and its metadata."""
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text("utf-8"), flags=re.DOTALL)
    return _BLOCK.sub("", text)


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, split into words, without leading variables."""
    found = []
    for block in blocks(page, "console", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                words[0] = words[0].rpartition("/")[2]  # .venv/bin/pytest
                found.append(words)
    return found


def own_words(words: list[str]) -> list[str] | None:
    """The arguments for ``shortv-export``, if the command line starts it directly or through another tool."""
    if words[0] == "shortv-export":
        return words[1:]
    if words[0] in ("torchrun", "accelerate"):  # ... -m shortv_export score BASE
        return words[words.index("shortv_export") + 1 :]
    if words[:3] == ["optimum-cli", "export", "shortv"]:
        assert words[3] == "--model"
        return ["package", *words[4:]]
    return None


def command_options() -> dict[str, set[str]]:
    """The flags of each command."""
    group = command_group()
    every = {"": group, **group.commands}
    return {
        name: {"--help"}.union(*((*parameter.opts, *parameter.secondary_opts) for parameter in command.params))
        for name, command in every.items()
    }


def script_options(path: Path) -> set[str]:
    """The flags of a script, read from its source because importing it is slow."""
    return {*re.findall(r'add_argument\(\s*"(--[\w-]+)"', path.read_text("utf-8")), "--help"}


# Every page


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=name_of)
def test_commands_parse(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    extras = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    for words in commands(page):
        line = shlex.join(words)
        if (own := own_words(words)) is not None:
            try:
                parse(own)
            except Exception as error:  # from click or typer
                pytest.fail(f"{line}: {error or type(error).__name__}")
        elif words[0] == "make":
            assert all(f"\n{target}:" in makefile for target in words[1:]), line
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), line
        elif words[0] == "python":
            assert {word for word in words if word.startswith("--")} <= script_options(ROOT / words[1]), line
        elif words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words[1:] if "/" in word), line
        elif words[:2] == ["pip", "install"]:
            name, _, named = words[2].rstrip("]").partition("[")
            assert name == ".", line  # there is no index to install it from
            assert all(f"\n{extra} = [" in extras for extra in named.split(",") if named), line
        elif words[:2] == ["vllm", "serve"]:  # `tests/vllm/test_serve.py` runs it
            assert words[-1] == "--trust-remote-code", line
            assert words[3:-1:2] in ([], ["--revision"]), line
        else:
            pytest.fail(f"no check for this command: {line}")


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=name_of)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")
        for module, names in re.findall(r"^from (shortv_export[\w.]*) import (.+)$", block, re.MULTILINE):
            for name in names.split(", "):
                if not hasattr(importlib.import_module(module), name):
                    importlib.import_module(f"{module}.{name}")


def anchors(page: Path) -> set[str]:
    """The link anchors of a page's headings on GitHub and the Hub."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|mailto:", target):
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert found.is_relative_to(ROOT), target
            assert not anchor or anchor in anchors(found), target


# The project's own pages


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_inline_code_names_what_exists(page: Path) -> None:
    """Flags, files and make targets in sentences and tables exist."""
    scripts = {path: script_options(path) for path in (ROOT / "benchmarks").glob("*.py")}
    others = {"--tasks", "--model", "--model_args"}  # of lmms-eval
    known = {*others}.union(*command_options().values(), *scripts.values())
    for code in inline_code(page):
        assert {*re.findall(r"(?<![\w-])--[a-z][\w-]*", code)} <= known, code
        if found := re.match(r"(?:shortv_export|tests|modeling|model_cards|training|benchmarks|docs)/[\w./-]*$", code):
            assert (ROOT / found[0]).exists(), code
        if re.fullmatch(r"[\w/]+/\w+\.py", code):
            assert any((root / code).is_file() for root in (ROOT, ROOT / "shortv_export")), code
        if found := re.match(r"(?:python )?(benchmarks/\w+\.py)(.*)", code):
            assert {word for word in found[2].split() if word.startswith("--")} <= scripts[ROOT / found[1]], code
        if found := re.match(r"make ([\w-]+)$", code):
            assert f"\n{found[1]}:" in (ROOT / "Makefile").read_text("utf-8"), code
        if (words := code.split())[0] in ("score", "package", "verify", "evaluate", "compare", "push"):
            flags = {word for word in words if word.startswith("--")}
            assert flags <= command_options()[words[0]], code


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=name_of)
def test_no_paths_of_a_machine(page: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|scratch)\b", page.read_text("utf-8"))


def test_readme_is_short() -> None:
    assert 80 <= len(README.read_text("utf-8").splitlines()) <= 100


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paragraphs_are_short(page: Path) -> None:
    for paragraph in prose(page).split("\n\n"):
        if not paragraph.lstrip().startswith("|"):
            for item in re.split(r"^ *(?:-|\d+\.) ", paragraph, flags=re.MULTILINE):
                words = re.sub(r"\]\([^)]*\)", "]", item).split()
                assert len(words) <= 62, " ".join(words[:8])


def test_readme_tree() -> None:
    """Each line of the tree exists, and no room is missing."""
    (tree,) = blocks(README, "text")
    folder, shown = "", set()
    for line in tree.splitlines():
        indent, name, comment = re.fullmatch(r"( *)(\S+) +(\S.*)", line).groups()  # type: ignore[union-attr]
        if not indent:
            folder = name
        path = ROOT / (f"{folder}{name}" if indent else name)
        assert path.is_dir() if name.endswith("/") else path.is_file(), name
        assert comment
        shown.add(path.name)
    inside = (ROOT / "shortv_export").iterdir()
    rooms = {path.name for path in inside if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms <= shown


def test_supported_models_are_the_families() -> None:
    """The page lists each family by title and with the transformers release that it needs."""
    from shortv_export.base.families import FAMILIES

    text = (ROOT / "docs" / "supported-models.md").read_text("utf-8").replace("VideoLLaMA 3", "VideoLLaMA3")
    bases, versions = text.partition("## Refused")[::2]
    since = {
        title: release
        for titles, release in re.findall(r"^\| (.+) \| (\S+) and newer \|$", versions, re.MULTILINE)
        for title in titles.split(", ")
    }
    listed = [title for cell in re.findall(r"^\| \S.* \| (.+) \|$", bases, re.MULTILINE) for title in cell.split(", ")]
    assert sorted(listed) == sorted(family.title for family in FAMILIES.values())
    assert since.pop("all that are not named below") == "5.0"
    assert since == {family.title: family.since for family in FAMILIES.values() if family.since != "5.0"}
    assert f"\n{len(FAMILIES)} families" in README.read_text("utf-8")


# Running them


@pytest.fixture
def folder(tmp_path: Path, photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with samples in ``photos/`` and ``questions/``."""
    for name, question in (("photos", "what is in this picture ?"), ("questions", "is there a cat in this picture ?")):
        write_questions(tmp_path / name, photos, (question, f"{question} say it"), (96, 96))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Values for the tiny base, which has 4 layers; they are appended, and the last value of an option counts.
SMALLER = {
    "--evaluate": "2",
    "--flops-ratio": "0.9",
    "--frozen-layers": "1,3",
    "--num-frozen": "2",
    "--sweep": "0,2,3",
}


class Runner:
    """Runs commands of the pages in order, with their placeholders filled in."""

    def __init__(self, run: Any, hub: Any, base: Path) -> None:
        self.run = run
        self.values = {"BASE": str(base), "you/name": f"{hub.user}/name"}
        self.folders = 0

    def __call__(self, own: list[str], *more: str) -> str:
        command, *arguments = own
        # Each writes a new folder, which is OUT in later commands.
        if command == "package" or ("--out" in own and "--dry-run" not in more):
            self.folders += 1
            self.values["OUT"] = f"package-{self.folders}"
        more += tuple(word for flag, value in SMALLER.items() if flag in own for word in (flag, value))
        if command in ("score", "evaluate") or {"--max-kl", "--data"} & {*own}:
            more += ("--num-samples", "3")
        status, out, error = self.run(command, *(self.values.get(word, word) for word in arguments), *more)
        # A base that was a folder is not looked up, so `verify` ends with 3.
        assert status == (3 if command == "verify" else 0), f"{shlex.join(own)}: {out}{error}"
        return str(out)


@pytest.fixture
def go(run: Any, hub: Any, tiny_base: Any, folder: Path) -> Runner:
    return Runner(run, hub, tiny_base())


def test_the_readmes_commands_run(go: Runner, hub: Any, folder: Path, tiny_base: Any) -> None:
    """From scores to a published repository."""
    from huggingface_hub import HfApi

    demo, preset, *steps = [own for words in commands(README) if (own := own_words(words))]
    assert demo == ["demo"]  # tests/test_cli.py runs it
    assert [own[0] for own in steps] == ["score", "package", "verify", "evaluate", "compare", "push"]
    for own in steps:
        if own[0] != "compare":  # serves until it is stopped
            go(own)
    assert (folder / "evaluation.json").is_file()
    published = {path.name for path in (folder / go.values["OUT"]).iterdir()}
    assert {"shortv.json", "evaluation.json", "README.md", "model.safetensors"} <= published
    recipe = (folder / go.values["OUT"] / "shortv.json").read_bytes()
    tags = HfApi().list_repo_refs(go.values["you/name"]).tags
    assert [tag.name for tag in tags] == [f"shortv-{hashlib.sha256(recipe).hexdigest()[:12]}"]

    # The paper's lists are for 32 layers and more.
    base = tiny_base(num_layers=32)
    hub.create_repo("llava-hf/llava-1.5-7b-hf", files={path.name: path for path in base.iterdir()})
    go.values["you/llava-1.5-7b-shortv"] = f"{hub.user}/llava-1.5-7b-shortv"
    assert go(preset, "--dry-run").startswith("would ")


QUICKER = {"evaluate": ("--no-speed", "--max-new-tokens", "2"), "push": ("--dry-run",)}
# Commands that are not run here, and why.
ELSEWHERE = {
    "torchrun ": "starts processes; tests/measure runs it",
    "optimum-cli ": "tests/test_distribution.py runs it",
    "lmms-lab/": "a data set on the Hub",
    "verify ": "starts a process that loads two models",
    "compare ": "serves until it is stopped; tests/comparison asks it",
}


def test_the_pages_python_runs(go: Runner, folder: Path) -> None:
    """The example for notebooks, with the placeholders filled in."""
    (block,) = blocks(ROOT / "docs" / "README.md", "python")
    smaller = {"BASE": go.values["BASE"], "num_samples=40": "num_samples=3", "num_frozen=8": "num_frozen=2"}
    for old, new in smaller.items():
        assert old in block
        block = block.replace(old, new)
    logger = logging.getLogger("shortv_export")
    level = logger.level
    try:
        exec(block, {})
    finally:
        logger.setLevel(level)
    assert (folder / "OUT" / "shortv.json").is_file()


def test_the_pages_commands_run(go: Runner, hub: Any, folder: Path) -> None:
    """Those of docs/, with a base on the Hub, and with options that leave out slow parts."""
    hub.create_repo("loopback/base", files={path.name: path for path in Path(go.values["BASE"]).iterdir()})
    go.values["BASE"] = "loopback/base"
    go(["score", "BASE", "--data", "photos/"])
    go(["package", "BASE", "OUT", "--scores", "scores.json", "--num-frozen", "2"])
    shutil.copy(folder / go.values["OUT"] / "shortv.json", folder)
    ran = 0
    for page in sorted((ROOT / "docs").glob("*.md")):
        for words in commands(page):
            own = own_words(words)
            if own is not None and not any(text in " ".join(words) for text in ELSEWHERE):
                go(own, *QUICKER.get(own[0], ()))
                ran += 1
    assert ran >= 15

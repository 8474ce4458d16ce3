"""A package is made again from its recipe, byte for byte, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from shortv_export import cli, pipeline
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.files.json_file import json_text
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Budget
from shortv_export.packaging.inspection import inspect_package
from shortv_export.packaging.package import Package
from shortv_export.records.recipe import Recipe
from shortv_export.records.scores import Scores
from shortv_export.selection.budgets import select_layers
from shortv_export.selection.presets import given_selection
from tests.support.packages import make_package

BASE = "acme/base"
SCORES = Scores(
    (0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2, calibration={"data": "Fotos für alle"}
)
CARD = "---\nlicense: other\nlicense_name: für-alle\nlicense_link: LICENSE\nlanguage: [de, fr]\n---\n"


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def base(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(tiny_base(num_shards=2), tmp_path_factory.mktemp("rebuild") / "base")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "LICENSE").write_text("Für alle.\n", encoding="utf-8")
    return folder


@pytest.fixture
def hub(base: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.create_repo(BASE, files={path.name: path for path in base.iterdir()})
        yield hub
        assert hub.errors == []


def tool(home: Path, hub: LoopbackHub, *arguments: Any, **environment: str) -> None:
    home.mkdir(exist_ok=True)
    own = {"HF_HOME": str(home), "HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "shortv_export", *map(str, arguments)]
    result = subprocess.run(
        command, env={**own, **hub.env(), **environment}, cwd=home, capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("weights", ["copy", "reference"])
def test_on_another_machine(hub: LoopbackHub, base: Path, tmp_path: Path, weights: str) -> None:
    """Another process, another day, another locale, another hash seed, other settings of the libraries."""
    here, there = tmp_path / "here", tmp_path / "there"
    SCORES.save(tmp_path / "scores.json")
    options = ["--scores", tmp_path / "scores.json", "--num-frozen", 2, "--weights", weights]
    tool(here, hub, "package", BASE, here / "out", *options, PYTHONHASHSEED="1", LC_ALL="C.UTF-8", TZ="UTC")
    expected = hashes(here / "out")
    assert {"README.md", "layer_contribution.png", "shortv.json", "config.json"} < set(expected)
    assert ("model-00001-of-00002.safetensors" in expected) == (weights == "copy")

    # The base's main branch has moved on.
    hub.commit(BASE, {"README.md": b"---\nlicense: mit\n---\n", "generation_config.json": b"{}"})
    there.mkdir()
    (there / "matplotlibrc").write_text("font.size: 20\n")
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu", "COLUMNS": "40"}
    (there / "shortv.json").write_bytes((here / "out" / "shortv.json").read_bytes())
    recipe = there / "shortv.json"
    shutil.copytree(base, there / BASE, ignore=shutil.ignore_patterns("*.jinja"))  # not the recipe's base
    tool(there, hub, "package", "--recipe", recipe, there / "out", PYTHONHASHSEED="2", **odd)
    assert hashes(there / "out") == expected
    # From a folder with the same files, wherever they come from.
    tool(
        there, hub, "package", base, there / "again", "--recipe", recipe, PYTHONHASHSEED="3", HF_HUB_OFFLINE="1", **odd
    )
    assert hashes(there / "again") == expected


def test_by_the_cards_command(hub: LoopbackHub, base: Path, tmp_path: Path) -> None:
    """The card of a base without a licence says with which one its package was made."""
    files = {path.name: path for path in base.iterdir() if path.name != "README.md"}
    hub.create_repo("acme/unlicensed", files=files)
    options = ["--frozen-layers", "1,3", "--license", "apache-2.0"]
    tool(tmp_path / "here", hub, "package", "acme/unlicensed", tmp_path / "out", *options)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^shortv-export package (acme.*?)\n```", card, flags=re.MULTILINE | re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[words.index("--license") + 1] == "apache-2.0"
    tool(tmp_path / "there", hub, "package", *(str(tmp_path / "again") if word == "OUT" else word for word in words))
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")
    tool(tmp_path / "there", hub, "package", "--recipe", tmp_path / "out" / "shortv.json", tmp_path / "third")
    assert hashes(tmp_path / "third") == hashes(tmp_path / "out")


@pytest.fixture
def package(base: Path, tmp_path: Path) -> Path:
    resolved = resolve_base(base)
    selection = select_layers(SCORES, Budget(num_frozen=2))
    return make_package(resolved, tmp_path / "package", selection, scores=SCORES)


def test_from_a_folder(base: Path, package: Path, tmp_path: Path) -> None:
    pipeline.rebuild(package / "shortv.json", tmp_path / "again", base=str(base))
    assert hashes(tmp_path / "again") == hashes(package)
    # What is reformatted is the same recipe.
    (tmp_path / "dense.json").write_text(json.dumps(json.loads((package / "shortv.json").read_text("utf-8"))))
    pipeline.rebuild(tmp_path / "dense.json", tmp_path / "third", base=str(base))
    assert hashes(tmp_path / "third") == hashes(package)


def refusal(recipe: Path, out: Path, base: Path | None) -> str:
    before = sorted(out.parent.iterdir())
    with pytest.raises(ShortVError) as caught:
        pipeline.rebuild(recipe, out, base=str(base) if base else None)
    assert sorted(out.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda b: (b / "tokenizer.json").write_bytes((b / "tokenizer.json").read_bytes() + b"\n"),
            "its tokenizer.json differs",
        ),
        (
            lambda b: (b / "config.json").write_bytes((b / "config.json").read_bytes() + b"\n"),
            "its config.json differs",
        ),
        (lambda b: (b / "LICENSE").unlink(), "it has no LICENSE"),
        (lambda b: (b / "chat_template.jinja").unlink(), "it has no chat_template.jinja"),
    ],
)
def test_another_base(
    base: Path, package: Path, tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    damage(other)
    message = refusal(package / "shortv.json", tmp_path / "out", other)
    assert message == f"{other} is not the recipe's base: {reason}."


def test_a_folder_must_be_named(package: Path, tmp_path: Path) -> None:
    assert "was made from a folder; name that folder" in refusal(package / "shortv.json", tmp_path / "out", None)


def edit(package: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    recipe = json.loads((package / "shortv.json").read_text("utf-8"))
    change(recipe)
    path = package.parent / "edited.json"
    path.write_text(json_text(recipe), encoding="utf-8")
    return path


SHA = "0" * 64


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["code"].update({"shortv_layers.py": SHA}), "recipe's code would be different"),
        (lambda r: r["card"].update(template=SHA), "recipe's card would be different"),
        (lambda r: r["card"].update(license="mit\nevil: 1"), "licence, languages or base are not valid"),
        (lambda r: r["card"].update(license_link="javascript:alert(1)"), "licence, languages or base are not valid"),
        (lambda r: r["card"].update(language=["en\n---"]), "licence, languages or base are not valid"),
        (lambda r: r["card"].update(more=1), "licence, languages or base are not valid"),
        (lambda r: r["card"].pop("license"), "licence, languages or base are not valid"),
        (lambda r: r.update(frozen_layers=[0, 1]), "recipe's frozen_layers would be different"),
        (lambda r: r.update(num_layers=5), "recipe's num_layers would be different"),
        (lambda r: r["cost"].update(flops_ratio=0.1), "recipe's cost would be different"),
        (lambda r: r["scores"].update(more=1), "recipe's scores would be different"),
        (lambda r: r.update(figure=SHA), "figure differs when drawn here"),
        (
            lambda r: r["versions"].update(matplotlib="1.0") or r.update(figure=SHA),
            "install the libraries that drew it: matplotlib 1.0",
        ),
        (lambda r: r.update(family="blip"), "'blip'"),
        (lambda r: r.update(weights="reference"), "without saying where they are"),
        (
            lambda r: r["base"]["files"].update({"../evil": r["base"]["files"]["LICENSE"]}),
            "its base is missing, or not",
        ),
        (lambda r: r["base"].update(repo_id="../../etc"), "its base is missing, or not"),
        (lambda r: r["base"]["files"].pop("config.json", 0) or r["base"].pop("config_sha256"), "its base is missing"),
        (lambda r: r.update(format=2), "reads format 1"),
    ],
)
def test_edited_recipes(
    base: Path, package: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    assert reason in refusal(edit(package, change), tmp_path / "out", base)


def test_another_release(base: Path, package: Path, tmp_path: Path) -> None:
    """Which release to install is said; text from the recipe is one harmless line."""
    recipe = edit(package, lambda r: r["code"].clear() or r["versions"].update({"shortv-export": "0.0.1\nevil"}))
    assert "install the release that wrote it, shortv-export 0.0.1 evil." in refusal(recipe, tmp_path / "out", base)


def test_the_recipe_pins_the_card(base: Path, tmp_path: Path) -> None:
    """Whatever changes a byte of the package, the card included, changes the recipe, and so the tag."""
    resolved, seen = resolve_base(base), set()
    variants: list[dict[str, Any]] = [
        {},
        {"license": "mit"},
        {"scores": SCORES},
        {"scores": replace(SCORES, num_samples=3)},
    ]
    for number, options in enumerate(variants):
        out = make_package(resolved, tmp_path / str(number), given_selection([1, 3], 4), **options)
        seen.add(hashes(out)["shortv.json"])
        assert Recipe.load(out / "shortv.json").card["license"] == options.get("license", "other")
    assert len(seen) == len(variants)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "shortv.json"],
        ["out"],
        ["out", "--recipe", "shortv.json", "--preset", "paper"],
        ["out", "--recipe", "shortv.json", "--license", "mit"],
        ["out", "--recipe", "shortv.json", "--weights", "reference"],
        ["base", "out", "--recipe", "shortv.json", "--revision", "main"],
    ],
)
def test_wrong_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shortv-export", "package", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_local_base_that_was_derived(run: Any, base: Path, tmp_path: Path) -> None:
    """What it was derived from is on the card and in the recipe; without it, the recipe does not speak of it."""
    arguments = ("package", base, tmp_path / "out", "--frozen-layers", "1,3")
    status, _, err = run(*arguments, "--base-model", "acme/origin-7b")
    assert status == 0, err
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("acme/origin-7b", "finetune")
    assert "\n# origin-7b (derived) · ShortV-2\n" in card
    link = "[acme/origin-7b](https://huggingface.co/acme/origin-7b)"
    assert f"a local LLaVA-1.5 checkpoint (derived from {link}, as its publisher says) that computes" in card
    recipe = tmp_path / "out" / "shortv.json"
    assert Recipe.load(recipe).card["base_model"] == "acme/origin-7b"
    # Made again from the recipe, and by the command on the card.
    (command,) = re.findall(r"^shortv-export package (BASE.*?)\n```", card, flags=re.MULTILINE | re.DOTALL)[:1]
    words = [
        {"BASE": base, "OUT": tmp_path / "by-card"}.get(word, word)
        for word in shlex.split(command.replace("\\\n", ""))
    ]
    for again in (("package", base, tmp_path / "by-recipe", "--recipe", recipe), ("package", *words)):
        status, _, err = run(*again)
        assert status == 0, err
    assert hashes(tmp_path / "by-recipe") == hashes(tmp_path / "out") == hashes(tmp_path / "by-card")
    package = Package.open(tmp_path / "out")
    assert inspect_package(package, tmp_path / "copy", base=resolve_base(base), weights=True).failed is None

    for text in ("origin 7b", "", "a/b/c", "https://huggingface.co/acme/origin-7b", "../x", "acme/x](http://evil)"):
        status, out, err = run("package", base, tmp_path / "refused", *arguments[3:], "--base-model", text)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "is no Hub id" in err
    changed = json.loads(recipe.read_text("utf-8"))
    changed["card"]["base_model"] = "acme/x](http://evil)"
    recipe.write_text(json_text(changed), "utf-8")
    assert "is not what this tool writes" in run("package", base, tmp_path / "refused", "--recipe", recipe)[2]
    assert not (tmp_path / "refused").exists()

    assert run("package", base, tmp_path / "plain", *arguments[3:])[0] == 0
    assert "base_model" not in Recipe.load(tmp_path / "plain" / "shortv.json").card
    card = (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in card
    assert "\n# llava · ShortV-2\n" in card

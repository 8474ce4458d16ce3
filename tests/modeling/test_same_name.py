"""Several packages in folders of one name, in one process: each runs its own code."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from tests.support.definition import edit_config

FILES = ("configuration_shortv_llava", "modeling_shortv_llava", "shortv_layers", "shortv_weights")


@pytest.fixture
def package(tiny_base: Any, shortv_folder: Any, tmp_path: Path) -> Callable[..., Path]:
    """``package(place, mark, file)``: a package in place/model, with a variable added to one of its files."""
    original = shortv_folder(tiny_base(), [0, 2])

    def make(place: str, mark: str, file: str = "shortv_layers") -> Path:
        return put(mark, shutil.copytree(original, tmp_path / place / "model"), file)

    return make


def put(mark: str, folder: Path, file: str) -> Path:
    path = folder / f"{file}.py"
    path.write_text(f"{path.read_text(encoding='utf-8')}\nMARK = {mark!r}\n", encoding="utf-8")
    return folder


def mark_of(model: Any, file: str) -> str:
    """The variable in the file that the model's code was loaded from."""
    config, whole = (vars(sys.modules[type(thing).__module__]) for thing in (model.config, model))
    loaded = {
        "configuration_shortv_llava": config,
        "modeling_shortv_llava": whole,
        "shortv_layers": model.freeze_layers.__globals__,
        "shortv_weights": type(model).from_pretrained.__globals__,
    }[file]
    assert loaded["__name__"].endswith(f".{file}")
    return loaded["MARK"]


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
@pytest.mark.parametrize("file", FILES)
def test_each_runs_its_own_code(package, file, auto):
    folders = {mark: package(mark, mark, file) for mark in ("first", "second", "third")}
    models = []
    for mark in ("first", "second", "third", "first"):
        models.append(auto.from_pretrained(folders[mark], trust_remote_code=True))
        assert mark_of(models[-1], file) == mark
    if file.startswith("shortv"):  # the first are not changed by those that came later
        assert [mark_of(model, file) for model in models] == ["first", "second", "third", "first"]


def test_rewritten_in_place(package):
    folder = package("here", "old")
    old = AutoModel.from_pretrained(folder, trust_remote_code=True)
    put("new", folder, "shortv_layers")
    new = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert [mark_of(model, "shortv_layers") for model in (old, new)] == ["old", "new"]


def test_the_config_alone(package):
    for mark in ("first", "second"):
        config = AutoConfig.from_pretrained(package(mark, mark, FILES[0]), trust_remote_code=True)
        assert vars(sys.modules[type(config).__module__])["MARK"] == mark


def test_the_same_code_with_other_frozen_layers(package):
    folders = [package(place, "same") for place in ("first", "second")]
    edit_config(folders[1], frozen_layers=[1])
    models = [AutoModel.from_pretrained(folder, trust_remote_code=True) for folder in folders]
    assert [model.shortv_report()["frozen_layers"] for model in models] == [[0, 2], [1]]


def test_two_revisions_on_the_hub(package, hub):
    folder = package("here", "old")
    hub.create_repo("loopback/model", files={path.name: path.read_bytes() for path in folder.iterdir()})
    put("new", folder, "shortv_layers")
    hub.commit("loopback/model", {"shortv_layers.py": folder / "shortv_layers.py"})
    new, old, _ = (commit.sha for commit in hub.commits("loopback/model"))
    for revision, mark in ((new, "new"), (old, "old")):
        config = AutoConfig.from_pretrained("loopback/model", revision=revision, trust_remote_code=True)
        model = AutoModel.from_config(config, code_revision=revision, trust_remote_code=True)
        assert mark_of(model, "shortv_layers") == mark

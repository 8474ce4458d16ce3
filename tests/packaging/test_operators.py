"""Packages that freeze single operators: through the command line to a verified folder, its card, and made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export.base.cost import flops_ratio, layer_flops
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.options import Budget
from shortv_export.records.evaluation import Evaluation
from shortv_export.records.frozen import Frozen
from shortv_export.records.recipe import Recipe
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from shortv_export.selection.operators import select_operators
from tests.support.packages import make_package, write_questions
from tests.support.tiny_families import base_class, tiny_config

LISTS = {"frozen_layers": [0], "frozen_attention": [1], "frozen_ffn": [2, 3]}
OPTIONS = ("--frozen-layers", "0", "--frozen-attention", "1", "--frozen-ffn", "3,2")


@pytest.fixture
def base(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base(), tmp_path / "base")


def test_from_lists_to_a_verified_package(
    run: Any, base: Path, photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "out"
    status, out, err = run("package", base, folder, *OPTIONS, "--license", "mit")
    assert status == 0, err
    assert "1 of 4 layers frozen, and attention alone in 1, and FFN alone in 2" in out
    status, out, err = run("verify", folder, "--base", base)
    assert status == 0, err

    config, recipe = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "shortv.json"))
    for name, layers in LISTS.items():
        assert config[name] == recipe[name] == layers
    shape = resolve_base(base).layer_shapes[0]
    prompt = (shape, recipe["cost"]["text_tokens"], recipe["cost"]["visual_tokens"])
    flops = [
        layer_flops(*prompt, frozen_attention=attention, frozen_ffn=ffn)
        for attention, ffn in ((True, True), (True, False), (False, True), (False, True), (False, False))
    ]
    assert recipe["cost"]["flops_ratio"] == pytest.approx(sum(flops[:4]) / (4 * flops[4]))

    card = (folder / "README.md").read_text("utf-8")
    assert f"ShortV at {recipe['cost']['flops_ratio']:.0%} of the FLOPs" in card
    assert "attention in 2 and the feed-forward network (FFN) in 3 of its 4 decoder layers" in card
    for row in ("| attention and FFN | `0` |", "| attention alone | `1` |", "| FFN alone | `2, 3` |"):
        assert row in card
    assert "--frozen-layers 0 --frozen-attention 1 --frozen-ffn 2,3" in card.replace("\\\n  ", "")

    status, out, err = run("package", base, tmp_path / "again", "--recipe", folder / "shortv.json")
    assert status == 0, err
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)

    # Evaluated: its row has the lists, and the card is in step with it.
    questions = write_questions(tmp_path / "questions", photos, ["what is this ?"])
    options = ("--data", questions, "--num-samples", "2", "--no-speed", "--max-new-tokens", "2", "--baselines")
    status, out, err = run("evaluate", folder, *options, "--output", tmp_path / "evaluation.json", "--update-card")
    assert status == 0, err
    (row,) = [row for row in json.loads((folder / "evaluation.json").read_text("utf-8"))["rows"] if row["chosen"]]
    assert {name: row[name] for name in LISTS} == LISTS
    status, out, err = run("verify", folder, "--base", base)
    assert status == 0, err


def test_a_sweep_compares_operators_with_layers(
    run: Any, base: Path, photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = ((0.3, 0.1, 0.2, 0.0),)
    ablations: Any = {"attention": rows, "ffn": ((0.1, 0.3, 0.4, 0.0),)}
    scores = Scores(rows[0], (), (0.0,) * 4, 1, visual_samples=rows, ablations=ablations)
    selection = Selection((3,), 4, "operators", {"flops_ratio": 0.9}, frozen_ffn=(0,), evidence={"positions": "first"})
    folder = make_package(resolve_base(base), tmp_path / "out", selection, scores=scores, license="mit")
    questions = write_questions(tmp_path / "questions", photos, ["what is this ?"])
    options = (
        "--data",
        questions,
        "--num-samples",
        "2",
        "--max-new-tokens",
        "2",
        "--force-overlap",
        "--sweep",
        "0,2,4",
    )
    status, _, err = run("evaluate", folder, *options, "--output", tmp_path / "evaluation.json", "--update-card")
    assert status == 0, err
    sweep = Evaluation.load(folder / "evaluation.json").sweep
    assert sum(row.chosen for row in sweep) == 1
    frozen = [row.frozen for row in sweep]
    assert {Frozen(), Frozen((1, 3)), Frozen((0, 1, 2, 3)), Frozen((3,), (), (0,))} < {*frozen}
    budget = Budget(flops_ratio=flops_ratio(resolve_base(base).layer_shapes, (1, 3), 64, 16))
    assert select_operators(scores, budget, resolve_base(base).layer_shapes, 16).frozen in frozen
    card = (folder / "README.md").read_text("utf-8")
    assert "### Other numbers of frozen layers and operators" in card
    assert "Fidelity to the base against FLOPs" in card
    assert "--sweep 0,2,4" in card
    status, _, err = run("verify", folder, "--base", base)
    assert status == 0, err


def test_layers_alone_are_written_as_ever(base: Path, tmp_path: Path) -> None:
    folder = make_package(resolve_base(base), tmp_path / "out", Selection((1, 3), 4, "given"), license="mit")
    config, recipe = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "shortv.json"))
    for fields in (config, recipe, recipe["selection"]):
        assert not {"frozen_attention", "frozen_ffn"} & fields.keys()
    assert Recipe.load(folder / "shortv.json").frozen == Frozen((1, 3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--frozen-layers", "1", "--frozen-ffn", "1"), "frozen layer 1 is given twice"),
        (("--frozen-attention", "1,2", "--frozen-ffn", "2"), "frozen layer 2 is given twice"),
        (("--frozen-ffn", "4"), "frozen layer 4 is out of range"),
    ],
    ids=" ".join,
)
def test_bad_lists(run: Any, base: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    status, out, err = run("package", base, tmp_path / "out", *options, "--license", "mit")
    assert (status, out) == (1, "")
    assert words in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_linear_attention_is_not_skipped(base: Path, tmp_path: Path) -> None:
    config = tiny_config("qwen3_5")
    config.update({"image_seq_length": 144})  # so that no processor has to say it
    base_class("qwen3_5")._from_config(config).save_pretrained(base)
    shapes = resolve_base(base).layer_shapes
    linear = next(layer for layer, shape in enumerate(shapes) if not shape.query_size)
    full = next(layer for layer, shape in enumerate(shapes) if shape.query_size)
    given = Selection((), 4, "given", frozen_attention=tuple(sorted((linear, full))))
    with pytest.raises(ShortVError, match=f"layers {linear} of .* have linear attention or a convolution"):
        make_package(resolve_base(base), tmp_path / "out", given, license="mit")
    assert not (tmp_path / "out").exists()

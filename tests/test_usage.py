"""Options that would have no effect are refused by name, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from shortv_export import pipeline
from shortv_export.errors import UsageError
from shortv_export.options import (
    Budget,
    Choice,
    Comparison,
    Contents,
    Conversion,
    Option,
    Placement,
    Samples,
    Scoring,
    Target,
    options_of,
)
from shortv_export.usage import RULES

# What is typed: with these words of the message, the options after "error:" are refused. {tmp} holds nothing usable:
# nothing is looked at before.
CASES = (
    ("score x --max-samples 9", "--max-samples does not apply without --until-stable"),
    ("score x --max-samples 160", "--max-samples does not apply without --until-stable"),
    ("score x --no-operators --positions first", "--positions does not apply with --no-operators"),
    ("score x --stream --device-map auto", "--device-map does not apply with --stream"),
    ("score {tmp} --revision main", "--revision does not apply to a folder"),
    ("package {tmp} o --preset paper --revision main", "--revision does not apply to a folder"),
    ("package x o --preset paper --base-model a/b", "--base-model does not apply to x, which is no folder"),
    ("push x y --preset paper --base-model a/b", "--base-model does not apply to x, which is no folder"),
    ("package x o --recipe r --num-frozen 3", "--num-frozen does not apply with --recipe"),
    ("package x o --recipe r --license mit --seed 0", "--seed and --license do not apply with --recipe"),
    ("package x o --preset paper --frozen-ffn 1", "--frozen-ffn does not apply with --preset"),
    ("package x o --preset paper --scores s", "--scores does not apply with --preset"),
    ("package x o --preset paper --method lc --num-frozen 3", "--num-frozen and --method do not apply with --preset"),
    ("package x o --frozen-ffn 1 --max-kl 0.1", "--max-kl does not apply with --frozen-ffn"),
    ("package x o --frozen-layers 1 --granularity layer", "--granularity does not apply with --frozen-layers"),
    ("package x o --scores s --num-frozen 3 --granularity layer", "--granularity does not apply where only whole"),
    ("push x y --granularity operator", "--granularity does not apply where only whole layers are counted"),
    ("package x o --method random --scores s", "--scores does not apply with --method random"),
    ("package x o --scores s --num-frozen 3 --seed 1", "--seed does not apply where nothing is measured"),
    ("package x o --scores s --data d", "--data does not apply where nothing is measured"),
    ("package x o --method random --dtype auto", "--dtype does not apply where nothing is measured"),
    (
        "package x o --scores s --flops-ratio 0.6 --granularity layer --num-samples 40",
        "--num-samples does not apply where nothing is measured",
    ),
    ("verify {tmp} --revision main", "--revision does not apply to a folder"),
    ("evaluate {tmp} --revision main", "--revision does not apply to a folder"),
    ("evaluate x/y --update-card", "--update-card does not apply to x/y, which is no folder"),
    ("evaluate x --at 1+2 --no-speed", "--at does not apply with --no-speed"),
    ("push x y --create-pr --branch next", "--branch does not apply with --create-pr"),
    ("compare {tmp} --revision main", "--revision does not apply to a folder"),
    ("push x y --create-pr --space", "--space does not apply with --create-pr"),
    ("push x y --create-pr --tag v1", "--tag does not apply with --create-pr"),
    ("push {tmp} y --revision main", "--revision does not apply to a folder"),
    ("push x y --preset paper --frozen-layers 1", "--frozen-layers does not apply with --preset"),
    ("push x y --preset paper --flops-ratio 0.6", "--flops-ratio does not apply with --preset"),
    ("push x y --method random --scores s", "--scores does not apply with --method random"),
    ("push x y --scores s --until-stable", "--until-stable does not apply with --scores"),
    ("push x y --preset paper --no-operators", "--no-operators does not apply with --preset"),
    ("push x y --preset paper --stream", "--stream does not apply with --preset, as nothing is measured"),
    ("push x y --evaluate 3 --stream", "--evaluate does not apply with --stream"),
    ("push x y --max-kl 0.1 --stream", "--max-kl does not apply with --stream"),
    ("push x y --max-samples 3", "--max-samples does not apply without --until-stable"),
    ("push x y --flops-ratio 0.6 --no-operators --positions first", "--positions does not apply with --no-operators"),
    ("push x y --stream --device-map auto", "--device-map does not apply with --stream"),
    ("push x y --num-frozen 3 --operators", "--operators does not apply where only whole layers are counted"),
    ("push x y --preset paper --seed 0", "--seed does not apply with --preset"),
    ("push x y --frozen-layers 1 --data d --dtype auto", "--data and --dtype do not apply with --frozen-layers"),
    ("push x y --preset paper --evaluate 3 --num-samples 4", "--num-samples does not apply with --preset"),
)


@pytest.mark.parametrize(("typed", "words"), CASES)
def test_what_has_no_effect_is_refused(run: Any, tmp_path: Path, typed: str, words: str) -> None:
    status, out, err = run(*typed.format(tmp=tmp_path).split())
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {words}")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def typed_value(option: Option) -> list[str]:
    """A value that can be parsed."""
    if option.type is bool:
        return []
    if option.name == "max_memory":
        return ["cpu=1GB"]
    choices = [choice for kind in (option.type, *get_args(option.type)) for choice in get_args(kind)]
    return [next((choice for choice in choices if isinstance(choice, str)), "1")]


@pytest.mark.parametrize("option", [each for each in options_of(pipeline.push) if each.path[0] == "conversion"])
def test_a_finished_package_is_not_made(run: Any, tmp_path: Path, option: Option) -> None:
    """Each option of how a base becomes a package, one by one. The folder is not even a whole package."""
    (tmp_path / "shortv.json").touch()
    if option.name == "recipe":  # the command does not have it
        with pytest.raises(UsageError, match=r"^`recipe` does not apply to .*, which is a package already; leave it"):
            pipeline.push(str(tmp_path), "a/b", conversion=Conversion(contents=Contents(recipe=tmp_path)))
        return
    status, out, err = run("push", tmp_path, "a/b", option.flag, *typed_value(option))
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {option.flag} does not apply to {tmp_path}, which is a package")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: pipeline.score("x", budget=Budget(max_kl=0.1)),
            "`max_kl` does not apply to scores: .* `shortv-export",
        ),
        (
            lambda: pipeline.score("x", budget=Budget(flops_ratio=0.6)),
            "`flops_ratio` does not apply to scores without",
        ),
        (lambda: pipeline.score("x", scoring=Scoring(max_samples=9)), "`max_samples` does not apply without"),
        (
            lambda: pipeline.package("x", Path("o"), choice=Choice(preset="paper"), budget=Budget(num_frozen=1)),
            "`num_frozen` does not apply with `preset`",
        ),
        (
            lambda: pipeline.package("x", contents=Contents(recipe=Path("r")), samples=Samples(num_samples=3)),
            "`num_samples` does not apply with `recipe`",
        ),
        (
            lambda: pipeline.evaluate("x", comparison=Comparison(at=((1, 2),), speed=False)),
            "`at` does not apply with `no_speed`",
        ),
        (
            lambda: pipeline.push("x", "y", target=Target(create_pr=True, tag="v1")),
            "`tag` does not apply with `create_pr`",
        ),
        (
            lambda: pipeline.push(
                "x", "y", conversion=Conversion(choice=Choice(preset="paper"), placement=Placement("float16"))
            ),
            "`dtype` does not apply with `preset`",
        ),
    ],
)
def test_from_python(call: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{words}"):
        call()
    assert list(tmp_path.iterdir()) == []


def test_rules_name_options() -> None:
    for command, rules in RULES.items():
        known = {option.name for option in options_of(getattr(pipeline, command))}
        for rule in rules:
            assert {*rule.names} <= known, (command, rule)

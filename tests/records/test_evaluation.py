"""An evaluation file is what was written, or refused in one line that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shortv_export.errors import ShortVError
from shortv_export.records.evaluation import Accuracy, Estimate, Evaluation, Fidelity, Pair, Row, Speed

ESTIMATE = Estimate(0.5, 0.25, None)
ACCURACY = Accuracy(2, ESTIMATE, ESTIMATE, ESTIMATE, 1, 0, None)
PAIR = Pair(2.0, 1.0)
ROW = Row(
    name="2 of 4",
    frozen_layers=(1, 3),
    chosen=True,
    baseline=False,
    flops_ratio=0.6,
    fidelity=Fidelity(2, ESTIMATE, ESTIMATE, ESTIMATE, ESTIMATE),
    accuracy=ACCURACY,
    groups={"Katzen für alle": ACCURACY},
    speed=(Speed("data", 3, 4, 1, None, PAIR, PAIR, None, PAIR, PAIR, 1e-5, (2.0,), (1.0,), 2.0, 1.0, 2.1, 0.95),),
)
EVALUATION = Evaluation(
    package={"repo_id": None, "revision": None},
    recipe_sha256="0" * 64,
    base={"repo_id": "acme/base", "revision": None},
    num_layers=4,
    data={"data": "x", "seed": 1, "sources": [{"split": None}], "overlap": 0},
    max_new_tokens=32,
    dtype="bfloat16",
    device="cpu",
    statistics={"seed": 0, "level": 0.95},
    versions={"torch": "2.13.0"},
    notes=("A note.",),
    rows=(ROW, replace(ROW, frozen_layers=None, chosen=False, baseline=True, accuracy=None, groups={}, speed=())),
)


def test_what_is_written_is_read_and_written_again(tmp_path: Path) -> None:
    EVALUATION.save(tmp_path / "evaluation.json")
    read = Evaluation.load(tmp_path / "evaluation.json")
    assert read == EVALUATION
    assert read.chosen.speed[0].prefill_seconds == PAIR
    read.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "evaluation.json").read_bytes()


def rows(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["rows"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(more=1), "unknown field 'more'"),
        (lambda data: data.pop("device"), "'device': field required"),
        (lambda data: data.pop("format"), "of format 2; evaluate again with `shortv-export evaluate`."),
        (lambda data: data.update(format=1), "of format 2; evaluate again with `shortv-export evaluate`."),
        (lambda data: data.update(rows=[]), "with one chosen row"),
        (lambda data: data.update(num_layers=True), "'num_layers'"),
        (lambda data: data.update(versions={"torch": None}), "'versions.torch'"),
        (lambda data: data.update(notes="a"), "'notes'"),
        (rows(chosen="yes"), "'rows.0.chosen'"),
        (rows(chosen=False), "with one chosen row"),
        (rows(frozen_layers=[1.0]), "'rows.0.frozen_layers.0'"),
        (rows(flops_ratio="0.6"), "'rows.0.flops_ratio'"),
        (rows(flops_ratio=float("nan")), "a number that is not finite"),
        (rows(flops_ratio=10**400), "'rows.0.flops_ratio': input should be a"),
        (rows(speed={}), "'rows.0.speed'"),
        (rows(accuracy={"num_samples": 2}), "'rows.0.accuracy.base'"),
        (lambda data: data["rows"][0]["speed"][0].update(ratios=[]), "one ratio for each of its rounds ('repeats')"),
        (rows(**{"more\nlines": 1}), r"unknown field 'rows.0.more\nlines'"),
        (lambda data: data["rows"][0]["fidelity"].update(answer_kl=None), "'rows.0.fidelity.answer_kl'"),
        (lambda data: data["rows"][0]["speed"][0]["flops"].update(more=1), "'rows.0.speed.0.flops.more'"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    data = json.loads(json.dumps(EVALUATION.to_dict()))
    change(data)
    (tmp_path / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ShortVError) as caught:
        Evaluation.load(tmp_path / "evaluation.json")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'evaluation.json'} is not an evaluation")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("data", [None, 1, "x", [], {}])
def test_something_else(data: Any) -> None:
    with pytest.raises(ShortVError, match="is not an evaluation"):
        Evaluation.from_dict(data, "evaluation.json")

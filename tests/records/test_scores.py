"""Scores are finite numbers, of each kind one per layer; a damaged file is one line that names the field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortv_export.errors import ShortVError
from shortv_export.records.scores import Scores

SCORES = Scores(
    visual=(0.3, 1e-7),
    text=(1.5, 2.0),
    visual_standard_error=(0.1, 0.0),
    num_samples=2,
    visual_samples=((0.2, 1e-7), (0.4, 1e-7)),
    visual_cosine_distance=(0.5, 0.25),
    until_stable={"num_frozen": 1, "rounds": [1, 2], "stable": True},
    calibration={"data": "Fotos für alle", "seed": 0, "sources": [{"repo_id": None}]},
    base={"repo_id": "acme/base", "revision": None},
    versions={"torch": "2.13.0"},
)


@pytest.mark.parametrize(
    "rows", [((0.1, 0.2),), ((0.1,), (0.2,)), ((0.1, float("nan")), (0.1, 0.1)), (("a", "b"),) * 2]
)
def test_values_that_do_not_fit(rows: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ShortVError) as caught:
        Scores((0.1, 0.2), (0.0, 0.0), (0.0, 0.0), 2, rows)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_written_is_read_and_written_again(tmp_path: Path) -> None:
    SCORES.save(tmp_path / "scores.json")
    read = Scores.load(tmp_path / "scores.json")
    assert read == SCORES
    assert isinstance(read.visual_samples[0], tuple)
    read.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "scores.json").read_bytes()
    assert replace(read, num_samples=2) == SCORES


def test_old_files_lack_fields_and_later_ones_have_more() -> None:
    data = {"visual": [0.5], "text": [1.0], "visual_standard_error": [0.0], "num_samples": 1}
    assert Scores.from_dict(data | {"later": 1}, "scores.json") == Scores((0.5,), (1.0,), (0.0,), 1)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("visual", None, "'visual'"),
        ("visual", [], "per layer"),
        ("visual", [0.3], "per layer"),
        ("visual", [0.3, "0.2"], "'visual.1': input should be a valid number"),
        ("visual", [0.3, True], "'visual.1'"),
        ("visual", [0.3, 10**400], "'visual.1': input should be a"),
        ("visual", [0.3, float("nan")], "finite"),
        ("text", {"0": 1.0, "1": 1.0}, "'text'"),
        ("num_samples", "2", "'num_samples'"),
        ("num_samples", 2.0, "'num_samples'"),
        ("num_samples", 3, "'num_samples'"),
        ("visual_samples", [[0.2, 0.1], [0.4, None]], "'visual_samples.1.1'"),
        ("visual_cosine_distance", [0.5], "per layer"),
        ("divergence", 1, "'divergence'"),
        ("until_stable", [], "'until_stable'"),
        ("calibration", None, "'calibration'"),
        ("calibration", {"data": "\ud800"}, "Unicode"),
        ("versions", {"torch": 2}, "'versions.torch'"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_field(tmp_path: Path, field: str, value: Any, words: str) -> None:
    SCORES.save(tmp_path / "scores.json")
    data = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    (tmp_path / "scores.json").write_text(json.dumps(data | {field: value}), encoding="utf-8")
    with pytest.raises(ShortVError) as caught:
        Scores.load(tmp_path / "scores.json")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'scores.json'} is not a scores file: ")
    assert message.endswith("; write one with `shortv-export score`.")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("field", ["visual", "text", "visual_standard_error", "num_samples"])
def test_a_missing_field_is_named(field: str) -> None:
    data = {"visual": [0.5], "text": [1.0], "visual_standard_error": [0.0], "num_samples": 1}
    del data[field]
    with pytest.raises(ShortVError, match=f"its {field} is missing"):
        Scores.from_dict(data, "scores.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(data=json_values, field=st.sampled_from(sorted(Scores.__dataclass_fields__)))
def test_anything_is_scores_or_refused(data: Any, field: str) -> None:
    with pytest.raises(ShortVError):
        Scores.from_dict(data, "scores.json")
    good = {"visual": [0.5], "text": [1.0], "visual_standard_error": [0.0], "num_samples": 1}
    try:
        Scores.from_dict(good | {field: data}, "scores.json")
    except ShortVError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert len(str(error)) < 300  # noqa: PT017

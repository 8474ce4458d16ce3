"""Budgets, presets and given lists of frozen layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortv_export.base.cost import flops_ratio
from shortv_export.base.families import FAMILIES
from shortv_export.base.model import BaseModel
from shortv_export.base.shapes import LayerShape
from shortv_export.errors import ShortVError
from shortv_export.options import Budget, parse_layers
from shortv_export.records.frozen import Frozen
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from shortv_export.selection import operators
from shortv_export.selection.budgets import select_layers
from shortv_export.selection.presets import PRESETS, given_selection, preset_selection

LAYER = LayerShape(4096, 11008, 4096, 4096)
LLAVA_7B = (LAYER,) * 32

# arXiv 2504.00502v2: the number of ShortV layers of each model (Table 1), and of decoder layers.
TABLE_1 = {
    "llava-hf/llava-1.5-7b-hf": (19, 32),
    "llava-hf/llava-1.5-13b-hf": (24, 40),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (19, 32),
    "llava-hf/llava-v1.6-vicuna-13b-hf": (24, 40),
}


def scores(visual: list[float]) -> Scores:
    zeros = (0.0,) * len(visual)
    return Scores(tuple(visual), zeros, zeros, num_samples=1)


def refusal(function: Any, *args: Any, **kwargs: Any) -> str:
    """The message with which arguments are refused, which is one line."""
    with pytest.raises(ShortVError) as caught:
        function(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def base(repo_id: str | None, num_layers: int, model_type: str = "llava") -> BaseModel:
    config = {"model_type": model_type, "image_token_index": 1, "text_config": {"num_hidden_layers": num_layers}}
    return BaseModel(repo_id or "a folder", repo_id, None, Path("nowhere"), config, FAMILIES[model_type], ())


# By scores


def test_lowest_scores_first() -> None:
    selection = select_layers(scores([0.5, 0.1, 0.4, 0.0]), Budget(num_frozen=2), (LAYER,) * 4)
    assert selection.frozen_layers == (1, 3)
    assert (selection.num_layers, selection.method, selection.budget) == (4, "lc", {"num_frozen": 2})


def test_of_equal_scores_the_higher_layer_comes_first() -> None:
    assert select_layers(scores([0.1, 0.1, 0.2, 0.1]), Budget(num_frozen=2)).frozen_layers == (1, 3)


@pytest.mark.parametrize(("num_layers", "expected"), [(32, 19), (40, 24), (1, 1), (2, 1), (4, 2)])
def test_default_budget_is_the_papers(num_layers: int, expected: int) -> None:
    selection = select_layers(scores([float(layer) for layer in range(num_layers)]))
    assert selection.frozen_layers == tuple(range(expected))
    assert selection.budget == {"fraction": 0.6}


@given(visual=st.lists(st.floats(0, 10) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=40), data=st.data())
def test_nothing_left_out_scores_lower(visual: list[float], data: st.DataObject) -> None:
    num_frozen = data.draw(st.integers(1, len(visual)))
    frozen = select_layers(scores(visual), Budget(num_frozen=num_frozen)).frozen_layers
    assert list(frozen) == sorted(set(frozen))
    assert len(frozen) == num_frozen
    rest = set(range(len(visual))) - set(frozen)
    for layer in rest:
        assert all((visual[other], -other) < (visual[layer], -layer) for other in frozen)


@given(ratio=st.floats(0.26, 1), visual_tokens=st.integers(100, 3000))
def test_flops_ratio_freezes_as_few_layers_as_it_can(ratio: float, visual_tokens: int) -> None:
    least = flops_ratio(LLAVA_7B, range(32), 64, visual_tokens)
    arguments = (Budget(flops_ratio=ratio), LLAVA_7B, visual_tokens)
    if least > ratio:
        assert "out of reach" in refusal(select_layers, scores([1.0] * 32), *arguments)
        return
    selection = select_layers(scores([1.0] * 32), *arguments)
    count = len(selection.frozen_layers)
    assert flops_ratio(LLAVA_7B, selection.frozen_layers, 64, visual_tokens) <= ratio
    assert count == 1 or flops_ratio(LLAVA_7B, range(count - 1), 64, visual_tokens) > ratio
    assert selection.budget == {"flops_ratio": ratio, "text_tokens": 64, "visual_tokens": visual_tokens}


@given(
    visual=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    data=st.data(),
    ratio=st.floats(0.3, 1),
)
def test_flops_ratio_counts_the_very_layers_that_it_freezes(
    visual: list[float], data: st.DataObject, ratio: float
) -> None:
    """Layers of two kinds: it takes as many as the first ones of the order need, and no fewer would do."""
    kinds = st.sampled_from([LayerShape(64, 16, 64, 64), LayerShape(64, 4096, 64, 64)])
    shapes = data.draw(st.lists(kinds, min_size=len(visual), max_size=len(visual)))
    order = sorted(range(len(visual)), key=lambda layer: (visual[layer], -layer))
    enough = [count for count in range(1, len(visual) + 1) if flops_ratio(shapes, order[:count], 64, 576) <= ratio]
    if not enough:
        assert "out of reach" in refusal(select_layers, scores(visual), Budget(flops_ratio=ratio), shapes)
        return
    selection = select_layers(scores(visual), Budget(flops_ratio=ratio), shapes)
    assert selection.frozen_layers == tuple(sorted(order[: enough[0]]))


def test_flops_ratio_hangs_on_the_order_of_layers_that_differ() -> None:
    """Two wide layers of four make nearly all of the cost: one of them is worth more than both narrow ones."""
    narrow, wide = LayerShape(64, 16, 64, 64), LayerShape(64, 4096, 64, 64)
    budget = (Budget(flops_ratio=0.6), (wide, narrow, narrow, wide), 576)
    assert select_layers(scores([0.1, 0.3, 0.4, 0.2]), *budget).frozen_layers == (0,)
    assert select_layers(scores([0.4, 0.1, 0.2, 0.3]), *budget).frozen_layers == (1, 2, 3)


def test_the_reachable_ratio_that_is_named_can_be_reached() -> None:
    message = refusal(select_layers, scores([1.0] * 32), Budget(flops_ratio=0.1), LLAVA_7B)
    least = float(message.rsplit(" ", 1)[1].rstrip("."))
    assert len(select_layers(scores([1.0] * 32), Budget(flops_ratio=least), LLAVA_7B).frozen_layers) == 32


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.0001, float("nan"), float("inf")])
def test_flops_ratio_out_of_range(ratio: float) -> None:
    arguments = (Budget(flops_ratio=ratio), (LAYER,) * 4)
    assert "above 0 and up to 1" in refusal(select_layers, scores([1.0] * 4), *arguments)


@pytest.mark.parametrize("num_frozen", [0, -1, 5, True, 2.0])
def test_num_frozen_out_of_range(num_frozen: Any) -> None:
    assert "from 1 to 4" in refusal(select_layers, scores([1.0] * 4), Budget(num_frozen=num_frozen))


def test_two_budgets() -> None:
    budgets = {"num_frozen": 2, "flops_ratio": 0.5, "max_kl": 0.1}
    for left_out in budgets:
        two: dict[str, Any] = {name: value for name, value in budgets.items() if name != left_out}
        assert "give one of them" in refusal(select_layers, scores([1.0] * 4), Budget(**two), (LAYER,) * 4)


def test_budgets_need_their_measures() -> None:
    with pytest.raises(ValueError, match="shape"):
        select_layers(scores([1.0] * 4), Budget(flops_ratio=0.9))
    with pytest.raises(ValueError, match="measurement"):
        select_layers(scores([1.0] * 4), Budget(max_kl=0.9))


@given(
    divergences=st.lists(st.floats(0, 10), min_size=1, max_size=40).map(sorted),
    max_kl=st.floats(0, 10),
    seed=st.integers(0, 5),
)
def test_largest_number_within_a_divergence(divergences: list[float], max_kl: float, seed: int) -> None:
    layers = len(divergences)
    visual = [float((7 * layer + seed) % layers) for layer in range(layers)]
    asked: list[list[int]] = []

    def measure(frozen: Frozen) -> tuple[float, float]:
        assert not frozen.operators
        asked.append(list(frozen.layers))
        return divergences[len(frozen.layers) - 1], 0.5

    largest = max((k for k in range(1, layers + 1) if divergences[k - 1] <= max_kl), default=0)
    budget = Budget(max_kl=max_kl)
    if not largest:
        assert "out of reach" in refusal(select_layers, scores(visual), budget, measure=measure)
        return
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(operators.logger, "info", lambda text, *values: lines.append(text % values))
        selection = select_layers(scores(visual), budget, seed=seed, measure=measure)
    assert selection == replace(
        select_layers(scores(visual), Budget(num_frozen=largest)), budget=selection.budget, evidence=selection.evidence
    )
    assert selection.budget == {"max_kl": max_kl, "seed": seed}
    probes = selection.evidence["probes"]
    assert probes == [
        {"num_frozen": len(one), "kl": divergences[len(one) - 1], "standard_error": 0.5} for one in asked
    ]
    assert len(probes) == len(lines) == len({probe["num_frozen"] for probe in probes}) <= layers.bit_length()
    for layers_asked in asked:
        assert layers_asked == list(select_layers(scores(visual), Budget(num_frozen=len(layers_asked))).frozen_layers)


@pytest.mark.parametrize("max_kl", [-0.1, float("nan"), float("inf")])
def test_divergence_that_is_no_bound(max_kl: float) -> None:
    message = refusal(select_layers, scores([1.0] * 4), Budget(max_kl=max_kl), measure=lambda layers: (0.0, 0.0))
    assert "nats" in message


def test_lowest_cosine_distance_first() -> None:
    both = replace(scores([0.5, 0.1, 0.4, 0.0]), visual_cosine_distance=(0.1, 0.4, 0.3, 0.4))
    selection = select_layers(both, Budget(num_frozen=3), method="cosine")
    assert (selection.frozen_layers, selection.method) == ((0, 2, 3), "cosine")
    assert "no cosine distances" in refusal(select_layers, scores([1.0] * 4), method="cosine")
    assert "needs scores" in refusal(select_layers, None, Budget(), (LAYER,) * 4, method="cosine")


def test_random_layers() -> None:
    arguments = (None, Budget(num_frozen=3), (LAYER,) * 8)
    drawn = [select_layers(*arguments, method="random", seed=seed) for seed in range(500)]
    assert drawn[7] == select_layers(*arguments, method="random", seed=7)
    assert (drawn[7].method, drawn[7].budget) == ("random", {"num_frozen": 3, "seed": 7})
    frozen = [layer for selection in drawn for layer in selection.frozen_layers]
    assert all(len({*selection.frozen_layers}) == 3 for selection in drawn)
    # Each layer in 3 of 8 selections, that is 187.5 of 500, with a standard deviation of 10.8.
    assert all(140 < frozen.count(layer) < 235 for layer in range(8))


def test_unknown_method() -> None:
    assert "lc, cosine, random" in refusal(select_layers, scores([1.0] * 4), method="greedy")


def test_scores_of_another_model() -> None:
    select_layers(scores([1.0] * 4), Budget(), (LAYER,) * 4)
    assert "4 layers, but the model has 5" in refusal(select_layers, scores([1.0] * 4), Budget(), (LAYER,) * 5)


# By preset


def test_presets_are_consistent_with_table_1() -> None:
    assert PRESETS.keys() == TABLE_1.keys()
    for repo_id, layers in PRESETS.items():
        num_frozen, num_layers = TABLE_1[repo_id]
        assert len(layers) == len(set(layers)) == num_frozen
        assert set(layers) <= set(range(num_layers))
        # The last layer's score is 0 by definition, so that it leads every list.
        assert layers[0] == num_layers - 1


@pytest.mark.parametrize("repo_id", PRESETS)
def test_preset(repo_id: str) -> None:
    num_frozen, num_layers = TABLE_1[repo_id]
    selection = preset_selection(base(repo_id, num_layers))
    assert selection.frozen_layers == tuple(sorted(PRESETS[repo_id]))
    assert (selection.num_layers, selection.method) == (num_layers, "preset")
    assert selection.budget == {"num_frozen": num_frozen}
    assert selection.source == "arXiv 2504.00502v2, Table 8"


def test_preset_of_another_base() -> None:
    for other in (base(None, 32), base("acme/llava-1.5-7b-hf", 32)):
        message = refusal(preset_selection, other)
        assert all(repo_id in message for repo_id in PRESETS)


def test_preset_of_a_base_with_too_few_layers() -> None:
    assert "goes up to layer 31" in refusal(preset_selection, base("llava-hf/llava-1.5-7b-hf", 31))


# As given


@given(layers=st.lists(st.integers(0, 31), min_size=1, unique=True), space=st.sampled_from(["", " ", "  ", "\t"]))
def test_given_list(layers: list[int], space: str) -> None:
    text = f"{space},{space}".join(map(str, layers))
    for form in (parse_layers(text), parse_layers(f"{space}{text}{space}"), layers, tuple(layers)):
        selection = given_selection(form, 32)
        assert selection.frozen_layers == tuple(sorted(layers))
        assert (selection.num_layers, selection.method) == (32, "given")
        assert selection.budget == {"num_frozen": len(layers)}


def select_text(layers: Any, num_layers: int) -> Selection:
    """As the command line: text is parsed first."""
    return given_selection(parse_layers(layers) if isinstance(layers, str) else layers, num_layers)


@given(text=st.text(alphabet="0123456789,-+_. e", max_size=12) | st.text(max_size=12))
def test_any_text_is_a_sound_list_or_refused(text: str) -> None:
    try:
        frozen = select_text(text, 32).frozen_layers
    except ShortVError:
        refusal(select_text, text, 32)
        return
    assert list(frozen) == sorted({int(item.strip()) for item in text.split(",")})
    assert all(0 <= layer < 32 for layer in frozen)
    assert set(text) <= set("0123456789, \t\n\r\f\v-") | {character for character in text if character.isspace()}


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ([], "is empty"),
        ("1,,2", "is not a whole number"),
        ("1,", "is not a whole number"),
        ("1 2", "is not a whole number"),
        ("a", "is not a whole number"),
        ("1.0", "is not a whole number"),
        ("1_0", "is not a whole number"),
        ("１", "is not a whole number"),
        ("9" * 5000, "is not a whole number"),
        ([1.0], "is not a whole number"),
        ([True], "is not a whole number"),
        (["1"], "is not a whole number"),
        ([None], "is not a whole number"),
        ("32", "is out of range"),
        ("-1", "is out of range"),
        ([32], "is out of range"),
        ([-1], "is out of range"),
        ("3,1,3", "is given twice"),
        ([3, 1, 3], "is given twice"),
        ("3,03", "is given twice"),
    ],
)
def test_unusable_list(layers: Any, reason: str) -> None:
    message = refusal(select_text, layers, 32)
    assert reason in message
    assert len(message) < 150

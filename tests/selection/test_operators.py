"""Single operators: the cheapest per FLOP saved, no more than the budget takes; and the better of two choices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortv_export.base.cost import TEXT_TOKENS, flops_ratio
from shortv_export.base.shapes import LayerShape
from shortv_export.errors import ShortVError
from shortv_export.options import Budget, Choice
from shortv_export.records.frozen import Frozen
from shortv_export.records.recipe import Recipe
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from shortv_export.selection.choice import granularity_of
from shortv_export.selection.operators import better_of, select_operators
from tests.support.packages import write_questions

SHAPE = LayerShape(1024, 2816, 1024, 1024)
SHAPES = (SHAPE,) * 4
LINEAR = LayerShape(1024, 2816, 0, 0, mixer_flops=1000)


def scores_of(attention: Any, ffn: Any, visual: Any = None, **fields: Any) -> Scores:
    """Of one or more samples: rows of values per layer."""
    pairs = zip(attention, ffn, strict=True)
    visual = visual or tuple(tuple(one + two for one, two in zip(*rows, strict=True)) for rows in pairs)
    layers = len(visual[0])
    return Scores(
        visual=visual[0],
        text=(),
        visual_standard_error=(0.0,) * layers,
        num_samples=len(visual),
        visual_samples=visual,
        ablations={"attention": attention, "ffn": ffn},
        **fields,
    )


def ratio(frozen: Frozen, shapes: Any = SHAPES, visual: int = 144) -> float:
    return flops_ratio(shapes, **frozen.lists, text_tokens=TEXT_TOKENS, visual_tokens=visual)


def test_an_example() -> None:
    """Here an FFN saves about three times what attention saves; the divergences say which come first."""
    scores = scores_of(((0.9, 0.2, 0.9, 0.0),), ((9.0, 0.9, 0.3, 0.0),))
    order = [("attention", 3), ("ffn", 3), ("ffn", 2), ("attention", 1), ("ffn", 1), ("attention", 2)]
    frozen: set[tuple[str, int]] = set()
    for part in order:
        frozen.add(part)
        attention, ffn = ({layer for name, layer in frozen if name == kind} for kind in ("attention", "ffn"))
        wanted = Frozen.of_operators(attention, ffn)
        found = select_operators(scores, Budget(flops_ratio=ratio(wanted)), SHAPES, 144)
        assert found.frozen == wanted
        assert (found.method, found.budget["flops_ratio"]) == ("operators", ratio(wanted))


def test_what_became_superfluous_is_dropped() -> None:
    """Attention of layer 0 is cheap per FLOP, but then an FFN saves enough without it."""
    scores = scores_of(((0.1, 5.0, 5.0, 5.0),), ((0.5, 5.0, 5.0, 5.0),))
    budget = ratio(Frozen((), (), (0,)))
    assert select_operators(scores, Budget(flops_ratio=budget), SHAPES, 144).frozen == Frozen((), (), (0,))


values = st.floats(0, 1, allow_subnormal=False)
rows = st.tuples(values, values, values, values)


@given(
    attention=st.tuples(rows, rows),
    ffn=st.tuples(rows, rows),
    budget=st.floats(0.3, 1),
    shapes=st.tuples(*[st.sampled_from([SHAPE, LayerShape(1024, 512, 1024, 256), LINEAR])] * 4),
)
def test_a_budget_is_met_and_nothing_is_superfluous(attention: Any, ffn: Any, budget: float, shapes: Any) -> None:
    least = ratio(Frozen((0, 1, 2, 3)), shapes)
    scores = scores_of(attention, ffn)
    if budget < least:
        with pytest.raises(ShortVError, match="out of reach"):
            select_operators(scores, Budget(flops_ratio=budget), shapes, 144)
        return
    found = select_operators(scores, Budget(flops_ratio=budget), shapes, 144)
    assert ratio(found.frozen, shapes) <= budget + 1e-12
    assert not [layer for layer in found.frozen_attention if not shapes[layer].query_size], "linear attention stays"
    parts = {part for part in found.frozen.parts if part[0] == "ffn" or shapes[part[1]].query_size}
    for part in parts if len(parts) > 1 else ():
        attention_left, ffn_left = (
            {layer for name, layer in parts - {part} if name == kind} for kind in ("attention", "ffn")
        )
        assert ratio(Frozen.of_operators(attention_left, ffn_left), shapes) > budget - 1e-12
    often = found.evidence["operators"]
    assert len(often["attention_frequency"]) == len(often["ffn_frequency"]) == 4
    assert all(0 <= share <= 1 for share in often["attention_frequency"] + often["ffn_frequency"])


def test_how_often_an_operator_is_selected() -> None:
    """Two samples that contradict each other: a resample holds both, or one of them twice."""
    one, two = (0.0, 9.0, 9.0, 9.0), (9.0, 0.0, 9.0, 9.0)
    scores = scores_of(((9.0,) * 4,) * 2, (one, two))
    found = select_operators(scores, Budget(flops_ratio=ratio(Frozen((), (), (0,)))), SHAPES, 144, seed=3)
    often = found.evidence["operators"]
    assert often["seed"] == 3
    # Twice the first sample chooses layer 0, twice the second layer 1, both layer 1 (of equal ones the higher).
    assert often["ffn_frequency"][0] == pytest.approx(0.25, abs=0.05)
    assert often["ffn_frequency"][1] == pytest.approx(0.75, abs=0.05)


def test_answers_come_before_first_tokens() -> None:
    first = scores_of(((9.0,) * 4,), ((0.0, 9.0, 9.0, 9.0),))
    nine = ((9.0,) * 4,)
    answer = {"answer_visual": nine, "answer_attention": nine, "answer_ffn": ((9.0, 9.0, 0.0, 9.0),)}
    both = Scores(**{**vars(first), "ablations": {**first.ablations, **answer}})
    budget = Budget(flops_ratio=ratio(Frozen((), (), (0,))))
    for scores, layer, positions in ((first, 0, "first"), (both, 2, "answer")):
        found = select_operators(scores, budget, SHAPES, 144)
        assert (found.frozen, found.evidence["positions"]) == (Frozen((), (), (layer,)), positions)


def test_largest_number_within_a_divergence() -> None:
    scores = scores_of(((0.9, 0.2, 0.9, 0.0),), ((9.0, 0.9, 0.3, 0.0),))
    asked: list[Frozen] = []

    def measure(frozen: Frozen) -> tuple[float, float]:
        asked.append(frozen)
        return float(len(frozen.parts)), 0.5

    found = select_operators(scores, Budget(max_kl=3.0), SHAPES, 144, measure=measure)
    assert found.frozen == Frozen((3,), (), (2,))
    assert [probe["num_frozen"] for probe in found.evidence["probes"]] == [len(frozen.parts) for frozen in asked]
    with pytest.raises(ShortVError, match="a single operator has a KL divergence of 1"):
        select_operators(scores, Budget(max_kl=0.5), SHAPES, 144, measure=measure)


@pytest.mark.parametrize(("kl", "kept"), [((0.1, 0.2), "operators"), ((0.2, 0.1), "lc"), ((0.12, 0.1), "operators")])
def test_the_better_choice_is_kept_and_both_are_told(kl: tuple[float, float], kept: str) -> None:
    evidence = {"positions": "first"}
    operators = Selection((3,), 4, "operators", {"flops_ratio": 0.7}, frozen_ffn=(1, 2), evidence=evidence)
    layers = Selection((2, 3), 4, "lc", {"flops_ratio": 0.69}, evidence={"boundary": {"inside": 2}})
    answers = {operators.frozen: (kl[0], 0.01), layers.frozen: (kl[1], 0.02)}
    found = better_of(operators, layers, answers.__getitem__, ratio)
    assert (found.method, found.budget) == (kept, {"flops_ratio": 0.7})
    assert found.evidence["joint"] == {
        "operators": {"kl": kl[0], "standard_error": 0.01, "flops_ratio": ratio(operators.frozen)},
        "layers": {"kl": kl[1], "standard_error": 0.02, "flops_ratio": ratio(layers.frozen)},
    }


SCORED = Choice(scores=Path("scores.json"))
WITH = scores_of(((0.1,) * 4,), ((0.1,) * 4,))
WITHOUT = Scores((0.1,) * 4, (), (0.0,) * 4, 1)


@pytest.mark.parametrize(
    ("choice", "budget", "scores", "expected"),
    [
        (SCORED, Budget(flops_ratio=0.7), WITH, "operator"),
        (SCORED, Budget(max_kl=0.7), WITH, "operator"),
        (SCORED, Budget(flops_ratio=0.7), WITHOUT, "layer"),
        (SCORED, Budget(num_frozen=2), WITH, "layer"),
        (SCORED, Budget(), WITH, "layer"),
        (Choice(scores=SCORED.scores, granularity="layer"), Budget(flops_ratio=0.7), WITH, "layer"),
        (Choice(scores=SCORED.scores, granularity="operator"), Budget(flops_ratio=0.7), WITHOUT, "measure them again"),
        (Choice(scores=SCORED.scores, granularity="operator"), Budget(), WITH, "one of the budgets"),
        (Choice(scores=SCORED.scores, granularity="operator"), Budget(num_frozen=1), WITH, "one of the budgets"),
        (Choice(preset="paper", granularity="operator"), Budget(flops_ratio=0.7), None, "goes with `scores`"),
        (Choice(scores=SCORED.scores, method="cosine"), Budget(flops_ratio=0.7), WITH, "layer"),
    ],
)
def test_granularity(choice: Choice, budget: Budget, scores: Scores | None, expected: str) -> None:
    if expected in ("operator", "layer"):
        assert granularity_of(choice, budget, scores) == expected
    else:
        with pytest.raises(ShortVError, match=expected) as caught:
            granularity_of(choice, budget, scores)
        assert "\n" not in str(caught.value)


def test_from_scores_to_a_verified_package(
    run: Any, tiny_base: Callable[..., Path], photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default for a FLOPs ratio; its card and its recipe make it again."""
    monkeypatch.setenv("COLUMNS", "200")
    base, questions = tiny_base(), write_questions(tmp_path / "data", photos, ["what is this ?", "a cat ?", "where ?"])
    scores, folder = tmp_path / "scores.json", tmp_path / "out"
    data = ("--data", questions, "--num-samples", "2")
    status, _, err = run("score", base, *data, "--output", scores)
    assert status == 0, err
    assert Scores.load(scores).positions == "answer"
    options = ("--scores", scores, "--flops-ratio", "0.9", "--license", "mit", *data)
    status, out, err = run("package", base, folder, *options)
    assert status == 0, err
    assert "stability: " in err
    assert "operators: " in err
    assert "layers: " in err
    assert out.startswith(f"{folder}: ")
    recipe = Recipe.load(folder / "shortv.json")
    joint = recipe.selection["evidence"]["joint"]
    error = (joint["operators"]["standard_error"] ** 2 + joint["layers"]["standard_error"] ** 2) ** 0.5
    best = "layers" if joint["operators"]["kl"] - joint["layers"]["kl"] > error else "operators"
    assert recipe.selection["method"] == {"operators": "operators", "layers": "lc"}[best]
    assert recipe.cost["flops_ratio"] == pytest.approx(joint[best]["flops_ratio"])
    assert recipe.cost["flops_ratio"] <= 0.9
    card = (folder / "README.md").read_text("utf-8")
    assert f"| single operators | {100 * joint['operators']['flops_ratio']:.1f} % |" in card
    assert "--flops-ratio 0.9" in card
    assert "--granularity" not in card
    status, _, err = run("verify", folder, "--base", base)
    assert status == 0, err
    status, _, err = run("package", base, tmp_path / "again", "--recipe", folder / "shortv.json")
    assert status == 0, err
    assert (folder / "README.md").read_bytes() == (tmp_path / "again" / "README.md").read_bytes()

    # Samples that are not known cannot be held out: nothing is compared, and that is said.
    status, out, err = run("package", base, tmp_path / "alone", *options[:6])
    assert status == 0, err
    assert "not compared with whole layers on held-out samples: the scores were measured on local files" in err
    found = json.loads((tmp_path / "alone" / "shortv.json").read_text("utf-8"))["selection"]
    assert (found["method"], "joint" in found["evidence"]) == ("operators", False)
    status, _, err = run("package", base, tmp_path / "layers", *options[:6], "--granularity", "layer")
    assert status == 0, err
    card = (tmp_path / "layers" / "README.md").read_text("utf-8")
    assert "--granularity layer" in card

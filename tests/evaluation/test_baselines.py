"""The baselines against their definition: the stock model, whose later layers mask out the dropped tokens.

For the rows that stay, leaving rows out and masking their keys is the same. The stock model runs all rows through all
layers, token by token without a cache, and a 4-D mask hides the dropped tokens from every later layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from shortv_export import cli
from shortv_export.base.cost import dense_layer_flops, flops_ratio, frozen_layer_flops
from shortv_export.base.definition import text_decoder, visual_tokens
from shortv_export.base.resolve import resolve_base
from shortv_export.base.shapes import LayerShape
from shortv_export.errors import ShortVError
from shortv_export.evaluation.baselines import (
    FASTV_DROP,
    FASTV_LAYERS,
    fastv,
    paper_baselines,
    shortv_and_fastv,
    vtw,
)
from shortv_export.evaluation.changes import shortv
from shortv_export.evaluation.speed import measure_speed
from shortv_export.records.evaluation import Evaluation
from shortv_export.records.frozen import Frozen
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from shortv_export.selection.presets import PRESETS
from tests.modeling import test_families
from tests.support.definition import CACHE, oracle, relative_error
from tests.support.packages import make_package, write_questions
from tests.support.tiny_families import batch

pairs = test_families.pairs
made_pairs = test_families.made_pairs
LAYERS = 4
NEW_TOKENS = 4
WINDOWS = r"^FastV and VTW need a text model whose layers attend to all tokens; leave out `baselines`\.$"
PROMPT = "USER: what <image>\n is in the picture ? ASSISTANT:"


@contextmanager
def hidden_from_later_layers(stock: Any, after: int, dropped: torch.Tensor) -> Iterator[None]:
    """From layer number `after` on, no token attends to the dropped ones, ``(tokens,)`` bool of the prompt."""

    def hide(layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"].clone()
        mask[..., : len(dropped)].masked_fill_(dropped, torch.finfo(mask.dtype).min)
        return args, kwargs | {"attention_mask": mask}

    layers = text_decoder(stock).layers[after:]
    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def least_attended(stock: Any, inputs: Any, after: int, drop: float) -> torch.Tensor:
    """The tokens that FastV drops, ``(tokens,)`` bool, from the stock model's own attention weights."""
    visual = visual_tokens(stock.config, inputs["input_ids"])[0]
    with torch.no_grad():
        attentions = stock(**inputs, output_attentions=True).attentions
    weights = attentions[after - 1][0].mean(0)[-1]
    order = sorted(visual.nonzero()[:, 0].tolist(), key=lambda token: weights[token].item())
    dropped = torch.zeros_like(visual)
    dropped[order[: len(order) - round((1 - drop) * len(order))]] = True
    return dropped


def greedy_by_definition(pair: Any, inputs: Any, after: int, dropped: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Token ids of an answer, and the logits before each token."""
    ids, tokens, logits = inputs["input_ids"], [], []
    given = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    for _ in range(NEW_TOKENS):
        with torch.no_grad(), hidden_from_later_layers(pair.stock, after, dropped):
            logits.append(pair.stock(input_ids=ids, **given, use_cache=False).logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
        ids = torch.cat([ids, torch.tensor([tokens[-1:]])], 1)
    return tokens, torch.stack(logits)


def generate(pair: Any, change: Any, inputs: Any) -> Any:
    with torch.inference_mode(), change.apply(pair.shortv, inputs):
        return pair.shortv.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )


@pytest.fixture
def load(load_pair: Callable[..., Any]) -> Callable[..., Any]:
    """``load(...)``: a pair whose ShortV model freezes nothing, as an evaluation loads it."""

    def make(*arguments: Any, **options: Any) -> Any:
        pair = load_pair(*arguments, **options)
        pair.shortv.freeze_layers([])
        for model in (pair.stock, pair.shortv):
            model.generation_config.eos_token_id = None
            # An image token in an answer is text to ShortV, and an error to a stock model without a cache.
            model.lm_head.weight.data[model.config.image_token_id] = 0
        return pair

    return make


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("after", "drop", "frozen_layers"),
    [(2, 0.5, ()), (1, 0.75, ()), (2, 1.0, ()), (3, 1.0, ()), (2, 0.5, (0, 2)), (2, 0.5, (1, 3))],
)
@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_dropped_tokens_are_as_if_hidden(
    load: Callable[..., Any],
    model_type: str,
    after: int,
    drop: float,
    frozen_layers: tuple[int, ...],
    attention: str,
) -> None:
    pair = load(model_type)
    pair.stock.set_attn_implementation("eager")
    pair.shortv.set_attn_implementation({"text_config": attention})
    inputs = pair.inputs(PROMPT)
    with oracle(pair.stock, {"frozen_layers": frozen_layers}):
        dropped = least_attended(pair.stock, inputs, after, drop)
        tokens, logits = greedy_by_definition(pair, inputs, after, dropped)
        _, plain = greedy_by_definition(pair, inputs, after, torch.zeros_like(dropped))
    change = fastv(drop, after) if drop < 1 else vtw(after)
    if frozen_layers:
        change = shortv_and_fastv(Frozen(frozen_layers), LAYERS, drop, after)
    output = generate(pair, change, inputs)

    prompt = inputs["input_ids"].shape[1]
    assert output.sequences[0, prompt:].tolist() == tokens
    assert relative_error(torch.cat(output.logits), logits) < 1e-5
    assert relative_error(plain[0], logits[0]) > 1e-3, "the comparison needs differences"
    # The cache holds no keys of dropped tokens.
    lengths = [layer.keys.shape[2] for layer in output[CACHE].layers]
    whole = prompt + NEW_TOKENS - 1
    assert lengths == [whole] * after + [whole - int(dropped.sum())] * (LAYERS - after)
    # Afterwards the model and its settings are those of the base again.
    assert pair.shortv.config.frozen_layers == []
    assert pair.shortv.config.text_config._attn_implementation == attention
    with torch.no_grad():
        assert relative_error(pair.shortv(**inputs).logits, pair.stock(**inputs).logits) < 1e-5


@pytest.mark.parametrize(("name", "kind"), test_families.KINDS)
def test_every_family(pairs: Callable[..., Any], name: str, kind: str) -> None:
    pair = pairs(name)
    row = (5, 6, ..., 7, 8) if name in test_families.STACKED else (5, 6, ..., 7, 8, 9, ..., 10)
    inputs = batch(name, row, kind=kind)
    pair.shortv.freeze_layers([])
    if {*(getattr(pair.stock.config.text_config, "layer_types", None) or ())} - {"full_attention"}:
        with pytest.raises(ShortVError, match=WINDOWS), fastv(0.5).apply(pair.shortv, inputs):
            pass
        return
    pair.stock.set_attn_implementation("eager")
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "output_logits": True}
    dropped = least_attended(pair.stock, inputs, 2, 0.5)
    with hidden_from_later_layers(pair.stock, 2, dropped):
        expected = pair.stock.generate(**inputs, **options, return_dict_in_generate=True)
    with fastv(0.5).apply(pair.shortv, inputs):
        output = pair.shortv.generate(**inputs, **options, return_dict_in_generate=True)
    assert torch.equal(output.sequences, expected.sequences)
    assert relative_error(torch.cat(output.logits), torch.cat(expected.logits)) < 1e-5


def test_other_selections_are_frozen_layers(load: Callable[..., Any]) -> None:
    pair = load()
    inputs = pair.inputs(PROMPT)
    visual, text, cosine = (0.1, 0.2, 0.3, 0.4), (0.1,) * LAYERS, (0.4, 0.1, 0.3, 0.2)
    scores = Scores(visual, text, (0.0,) * LAYERS, 1, visual_cosine_distance=cosine)
    changes = paper_baselines(Frozen((0, 1)), (LayerShape(64, 128, 64, 64),) * LAYERS, 20, 16, scores)
    by_name = {change.name: change for change in changes}
    assert by_name["cosine 2 of 4"].frozen == Frozen((1, 3))
    for name in ("cosine 2 of 4", "random 2 of 4"):
        change = by_name[name]
        assert change.frozen is not None
        assert len(change.frozen.layers) == 2
        output = generate(pair, change, inputs)
        pair.shortv.freeze_layers(list(change.frozen.layers))
        expected = generate(pair, shortv(change.frozen, LAYERS), inputs)
        assert torch.equal(torch.cat(output.logits), torch.cat(expected.logits))
        pair.shortv.freeze_layers([])


# Prefill TFLOPs of FastV and VTW in the paper (Table 1).
PAPER = {
    "llava-hf/llava-1.5-7b-hf": ((LayerShape(4096, 11008, 4096, 4096),) * 32, 576, 4.9, 4.7),
    "llava-hf/llava-1.5-13b-hf": ((LayerShape(5120, 13824, 5120, 5120),) * 40, 576, 9.4, 9.1),
    "llava-hf/llava-v1.6-vicuna-7b-hf": ((LayerShape(4096, 11008, 4096, 4096),) * 32, 2880, 22.0, 21.8),
    "llava-hf/llava-v1.6-vicuna-13b-hf": ((LayerShape(5120, 13824, 5120, 5120),) * 40, 2880, 42.1, 41.7),
}


@pytest.mark.parametrize("model", PAPER)
def test_cost_is_the_papers(model: str) -> None:
    shapes, visual, fastv_teraflops, vtw_teraflops = PAPER[model]
    for change, teraflops in ((fastv(FASTV_DROP), fastv_teraflops), (vtw(len(shapes) // 2), vtw_teraflops)):
        assert change.flops is not None
        assert round(change.flops(shapes, 64, visual) / 1e12, 1) == teraflops


def test_cost_of_both() -> None:
    """Calculated by hand; layers 1 and 2 are frozen. The paper's 29 % (Table 5) does not follow from Eqs. 3 and 4."""
    shapes = (LayerShape(2, 3, 2, 2),) * 4
    dense, both = 2 * (10 + 40) * (4 * 2 + 3 * 3) * 2 + 4 * 50**2 * 2, 2 * 30 * 17 * 2 + 4 * 30**2 * 2
    frozen_before, frozen_after = (2 * 10 * 17 * 2 + 4 * v * 2**2 + 4 * 10 * (10 + v) * 2 for v in (40, 20))
    expected = dense + frozen_before + frozen_after + both
    assert shortv_and_fastv(Frozen((1, 2)), 4).flops_ratio(shapes, 10, 40) == pytest.approx(expected / (4 * dense))


def test_cost_is_that_of_each_layer() -> None:
    """Calculated by hand; layer 0 is wide, 1 and 2 are narrow, and one of them is frozen."""
    narrow, wide = LayerShape(2, 3, 2, 2), LayerShape(2, 30, 2, 2)

    def dense(m: int, v: int) -> int:
        return 2 * (10 + v) * (4 * 2 + 3 * m) * 2 + 4 * (10 + v) ** 2 * 2

    frozen_wide, frozen_narrow = (2 * 10 * (4 * 2 + 3 * m) * 2 + 4 * 40 * 2**2 + 4 * 10 * 50 * 2 for m in (30, 3))
    shapes, base = (wide, narrow, narrow), dense(30, 40) + 2 * dense(3, 40)
    assert vtw(1).flops_ratio(shapes, 10, 40) == (dense(30, 40) + 2 * dense(3, 0)) / base
    assert vtw(2).flops_ratio(shapes, 10, 40) == (dense(30, 40) + dense(3, 40) + dense(3, 0)) / base
    assert shortv(Frozen((0,)), 3).flops_ratio(shapes, 10, 40) == (frozen_wide + 2 * dense(3, 40)) / base
    assert shortv(Frozen((2,)), 3).flops_ratio(shapes, 10, 40) == (dense(30, 40) + dense(3, 40) + frozen_narrow) / base
    # Freezing the wide layer saves more than FastV or VTW can save after it; freezing a narrow one saves less.
    names = [change.name for change in paper_baselines(Frozen((0,)), shapes, 10, 40, None)]
    assert names == ["FastV K=2 R=50.0%", "VTW K=1", "1 of 3 + FastV K=2 R=50.0%", "random 1 of 3"]
    names = [change.name for change in paper_baselines(Frozen((2,)), shapes, 10, 40, None)]
    assert names[1].startswith("FastV K=2 R="), "at the cost of a narrow layer frozen"


@pytest.mark.parametrize("model", PAPER)
def test_baselines_cost_what_shortv_costs(model: str) -> None:
    shapes, visual, _, _ = PAPER[model]
    layers, prompt = len(shapes), (shapes, 64, visual)
    preset = PRESETS[model]
    budget = flops_ratio(shapes, preset, 64, visual)
    changes = paper_baselines(Frozen(preset), *prompt, None)
    ratios = [change.flops_ratio(*prompt) for change in changes]
    names = [change.name for change in changes]
    assert names[0] == f"FastV K={FASTV_LAYERS} R=50.0%"
    assert names[2] == f"VTW K={layers // 2}"
    assert not any("cosine" in name for name in names), "there are no distances to select by"
    # At most the budget; one step milder (0.1 % of the tokens, or one layer) would exceed it.
    fastv_ratio, vtw_ratio = ratios[1], ratios[3 if names[3].startswith("VTW") else 2]
    for ratio, step in ((fastv_ratio, 0.001 + 1 / visual), (vtw_ratio, 1 / layers)):
        assert ratio is not None
        assert budget - step < ratio <= budget
    assert ratios[-1] == budget  # random


def test_selections_of_whole_layers_cost_no_more_than_operators() -> None:
    shapes = (LayerShape(64, 128, 64, 64),) * 8
    frozen = Frozen((0, 1), (2, 3), (4, 5))
    scores = Scores((0.1,) * 8, (0.1,) * 8, (0.0,) * 8, 1, visual_cosine_distance=(0.1,) * 8)
    changes = {change.name: change for change in paper_baselines(frozen, shapes, 20, 144, scores)}
    budget = shortv(frozen, 8).flops_ratio(shapes, 20, 144)
    for method in ("layers", "random", "cosine"):
        ratio, milder = (changes[f"{method} 4 of 8"].flops_ratio(shapes, 20, 144), shortv(Frozen((0, 1, 2)), 8))
        assert ratio <= budget < milder.flops_ratio(shapes, 20, 144)
    assert "2 of 8 + 2 attention + 2 FFN + FastV K=2 R=50.0%" in changes


def test_nothing_reaches_the_cost() -> None:
    # Two dense layers out of three cost more than three frozen ones.
    changes = paper_baselines(Frozen((0, 1, 2)), (LayerShape(64, 128, 64, 64),) * 3, 20, 144, None)
    assert [change.name.split(" R=")[0] for change in changes] == [
        "FastV K=2",
        "VTW K=1",
        "3 of 3 + FastV K=2",
        "random 3 of 3",
    ]
    # A model of two layers has none after FastV's K = 2.
    changes = paper_baselines(Frozen((0,)), (LayerShape(64, 128, 64, 64),) * 2, 20, 144, None)
    assert [change.name for change in changes] == ["VTW K=1", "random 1 of 2"]


@pytest.mark.parametrize("frozen_layers", [(), (0, 2)])
def test_counted_operations_are_those_of_the_cost_model(
    load: Callable[..., Any], frozen_layers: tuple[int, ...]
) -> None:
    model = load().shortv
    change = shortv_and_fastv(Frozen(frozen_layers), LAYERS) if frozen_layers else fastv(0.25, 1)
    speed = measure_speed(model, change, tokens=(20, 144), repeats=1)
    shapes = (LayerShape(64, 128, 64, 64),) * LAYERS
    after, kept = (FASTV_LAYERS, 72) if frozen_layers else (1, 108)
    expected = sum(
        (frozen_layer_flops if layer in frozen_layers else dense_layer_flops)(
            shape, 20, 144 if layer < after else kept
        )
        for layer, shape in enumerate(shapes)
    )
    assert speed.expected_flops is not None
    assert speed.expected_flops.changed == expected
    assert speed.flops.changed == pytest.approx(expected, rel=0.02)
    assert speed.flops.changed < 0.9 * speed.flops.base


def test_a_prompt_without_images_is_left_alone(load: Callable[..., Any]) -> None:
    pair = load()
    inputs = pair.inputs("USER: is there a cat ? ASSISTANT:")
    expected = generate(pair, shortv(Frozen(), LAYERS), inputs)
    for change in (fastv(0.5), vtw(2), shortv_and_fastv(Frozen((0,)), LAYERS)):
        output = generate(pair, change, inputs)
        assert relative_error(torch.cat(output.logits), torch.cat(expected.logits)) < 1e-5


def test_several_samples_at_once_are_refused(load: Callable[..., Any]) -> None:
    pair = load()
    inputs = pair.inputs(PROMPT, PROMPT)
    with pytest.raises(ShortVError, match=r"^FastV and VTW run one sample at a time; give one\.$"):
        generate(pair, fastv(0.5), inputs)


def test_windows_are_refused(load: Callable[..., Any]) -> None:
    pair = load(text_model="mistral", text_config={"sliding_window": 8})
    inputs = pair.inputs(PROMPT)
    with pytest.raises(ShortVError, match=WINDOWS):
        generate(pair, vtw(2), inputs)


def test_evaluate_measures_them(
    tiny_base: Callable[..., Path], photos: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    two = {name: photos[name] for name in ("rocket", "coffee")}
    data = write_questions(tmp_path / "data", two, ["is there a cat ?"], (64, 64))
    visual, cosine = (0.1, 0.2, 0.3, 0.4), (0.4, 0.1, 0.3, 0.2)
    scores = Scores(visual, visual, (0.0,) * LAYERS, 1, visual_cosine_distance=cosine)
    package = make_package(
        resolve_base(tiny_base()), tmp_path / "package", Selection((0, 1), LAYERS, "lc"), scores=scores
    )

    output = tmp_path / "evaluation.json"
    arguments = ["evaluate", package, "--data", data, "--num-samples", 2, "--max-new-tokens", 2, "--force-overlap"]
    options = ["--sweep", "0", "--baselines", "--no-speed", "--output", output]
    monkeypatch.setattr(sys, "argv", ["shortv-export", *map(str, arguments + options)])
    with suppress(SystemExit):  # typer exits when a command is done
        cli.main()
    result = Evaluation.load(output)
    rows = result.rows
    assert any(note.startswith("FastV and VTW run in the ShortV paper's setting") for note in result.notes)
    assert not any("Cosine" in note for note in result.notes)
    fastv_half, fastv_equal, *_ = names = [row.name for row in rows if row.baseline]
    assert names[2:] == ["VTW K=2", "2 of 4 + FastV K=2 R=50.0%", "random 2 of 4", "cosine 2 of 4"]
    assert (fastv_half, fastv_equal[:11]) == ("FastV K=2 R=50.0%", "FastV K=2 R")
    assert [row.name for row in rows if not row.baseline] == ["0 of 4", "2 of 4"]
    by_name = {row.name: row for row in rows}
    assert by_name["2 of 4"].chosen
    assert by_name["0 of 4"].flops_ratio == 1.0
    budget = by_name["2 of 4"].flops_ratio
    assert budget is not None
    for name in ("random 2 of 4", "cosine 2 of 4"):
        assert by_name[name].flops_ratio == budget
    assert by_name["cosine 2 of 4"].frozen_layers == (1, 3)
    assert all(row.fidelity.first_token_kl.mean > 0 for row in rows if row.name != "0 of 4")
    assert "VTW K=2" in capsys.readouterr().out

"""Every family, tiny: the remote code against its definition, and the tool's measurements against plain loops."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from shortv_export.base import families
from shortv_export.base.definition import cached_states, frozen_by_definition, text_decoder, visual_tokens
from shortv_export.base.families import FAMILIES, REFUSED, TEXT_MODELS, family_of
from shortv_export.errors import ShortVError
from shortv_export.files.bundled import modeling_dir
from tests.support.definition import CACHE, TOLERANCE, relative_error
from tests.support.tiny_families import IMAGE, TINY, VIDEO, batch, broken, tiny_model

FROZEN = [0, 1, 3]  # where layers differ, some of each kind
KINDS = [(name, kind) for name, tiny in TINY.items() for kind in ("images", "videos") if getattr(tiny, kind)]
# Their pictures come stacked by batch entry, equally many for each.
STACKED = ("smolvlm", "idefics3", "idefics2")


@dataclass
class Pair:
    """A stock model and the ShortV model of the same weights, as its remote code loads them."""

    name: str
    stock: Any
    shortv: Any
    folder: Path

    def inputs(self, kind: str = "images") -> dict[str, Any]:
        if (self.name, kind) == ("gemma4", "videos"):
            needs_transformers("5.23")  # where clips came to lie one after the other
        rows = (
            [(5, 6, ..., 7, 8, 9, 10)] if self.name in STACKED else [(5, 6, ..., 7, 8, 9, 10, ..., 11), (11, ..., 12)]
        )
        return batch(self.name, *rows, kind=kind)

    def defined(self, frozen: Any, frozen_layers: Any = FROZEN) -> Any:
        """A context in which the stock model is what ShortV is defined to be, for inputs with these frozen rows."""
        return frozen_by_definition(text_decoder(self.stock).layers, frozen_layers, frozen)


def write_shortv(folder: Path, name: str, frozen_layers: list[int]) -> None:
    """Makes a stock checkpoint a ShortV one."""
    family = FAMILIES[name]
    for file in family.code:
        (folder / file).write_text(family.source(file), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"model_type": family.shortv_model_type, "architectures": [family.model_class], "auto_map": family.auto_map}
    (folder / "config.json").write_text(json.dumps(config | own | {"frozen_layers": frozen_layers}), encoding="utf-8")


def needs_transformers(least: str) -> None:
    from packaging.version import Version

    if Version(version("transformers")) < Version(least):
        pytest.skip(f"needs transformers {least}")


def load(folder: Path) -> Any:
    from transformers import AutoModel

    model, found = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(found.values())
    return model.eval()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        needs_transformers(FAMILIES[name].since)
        if broken(name):
            pytest.skip("the stock model fails in this version of transformers")
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            stock = tiny_model(name)
            stock.save_pretrained(folder)
            write_shortv(folder, name, FROZEN)
            made[name] = Pair(name, stock, load(folder), folder)
        return made[name]

    return make


def rows_with_features(model: Any, inputs: dict[str, Any]) -> Any:
    """Into which rows the stock model puts visual features: those that are not their token's embedding."""
    seen = []
    hook = text_decoder(model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with hook, torch.no_grad():
        model(**inputs)
        return (seen[0] != model.get_input_embeddings()(inputs["input_ids"])).any(-1)


def test_every_family_is_tried():
    assert set(TINY) == set(FAMILIES)


def test_text_models_are_those_of_the_remote_code():
    source = (modeling_dir() / "shortv_layers.py").read_text(encoding="utf-8")
    (names,) = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TEXT_MODELS"
    ]
    assert eval(ast.unparse(names)) == TEXT_MODELS


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_for_a_reason(name):
    with pytest.raises(ShortVError) as caught:
        family_of({"model_type": name}, "acme/base")
    assert str(caught.value) == f"acme/base is a {name} model, which cannot be converted: {REFUSED[name]}."


def test_transformers_that_is_too_old(monkeypatch):
    monkeypatch.setattr(families, "version", lambda name: "5.19.3")
    with pytest.raises(ShortVError) as caught:
        family_of({"model_type": "lfm2_vl"}, "acme/base")
    assert str(caught.value) == (
        "acme/base needs transformers 5.22 or newer, not 5.19.3: pip install -U transformers."
    )


def test_transformers_in_which_the_base_fails(monkeypatch):
    monkeypatch.setattr(families, "version", lambda name: "5.24.0")
    with pytest.raises(ShortVError) as caught:
        family_of({"model_type": "llama4"}, "acme/base")
    assert str(caught.value) == "acme/base: Llama 4 itself fails in transformers 5.24.0; install another release."


@pytest.mark.parametrize("field", ["num_kv_shared_layers", "hidden_size_per_layer_input"])
def test_a_text_model_with_what_frozen_layers_do_not_compute(field):
    family = FAMILIES["gemma4"]
    family.check({field: 0}, "acme/base")
    with pytest.raises(ShortVError, match=rf"acme/base is a Gemma 4 model that cannot be converted \({field}\): its "):
        family.check({field: 20}, "acme/base")


def test_unknown_family():
    with pytest.raises(ShortVError, match=r"acme/base has model_type 'bert', .*; supported: llava, .*CONTRIBUTING.md"):
        family_of({"model_type": "bert"}, "acme/base")


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_forward_and_cache(pairs, name, kind, matrix):
    """Logits of every real token, and keys and values of every layer, are those of the definition."""
    pair = pairs(name)
    inputs = pair.inputs(kind)
    real = inputs["attention_mask"].bool()
    visual = rows_with_features(pair.stock, inputs)
    assert torch.equal(visual, visual_tokens(pair.stock.config, inputs["input_ids"]))
    assert visual.any()
    with torch.no_grad():
        dense = pair.stock(**inputs).logits
        with pair.defined(visual | ~real):
            expected = pair.stock(**inputs, use_cache=True)
        output = pair.shortv(**inputs, use_cache=True)
    error = relative_error(output.logits, expected.logits, real)
    matrix(name, "oracle error", error)
    assert error <= TOLERANCE
    assert relative_error(dense, expected.logits, real) > 1000 * TOLERANCE
    for layer, wanted in zip(output[CACHE].layers, expected[CACHE].layers, strict=True):
        for found, right in zip(cached_states(layer), cached_states(wanted), strict=True):
            # Keys and values of padding mean nothing; the state that linear attention goes on from has no rows.
            rows = real[:, -found.shape[2] :] if hasattr(layer, "keys") else torch.ones(found.shape[::2]).bool()
            assert relative_error(found.transpose(1, 2), right.transpose(1, 2), rows) <= TOLERANCE
    report = pair.shortv.shortv_report()
    assert report["visual_tokens"] == visual.sum()
    if name in STACKED:
        assert report["skipped_updates"] == len(FROZEN) * visual.sum()


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_generate(pairs, name, kind, cache, matrix):
    pair = pairs(name)
    inputs = pair.inputs(kind)
    frozen = visual_tokens(pair.stock.config, inputs["input_ids"]) | (inputs["attention_mask"] == 0)
    options = {"max_new_tokens": 6, "do_sample": False, **({"cache_implementation": cache} if cache else {})}
    with pair.defined(frozen):
        expected = pair.stock.generate(**inputs, **options)
    equal = torch.equal(pair.shortv.generate(**inputs, **options), expected)
    matrix(name, "generate equal", equal)
    assert equal


@pytest.mark.parametrize("name", ["cohere2_vision", "exaone4_5"])
def test_flash_attention_where_some_layers_have_a_window(pairs, name, flash):
    """Its masks do not contain the window: frozen layers have to know whether they have one."""
    pair = pairs(name)
    inputs = pair.inputs()
    real = inputs["attention_mask"].bool()
    frozen = visual_tokens(pair.stock.config, inputs["input_ids"]) | ~real
    with torch.no_grad(), pair.defined(frozen):
        expected = pair.stock(**inputs).logits
        usual = pair.shortv.config.text_config._attn_implementation
        try:
            pair.shortv.set_attn_implementation({"text_config": flash})
            assert relative_error(pair.shortv(**inputs).logits, expected, real) <= TOLERANCE
        finally:
            pair.shortv.set_attn_implementation({"text_config": usual})


@pytest.mark.parametrize("name", TINY)
def test_second_turn(pairs, name):
    """A second question with a picture of its own, on top of the cache of the first."""
    pair = pairs(name)
    first, second = batch(name, (5, 6, ..., 7, 8, 9)), batch(name, (10, ..., 11, 12, 13))
    both = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    logits = []
    for model in (pair.stock, pair.shortv):
        cache = {}
        for inputs, mask in ((first, first["attention_mask"]), (second, both)):
            frozen = visual_tokens(model.config, inputs["input_ids"])
            with torch.no_grad(), pair.defined(frozen):
                options = {"attention_mask": mask, "use_cache": True, **cache}
                if cache and "mrope_section" in TINY[name].text.get("rope_parameters", {}):
                    # These models count positions by pictures, and do not go on counting by themselves.
                    positions = torch.arange(both.shape[1])[first["input_ids"].shape[1] :]
                    options["position_ids"] = positions.expand(3, 1, -1)
                output = model(**{**inputs, **options})
            cache = {CACHE: output[CACHE]}
        logits.append(output.logits)
    assert relative_error(*logits[::-1]) <= TOLERANCE


@pytest.mark.parametrize("name", TINY)
def test_embeddings_and_text(pairs, name):
    """Placeholder embeddings are found; without pictures the model is the stock one, bit for bit."""
    pair = pairs(name)
    inputs = batch(name, (5, 6, 7, 8, 9))
    with torch.no_grad():
        assert torch.equal(pair.shortv(**inputs).logits, pair.stock(**inputs).logits)
    assert pair.shortv.shortv_report()["visual_tokens"] == 0
    ids = pair.shortv._visual_tokens("cpu").tolist()
    assert set(ids) <= {IMAGE, VIDEO}
    assert IMAGE in ids


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "field"), [("gemma3", True), ("gemma4", "all")])
def test_text_that_sees_what_comes_after_it(pairs, name, field, attention):
    """Masks of such models are None, too, and then mean that every row sees every key."""
    pair = pairs(name)
    needs_transformers("5.18")
    inputs = batch(name, (5, 6, ..., 7, 8, 9))
    frozen = visual_tokens(pair.stock.config, inputs["input_ids"])
    models = []
    for model in (pair.stock, pair.shortv):
        config = type(model.config)(**model.config.to_dict())
        config.text_config.use_bidirectional_attention = field
        config.text_config.is_causal = False
        models.append(type(model)._from_config(config, attn_implementation=attention).eval())
    stock, shortv = models
    shortv.load_state_dict(pair.stock.state_dict())
    stock.load_state_dict(pair.stock.state_dict())
    with torch.no_grad(), frozen_by_definition(text_decoder(stock).layers, FROZEN, frozen):
        expected = stock(**inputs).logits
        causal = pair.stock(**inputs).logits
        found = shortv(**inputs).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (causal - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("name", ["llava", "gemma4", "ernie4_5_vl_moe", "lfm2_vl"])
def test_a_cache_of_another_class(pairs, name):
    """It goes by its name, too: frozen layers never leave a cache empty."""

    class Wrapped:
        def __init__(self, cache):
            self.cache = cache

        def __getattr__(self, attribute):
            return getattr(self.cache, attribute)

    pair = pairs(name)
    inputs = batch(name, (5, 6, ..., 7, 8, 9))
    cache = DynamicCache(config=pair.shortv.config.get_text_config())
    frozen = visual_tokens(pair.stock.config, inputs["input_ids"])
    with torch.no_grad(), pair.defined(frozen):
        pair.shortv(**inputs, **{CACHE: Wrapped(cache)}, use_cache=True)
        expected = pair.stock(**inputs, use_cache=True)[CACHE]
    for layer, wanted in zip(cache.layers, expected.layers, strict=True):
        for found, right in zip(cached_states(layer), cached_states(wanted), strict=True):
            assert found.shape == right.shape
            assert (found - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "ernie4_5_vl_moe"])
def test_router_logits_are_refused(pairs, name):
    pair = pairs(name)
    with pytest.raises(ValueError, match="route text only"):
        pair.shortv(**batch(name, (5, ..., 7, 8)), output_router_logits=True)
    pair.shortv(**batch(name, (5, 7, 8)), output_router_logits=True)


@pytest.mark.parametrize("name", TINY)
def test_tensor_names(pairs, name):
    """What was loaded had the names that the family's repositories on the Hub have."""
    from safetensors import safe_open

    names = {
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "model.layers.0."),
        **dict.fromkeys(
            (
                *(
                    "qwen3_vl",
                    "qwen3_vl_moe",
                    "glm4v",
                    "glm4v_moe",
                    "glm46v",
                    "cohere2_vision",
                    "qwen3_5",
                    "qwen3_5_moe",
                ),
                *("gemma4", "lfm2_vl", "video_llama_3", "lighton_ocr", "deepseek_vl", "exaone4_5", "janus"),
            ),
            "model.language_model.layers.0.",
        ),
        **dict.fromkeys(("ernie4_5_vl_moe", "paddleocr_vl"), "model.layers.0."),
        "molmo2": "model.transformer.blocks.0.",
        **dict.fromkeys(STACKED, "model.text_model.layers.0."),
    }
    with safe_open(pairs(name).folder / "model.safetensors", framework="pt") as tensors:
        found = tensors.keys()
    assert any(key.startswith(names.get(name, "language_model.model.layers.0.")) for key in found)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_layer_contributions(pairs, name, kind, matrix):
    """Against whole forward passes of the stock model with one layer frozen."""
    from shortv_export.measure.layer_contribution import layer_contributions

    needs_transformers("5.18")  # as the tool does
    pair = pairs(name)
    inputs = pair.inputs(kind)
    visual, real = visual_tokens(pair.stock.config, inputs["input_ids"]), inputs["attention_mask"].bool()
    found = layer_contributions(pair.stock, [inputs])
    layers = range(len(text_decoder(pair.stock).layers))
    with torch.no_grad():
        original = pair.stock(**inputs).logits[:, -1].double().log_softmax(-1)
        for rows, measured in ((visual, found.visual), (~visual & real, found.text)):
            expected = []
            for index in layers:
                with pair.defined(rows, [index]):
                    ablated = pair.stock(**inputs).logits[:, -1].double().log_softmax(-1)
                expected.append((original.exp() * (original - ablated)).sum(-1))
            error = relative_error(measured, torch.stack(expected, 1))
            matrix(name, "LC error", error)
            assert error <= 1e-4


@pytest.mark.parametrize("name", TINY)
def test_cost_model(pairs, name):
    """Floating-point operations of all decoder layers, stock and frozen, against PyTorch's counter."""
    from shortv_export.base.cost import model_flops
    from shortv_export.base.shapes import layer_shapes
    from shortv_export.evaluation.changes import UNCHANGED
    from shortv_export.evaluation.speed import count_flops

    pair = pairs(name)
    placeholders = len(TINY[name].images.placeholders)
    inputs = batch(name, (5, ..., *[6] * (-(placeholders + 1) % 64)))  # linear attention goes by 64 tokens
    visual = int(visual_tokens(pair.stock.config, inputs["input_ids"]).sum())
    text = inputs["input_ids"].numel() - visual
    shapes = layer_shapes(pair.stock.config.get_text_config().to_dict())
    for model, frozen_layers in ((pair.stock, ()), (pair.shortv, FROZEN)):
        counted = count_flops(model.requires_grad_(False), UNCHANGED, inputs)
        assert counted == pytest.approx(model_flops(shapes, frozen_layers, text, visual), rel=0.01)

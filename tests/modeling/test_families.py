"""A tiny model of every family: remote code against the definition, scores and costs against plain computation."""

from __future__ import annotations

import copy
import pickle
import re
import shutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from shortv_export.base import families
from shortv_export.base.definition import cached_states, text_decoder, visual_tokens
from shortv_export.base.families import FAMILIES, REFUSED, TEXT_MODELS, family_of
from shortv_export.errors import ShortVError
from shortv_export.files.bundled import modeling_dir
from tests.support.definition import (
    CACHE,
    MIXED,
    TOLERANCE,
    defined,
    edit_config,
    frozen_answer_kl,
    frozen_kl,
    frozen_lists,
    greedy_answer,
    make_shortv,
    relative_error,
    rows_with_features,
)
from tests.support.tiny_families import IMAGE, TINY, VIDEO, batch, broken, tiny_model

FROZEN = [0, 1, 3]  # some of each kind, in families with two kinds of layers
POLICIES: dict[str, dict[str, list[int]]] = {
    "layers": {"frozen_layers": FROZEN},
    "attention": {"frozen_layers": [], "frozen_attention": FROZEN},  # only layers that have attention
    "ffn": {"frozen_layers": [], "frozen_ffn": FROZEN},
    "mixed": MIXED,
}
KINDS = [(name, kind) for name, tiny in TINY.items() for kind in ("images", "videos") if getattr(tiny, kind)]
# Each entry of a batch has the same number of pictures.
STACKED = ("smolvlm", "idefics3", "idefics2")


@dataclass
class FamilyPair:
    """A stock model and the ShortV model loaded from its weights by remote code."""

    name: str
    stock: Any
    shortv: Any
    folder: Path

    def inputs(self, kind: str = "images") -> dict[str, Any]:
        if (self.name, kind) == ("gemma4", "videos"):
            needs_transformers("5.23")  # since then, clips are concatenated
        rows = (
            [(5, 6, ..., 7, 8, 9, 10)] if self.name in STACKED else [(5, 6, ..., 7, 8, 9, 10, ..., 11), (11, ..., 12)]
        )
        return batch(self.name, *rows, kind=kind)

    def freeze(self, policy: str) -> None:
        """Freezes what one of `POLICIES` names."""
        layers = text_decoder(self.stock).layers
        lists = dict(POLICIES[policy])
        if "frozen_attention" in lists:
            lists["frozen_attention"] = [i for i in lists["frozen_attention"] if hasattr(layers[i], "self_attn")]
        self.shortv.freeze_layers(**lists)

    def defined(self, rows: Any) -> Any:
        """A context in which the stock model computes the definition for inputs with these frozen rows."""
        return defined(self.stock, frozen_lists(self.shortv.config), rows)


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
def made_pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> FamilyPair:
        needs_transformers(FAMILIES[name].since)
        if broken(name):
            pytest.skip("the stock model fails in this version of transformers")
        folder = tmp_path_factory.mktemp(name)
        stock = tiny_model(name)
        stock.save_pretrained(folder)
        return FamilyPair(name, stock, load(make_shortv(folder, FROZEN)), folder)

    return make


@pytest.fixture
def pairs(made_pairs: Any) -> Any:
    """``pairs(family, policy="layers")``: a `FamilyPair` that freezes what the policy says."""

    def get(name: str, policy: str = "layers") -> FamilyPair:
        pair = made_pairs(name)
        pair.freeze(policy)
        return pair

    return get


def test_every_family_has_a_tiny_model():
    assert set(TINY) == set(FAMILIES)


def test_text_models_are_those_of_the_remote_code():
    code: dict[str, object] = {}
    exec((modeling_dir() / "shortv_layers.py").read_text(encoding="utf-8"), code)
    assert code["TEXT_MODELS"] == TEXT_MODELS


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_names_the_other_files(name):
    """By them, transformers tells packages in folders of the same name apart."""
    family = FAMILIES[name]
    named = re.findall(r"^    from \.(\w+) import (\w+)$", family.source(family.code[0]), flags=re.MULTILINE)
    assert [f"{module}.py" for module, _ in named] == list(family.code[1:])
    for module, thing in named:
        assert re.search(rf"^class {thing}\b", family.source(f"{module}.py"), flags=re.MULTILINE)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_family_is_told_why(name):
    with pytest.raises(ShortVError) as caught:
        family_of({"model_type": name}, "acme/base")
    assert str(caught.value) == f"acme/base is a {name} model, which cannot be converted: {REFUSED[name]}."


def test_too_old_transformers_is_refused(monkeypatch):
    monkeypatch.setattr(families, "version", lambda name: "5.19.3")
    with pytest.raises(ShortVError) as caught:
        family_of({"model_type": "lfm2_vl"}, "acme/base")
    assert str(caught.value) == (
        "acme/base needs transformers 5.22 or newer, not 5.19.3: pip install -U transformers."
    )


def test_transformers_in_which_the_stock_model_fails_is_refused(monkeypatch):
    monkeypatch.setattr(families, "version", lambda name: "5.24.0")
    with pytest.raises(ShortVError) as caught:
        family_of({"model_type": "llama4"}, "acme/base")
    assert str(caught.value) == "acme/base: Llama 4 itself fails in transformers 5.24.0; install another release."


@pytest.mark.parametrize("field", ["num_kv_shared_layers", "hidden_size_per_layer_input"])
def test_unsupported_features_of_a_text_model_are_refused(field):
    family = FAMILIES["gemma4"]
    family.check({field: 0}, "acme/base")
    with pytest.raises(ShortVError, match=rf"acme/base is a Gemma 4 model that cannot be converted \({field}\): its "):
        family.check({field: 20}, "acme/base")


def test_an_unknown_family_is_refused():
    with pytest.raises(ShortVError, match=r"acme/base has model_type 'bert', .*; supported: llava, .*CONTRIBUTING.md"):
        family_of({"model_type": "bert"}, "acme/base")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_forward_and_cache(pairs, name, kind, policy, matrix):
    """Logits of all tokens but padding, and keys and values of all layers, equal the definition's."""
    pair = pairs(name, policy)
    inputs = pair.inputs(kind)
    real = inputs["attention_mask"].bool()
    visual, dense = rows_with_features(pair.stock, inputs)
    assert torch.equal(visual, visual_tokens(pair.stock.config, inputs["input_ids"]))
    assert visual.any()
    with torch.no_grad():
        with pair.defined(visual | ~real):
            expected = pair.stock(**inputs, use_cache=True)
        output = pair.shortv(**inputs, use_cache=True)
    error = relative_error(output.logits, expected.logits, real)
    matrix(name, "logit error", error)
    assert error <= TOLERANCE
    assert relative_error(dense, expected.logits, real) > 1000 * TOLERANCE
    for layer, wanted in zip(output[CACHE].layers, expected[CACHE].layers, strict=True):
        for found, right in zip(cached_states(layer), cached_states(wanted), strict=True):
            # Keys and values of padding are not used; the state of linear attention has no rows.
            rows = real[:, -found.shape[2] :] if hasattr(layer, "keys") else torch.ones(found.shape[::2]).bool()
            assert relative_error(found.transpose(1, 2), right.transpose(1, 2), rows) <= TOLERANCE
    report = pair.shortv.shortv_report()
    assert report["visual_tokens"] == visual.sum()
    if name in STACKED:
        for operator in ("attention", "ffn"):
            frozen = [*report["frozen_layers"], *report[f"frozen_{operator}"]]
            assert report[f"skipped_{operator}"] == len(frozen) * visual.sum()


@pytest.mark.parametrize(("name", "layer"), [("qwen3_5", 0), ("qwen3_5_moe", 2), ("lfm2_vl", 0)])
def test_a_layer_without_attention_cannot_freeze_it(pairs, name, layer):
    pair = pairs(name)
    message = f"`frozen_attention` names layer {layer}, which has no attention to freeze."
    with pytest.raises(ValueError, match=message):
        pair.shortv.freeze_layers([], frozen_attention=[1, layer])
    assert pair.shortv.config.frozen_layers == FROZEN  # nothing was changed
    folder = edit_config(shutil.copytree(pair.folder, pair.folder.with_name(f"refused-{name}")), frozen_layers=[])
    edit_config(folder, frozen_attention=[layer])
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(("policy", "cache"), [("layers", None), ("mixed", None), ("mixed", "static")])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_generate(pairs, name, kind, policy, cache, matrix):
    """Generated tokens equal the definition's."""
    pair = pairs(name, policy)
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
    """Flash masks do not contain the window, so frozen layers must know whether they have one."""
    pair = pairs(name, "attention")
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
    """A second question with a picture, on the cache of the first one."""
    pair = pairs(name, "mixed")
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
                    # Positions in these models depend on the pictures and must be given in a second turn.
                    positions = torch.arange(both.shape[1])[first["input_ids"].shape[1] :]
                    options["position_ids"] = positions.expand(3, 1, -1)
                output = model(**{**inputs, **options})
            cache = {CACHE: output[CACHE]}
        logits.append(output.logits)
    assert relative_error(*logits[::-1]) <= TOLERANCE


@pytest.mark.parametrize("name", TINY)
def test_without_pictures_it_is_the_stock_model(pairs, name):
    """Bit for bit; and the model knows its placeholder tokens."""
    pair = pairs(name)
    inputs = batch(name, (5, 6, 7, 8, 9))
    stock = copy.deepcopy(pair.stock)
    # The same tensors: where they lie in memory changes the last bits on some processors.
    stock.load_state_dict(pair.shortv.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(pair.shortv(**inputs).logits, stock(**inputs).logits)
    assert pair.shortv.shortv_report()["visual_tokens"] == 0
    ids = pair.shortv._visual_tokens("cpu").tolist()
    assert set(ids) <= {IMAGE, VIDEO}
    assert IMAGE in ids


@pytest.mark.parametrize("name", TINY)
def test_pickled(pairs, name):
    """Before its first forward pass: after it, transformers 5.24 cannot pickle some stock models either."""
    pair = pairs(name, "mixed")
    model = type(pair.shortv)(copy.deepcopy(pair.shortv.config)).eval()
    model.load_state_dict(pair.shortv.state_dict())
    twin = pickle.loads(pickle.dumps(model))
    inputs = pair.inputs()
    with torch.no_grad():
        assert torch.equal(twin(**inputs).logits, model(**inputs).logits)
    assert twin.shortv_report() == model.shortv_report()
    assert twin.shortv_report()["skipped_updates"] > 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "field"), [("gemma3", True), ("gemma4", "all")])
def test_bidirectional_text(pairs, name, field, attention):
    """Without a mask, every row of these models sees every key."""
    pair = pairs(name, "mixed")
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
    with torch.no_grad(), defined(stock, MIXED, frozen):
        expected = stock(**inputs).logits
        causal = pair.stock(**inputs).logits
        found = shortv(**inputs).logits
    assert relative_error(found, expected) <= TOLERANCE
    assert relative_error(causal, expected) > 1000 * TOLERANCE


@pytest.mark.parametrize("name", ["llava", "gemma4", "ernie4_5_vl_moe", "lfm2_vl"])
def test_a_cache_of_an_unknown_class_is_filled(pairs, name):
    """Frozen layers find it by the name of the argument."""

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
            assert relative_error(found, right) <= TOLERANCE


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "ernie4_5_vl_moe"])
def test_router_logits_are_refused(pairs, name):
    pair = pairs(name)
    with pytest.raises(ValueError, match="route text only"):
        pair.shortv(**batch(name, (5, ..., 7, 8)), output_router_logits=True)
    pair.shortv(**batch(name, (5, 7, 8)), output_router_logits=True)


@pytest.mark.parametrize("name", TINY)
def test_tensor_names(pairs, name):
    """The files that were loaded have the tensor names of the family's repositories on the Hub."""
    from safetensors import safe_open

    names = {
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe", "paddleocr_vl"), "model.layers.0."),
        **dict.fromkeys(
            (
                *("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe", "glm46v", "gemma4"),
                *("lfm2_vl", "video_llama_3", "lighton_ocr", "deepseek_vl", "exaone4_5", "janus", "cohere2_vision"),
            ),
            "model.language_model.layers.0.",
        ),
        "molmo2": "model.transformer.blocks.0.",
        **dict.fromkeys(STACKED, "model.text_model.layers.0."),
    }
    with safe_open(pairs(name).folder / "model.safetensors", framework="pt") as tensors:
        found = tensors.keys()
    assert any(key.startswith(names.get(name, "language_model.model.layers.0.")) for key in found)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_layer_contributions(pairs, name, kind, matrix):
    """Scores equal those of whole forward passes of the definition with one frozen layer."""
    from shortv_export.measure.layer_contribution import layer_contributions
    from shortv_export.options import Scoring

    needs_transformers("5.18")  # as scoring does
    pair = pairs(name)
    inputs = pair.inputs(kind)
    visual, real = visual_tokens(pair.stock.config, inputs["input_ids"]), inputs["attention_mask"].bool()
    found = layer_contributions(pair.stock, [inputs], scoring=Scoring(positions="first", text_contribution=True))
    layers = range(len(text_decoder(pair.stock).layers))
    for ablation, rows in (
        ("visual", visual), ("attention", visual), ("ffn", visual), ("text", ~visual & real)
    ):  # fmt: skip
        expected = [frozen_kl(pair.stock, inputs, ablated(ablation, index), rows) for index in layers]
        error = relative_error(torch.stack([sample[ablation] for sample in found]), torch.stack(expected, 1))
        matrix(name, "LC error", error)
        assert error <= 1e-4, ablation


@pytest.mark.parametrize("name", TINY)
def test_contributions_to_the_answer(pairs, name, matrix):
    """Scores over an answer equal those of the definition that is forced, token by token, to give this answer."""
    from shortv_export.measure.joint_divergence import JointDivergence
    from shortv_export.measure.layer_contribution import layer_contributions
    from shortv_export.records.frozen import Frozen

    needs_transformers("5.18")  # as scoring does
    pair = pairs(name)
    inputs = pair.inputs("images")
    if len(inputs["input_ids"]) > 1:
        inputs = batch(name, (5, 6, ..., 7, 8, 9, 10))
    visual = visual_tokens(pair.stock.config, inputs["input_ids"])
    (found,) = layer_contributions(pair.stock, [inputs])
    answer = greedy_answer(pair.stock, inputs)
    assert found["tokens"].tolist() == [int((~visual).sum()), int(visual.sum()), len(answer)]
    layers = range(len(text_decoder(pair.stock).layers))
    for ablation in ("visual", "attention", "ffn"):
        expected = [frozen_answer_kl(pair.stock, inputs, ablated(ablation, index), visual, answer) for index in layers]
        error = relative_error(found[f"answer_{ablation}"], torch.stack(expected))
        matrix(name, "LC error", error)
        assert error <= 1e-4, ablation
    joint = {"frozen_layers": [0], "frozen_attention": [1], "frozen_ffn": [3]}
    divergence, _ = JointDivergence(pair.stock, [inputs], "answer")(Frozen((0,), (1,), (3,)))
    assert divergence == pytest.approx(float(frozen_answer_kl(pair.stock, inputs, joint, visual, answer)), rel=1e-4)


def ablated(ablation, layer):
    """The lists of a config that freezes what an ablation leaves out of a layer."""
    name = f"frozen_{ablation}" if ablation in ("attention", "ffn") else "frozen_layers"
    return {"frozen_layers": [], name: [layer]}


@pytest.mark.parametrize("name", TINY)
def test_cost_model(pairs, name):
    """The cost model's FLOPs of all decoder layers, stock and frozen, equal those that PyTorch counts."""
    from shortv_export.base.cost import model_flops
    from shortv_export.base.shapes import layer_shapes
    from shortv_export.evaluation.changes import UNCHANGED
    from shortv_export.evaluation.speed import count_flops

    pair = pairs(name)
    placeholders = len(TINY[name].images.placeholders)
    inputs = batch(name, (5, ..., *[6] * (-(placeholders + 1) % 64)))  # linear attention pads to 64 tokens
    visual = int(visual_tokens(pair.stock.config, inputs["input_ids"]).sum())
    text = inputs["input_ids"].numel() - visual
    shapes = layer_shapes(pair.stock.config.get_text_config().to_dict())
    prompt = {"text_tokens": text, "visual_tokens": visual}
    counted = count_flops(pair.stock.requires_grad_(False), UNCHANGED, inputs)
    assert counted == pytest.approx(model_flops(shapes, (), **prompt), rel=0.01)
    for policy in POLICIES:
        pair.freeze(policy)
        counted = count_flops(pair.shortv.requires_grad_(False), UNCHANGED, inputs)
        expected = model_flops(shapes, **frozen_lists(pair.shortv.config), **prompt)
        assert counted == pytest.approx(expected, rel=0.01), policy

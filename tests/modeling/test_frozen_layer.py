"""Forward passes of the remote code, compared with the definition on the stock model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.support.definition import CACHE, MIXED, RAGGED, SLIDING, TOLERANCE, Pair, generate, relative_error


def assert_as_defined(pair: Pair, inputs: Any, rows: Any = None, changes: bool = True) -> Any:
    """Logits of all tokens but padding equal the definition's, not the dense model's. Returns ShortV's output."""
    rows = inputs["attention_mask"].bool() if rows is None else rows
    with torch.no_grad():
        dense = pair.stock(**inputs).logits
        with pair.oracle():
            expected = pair.stock(**inputs).logits
        output = pair.shortv(**inputs)
    assert relative_error(output.logits, expected, rows) <= TOLERANCE
    if changes:
        assert relative_error(dense, expected, rows) > 1000 * TOLERANCE
    else:
        assert torch.equal(dense, expected)
    return output


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("text_model", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_ragged_batches(load_pair, model_type, text_model, padding_side):
    pair = load_pair(model_type, text_model=text_model)
    assert_as_defined(pair, pair.inputs(*RAGGED, padding_side=padding_side))


@pytest.mark.parametrize(
    "frozen",
    [
        {"frozen_layers": [0]},
        {"frozen_layers": [1, 2, 3]},
        {"frozen_layers": [0, 1, 2, 3]},
        {"frozen_layers": [], "frozen_attention": [0, 1, 2, 3]},
        {"frozen_layers": [], "frozen_ffn": [0, 1, 2, 3]},
        {"frozen_layers": [3], "frozen_attention": [0], "frozen_ffn": [1, 2]},
    ],
    ids=str,
)
def test_any_set_of_operators(load_pair, frozen):
    pair = load_pair(frozen=frozen)
    assert_as_defined(pair, pair.inputs(*RAGGED))


def test_text_leaves_each_kind_of_layer_alike(load_pair):
    """For the text rows of the layer: what visual rows get does not reach them before the next layer."""
    pair = load_pair(frozen=[])
    inputs = pair.inputs(RAGGED[0])
    visual = pair.visual(inputs)
    hidden = {}
    with torch.no_grad():
        for name in ("frozen_layers", "frozen_attention", "frozen_ffn"):
            pair.shortv.freeze_layers(**{"frozen_layers": [], name: [1]})
            hidden[name] = pair.shortv(**inputs, output_hidden_states=True).hidden_states[2]
    for name in ("frozen_attention", "frozen_ffn"):
        assert relative_error(hidden[name], hidden["frozen_layers"], ~visual) <= TOLERANCE
        assert relative_error(hidden[name], hidden["frozen_layers"], visual) > 1000 * TOLERANCE


def test_no_frozen_layer_is_the_stock_model_bit_for_bit(load_pair):
    pair = load_pair(frozen=[])
    inputs = pair.inputs(*RAGGED)
    with torch.no_grad():
        assert torch.equal(pair.shortv(**inputs).logits, pair.stock(**inputs).logits)


def test_freezing_the_last_layer_changes_no_text(load_pair):
    pair = load_pair(frozen=[3])
    inputs = pair.inputs(RAGGED[0])
    text = ~pair.visual(inputs)
    with torch.no_grad():
        assert relative_error(pair.shortv(**inputs).logits, pair.stock(**inputs).logits, text) <= TOLERANCE
        with pair.oracle():
            assert relative_error(pair.shortv(**inputs).logits, pair.stock(**inputs).logits) <= TOLERANCE


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "text_model": "qwen2"},
        {"tie_word_embeddings": True},
        {"vision_feature_layer": [-2, -1]},
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"},
        {"text_config": {"head_dim": 16}, "num_key_value_heads": 2, "text_model": "mistral"},
    ],
    ids=str,
)
def test_variants(load_pair, arguments):
    pair = load_pair(**arguments)
    assert pair.stock.config.tie_word_embeddings == ("tie_word_embeddings" in arguments)
    if "tie_word_embeddings" in arguments:
        assert pair.shortv.lm_head.weight is pair.shortv.get_input_embeddings().weight
    assert_as_defined(pair, pair.inputs(*RAGGED))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("text_model", ["mistral", "qwen2"])
def test_a_sliding_window_that_binds(load_pair, text_model, implementation):
    frozen = {"frozen_layers": [0, 1], "frozen_attention": [2], "frozen_ffn": [3]}
    pair = load_pair(text_model=text_model, text_config=SLIDING[text_model], frozen=frozen)
    wide = load_pair(text_model=text_model, frozen=frozen)
    pair.set_attention(implementation)
    inputs = pair.inputs(*RAGGED)
    logits = assert_as_defined(pair, inputs).logits
    with torch.no_grad():
        assert relative_error(wide.shortv(**inputs).logits, logits) > 1000 * TOLERANCE  # the window does bind
    assert_as_defined(pair, pair.inputs(RAGGED[1]))


@pytest.mark.parametrize(
    ("model_type", "implementation"), [("llava", "eager"), ("llava_next", "eager"), ("llava", "flex_attention")]
)
def test_attention_implementations(load_pair, model_type, implementation):
    pair = load_pair(model_type)
    pair.set_attention(implementation)
    assert_as_defined(pair, pair.inputs(*RAGGED))
    if implementation == "eager":
        assert_as_defined(pair, pair.inputs(RAGGED[1]))  # without padding


def test_no_padding_and_no_attention_mask(load_pair):
    pair = load_pair()
    for prompts in (RAGGED[:1], RAGGED[:1] * 3):
        inputs = pair.inputs(*prompts)
        assert_as_defined(pair, inputs)
        rows = inputs.pop("attention_mask").bool()
        assert_as_defined(pair, inputs, rows)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_sequences(load_pair, implementation):
    """Two prompts in one row: position numbers restart, and neither prompt sees the other."""
    pair = load_pair()
    pair.set_attention(implementation)
    alone = [pair.inputs(prompt) for prompt in RAGGED[:2]]
    ids = torch.cat([inputs["input_ids"] for inputs in alone], dim=1)
    positions = torch.cat([torch.arange(inputs["input_ids"].shape[1]) for inputs in alone])[None]
    pixel_values = torch.cat([inputs["pixel_values"] for inputs in alone])
    packed = {"input_ids": ids, "position_ids": positions, "pixel_values": pixel_values, "use_cache": False}
    output = assert_as_defined(pair, packed, torch.ones_like(ids, dtype=torch.bool))
    with torch.no_grad():
        first = pair.shortv(**alone[0]).logits
    assert relative_error(output.logits[:, : first.shape[1]], first) <= TOLERANCE


def test_a_4d_attention_mask(load_pair):
    pair = load_pair()
    inputs = pair.inputs(*RAGGED[:1] * 2)
    rows, length = inputs["attention_mask"].bool(), inputs["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(1, 1, length, length, generator=generator) < 0.7
    inputs["attention_mask"] = (seen | torch.eye(length, dtype=torch.bool)).tril()
    assert_as_defined(pair, inputs, rows)


def test_text_only_batches_run_the_stock_model(load_pair):
    pair = load_pair()
    inputs = pair.inputs("USER: yes", "USER: is there a cat on the table ?")
    output = assert_as_defined(pair, inputs, changes=False)
    with torch.no_grad():
        assert torch.equal(output.logits, pair.stock(**inputs).logits)
    assert pair.shortv.shortv_report()["skipped_updates"] == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_prompts_that_are_all_image(load_pair, batch):
    pair = load_pair()
    inputs = pair.inputs(*["<image>"] * batch)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name][:, 1:].contiguous()  # without <s>
    assert pair.visual(inputs).all()
    assert_as_defined(pair, inputs)
    beside_text = pair.inputs("<image>", "USER: is there a cat in this picture <image>")
    assert_as_defined(pair, beside_text)


def test_hidden_states_of_every_layer(load_pair):
    pair = load_pair(frozen={"frozen_layers": [1, 2], "frozen_attention": [0], "frozen_ffn": [3]})
    inputs = pair.inputs(*RAGGED)
    rows = inputs["attention_mask"].bool()
    expected = []  # inputs of the layers; some versions record outputs before the hooks of the definition run
    for layer in pair.stock.model.language_model.layers:
        layer.register_forward_pre_hook(lambda module, args: expected.append(args[0]))
    with torch.no_grad(), pair.oracle():
        expected.append(pair.stock(**inputs, output_hidden_states=True).hidden_states[-1])
        actual = pair.shortv(**inputs, output_hidden_states=True).hidden_states
    assert len(actual) == len(expected) == 5
    for number, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert relative_error(mine, theirs, rows) <= TOLERANCE, number
    visual = pair.visual(inputs)
    assert torch.equal(actual[1][visual], actual[3][visual])  # unchanged by both frozen layers


def test_attentions(load_pair):
    """Frozen attention returns the attention weights of its text rows: (batch, heads, text rows, keys)."""
    pair = load_pair(frozen={"frozen_layers": [2], "frozen_attention": [3], "frozen_ffn": [0]})
    pair.set_attention("eager")
    inputs = pair.inputs(RAGGED[0])
    with torch.no_grad(), pair.oracle():
        expected = pair.stock(**inputs, output_attentions=True).attentions
        actual = pair.shortv(**inputs, output_attentions=True).attentions
    text = ~pair.visual(inputs)[0]
    for number in range(4):
        theirs = expected[number][:, :, text] if number >= 2 else expected[number]
        assert relative_error(actual[number], theirs) <= TOLERANCE, number


def test_logits_to_keep_and_loss(load_pair):
    pair = load_pair()
    inputs = pair.inputs(*RAGGED)
    visual_or_padding = pair.visual(inputs) | (inputs["attention_mask"] == 0)
    labels = inputs["input_ids"].masked_fill(visual_or_padding, -100)
    with torch.no_grad(), pair.oracle():
        expected = pair.stock(**inputs, labels=labels)
        actual = pair.shortv(**inputs, labels=labels)
        last = pair.shortv(**inputs, logits_to_keep=1)
    assert relative_error(actual.loss, expected.loss) <= TOLERANCE
    assert relative_error(last.logits, expected.logits[:, -1:]) <= TOLERANCE


def test_positional_and_tuple_calls(load_pair):
    pair = load_pair()
    inputs = pair.inputs(RAGGED[0])
    with torch.no_grad():
        expected = pair.shortv(**inputs).logits
        assert torch.equal(pair.shortv(inputs["input_ids"], inputs["pixel_values"]).logits, expected)
        assert torch.equal(pair.shortv(**inputs, return_dict=False)[0], expected)
        hidden = pair.shortv.model(inputs["input_ids"], inputs["pixel_values"]).last_hidden_state
        assert torch.equal(pair.shortv.lm_head(hidden), expected)


class TestEmbeddings:
    """`inputs_embeds` instead of `input_ids`."""

    def test_placeholders_are_found(self, load_pair):
        pair = load_pair()
        inputs, _ = pair.embedded(*RAGGED)
        assert_as_defined(pair, inputs)

    def test_merged_features_need_a_mask(self, load_pair):
        pair = load_pair()
        inputs, visual = pair.merged(*RAGGED)
        with torch.no_grad(), pair.defined(visual):
            expected = pair.stock(**inputs).logits
        rows = inputs["attention_mask"].bool()
        with torch.no_grad():
            actual = pair.shortv(**inputs, visual_mask=visual).logits
            assert relative_error(actual, expected, rows) <= TOLERANCE
            assert relative_error(actual, pair.stock(**inputs).logits, rows) > 1000 * TOLERANCE
            with pytest.raises(ValueError, match="visual_mask") as error:
                pair.shortv(**inputs)
            assert "\n" not in str(error.value)
            with pytest.raises(ValueError, match="shape"):
                pair.shortv(**inputs, visual_mask=visual[:, 1:])

    def test_text_only(self, load_pair):
        pair = load_pair()
        inputs, visual = pair.embedded("USER: is there a cat ?")
        with torch.no_grad():
            actual = pair.shortv(**inputs, visual_mask=visual).logits
            assert torch.equal(actual, pair.stock(**inputs).logits)


def test_visual_mask_with_input_ids(load_pair):
    pair = load_pair()
    inputs = pair.inputs(*RAGGED)
    with torch.no_grad():
        expected = pair.shortv(**inputs).logits
        assert torch.equal(pair.shortv(**inputs, visual_mask=pair.visual(inputs)).logits, expected)


def test_features_encoded_beforehand(load_pair):
    pair = load_pair()
    if "mm_encoder_outputs" not in pair.stock.forward.__code__.co_varnames and not hasattr(
        pair.stock, "_supports_mm_encoder_outputs"
    ):
        pytest.skip("this transformers version has no mm_encoder_outputs")
    inputs = pair.inputs(*RAGGED)
    with torch.no_grad():
        encoded = {"image": pair.stock.get_image_features(inputs.pop("pixel_values"), return_dict=True)}
    assert_as_defined(pair, {**inputs, "mm_encoder_outputs": encoded})


def test_bfloat16(load_pair):
    pair = load_pair()
    inputs = pair.inputs(*RAGGED)
    rows = inputs["attention_mask"].bool()
    with torch.no_grad(), pair.oracle():
        exact = pair.stock(**inputs).logits
        low = pair.stock.bfloat16()(**inputs).logits.float()
        actual = pair.shortv.bfloat16()(**inputs).logits
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual.float(), low, rows) <= 2 * relative_error(low, exact, rows) < 0.2


def test_autocast(load_pair):
    pair = load_pair()
    inputs = pair.inputs(*RAGGED)
    rows = inputs["attention_mask"].bool()
    with torch.no_grad(), pair.oracle():
        exact = pair.stock(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            low = pair.stock(**inputs).logits.float()
            actual = pair.shortv(**inputs).logits.float()
    assert relative_error(actual, low, rows) <= 2 * relative_error(low, exact, rows) < 0.2


def test_threads_do_not_disturb_each_other(load_pair):
    from concurrent.futures import ThreadPoolExecutor

    pair = load_pair()
    batches = [pair.inputs(*RAGGED[start:]) for start in range(3)] + [pair.inputs(*RAGGED, padding_side="right")]
    for inputs in batches:
        del inputs["pixel_values"]  # old stock vision towers are not thread-safe; placeholders are enough here

    def run(inputs: Any) -> Any:
        with torch.no_grad():
            return pair.shortv(**inputs).logits

    expected = [run(inputs) for inputs in batches]
    with ThreadPoolExecutor(4) as pool:
        for actual in zip(*[iter(pool.map(run, batches * 8))] * 4, strict=True):
            assert all(map(torch.equal, actual, expected))


class TestReport:
    def test_skipped_updates_are_the_rows_that_are_not_computed(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        layers = pair.shortv.model.language_model.layers
        computed = {"q_proj": [], "o_proj": [], "up_proj": []}
        for layer in layers:
            for name, counts in computed.items():
                part = layer.mlp if name == "up_proj" else layer.self_attn
                getattr(part, name).register_forward_hook(
                    lambda module, args, output, counts=counts: counts.append(output.shape[0] * output.shape[1])
                )
        with torch.no_grad():
            pair.shortv(**inputs)
        rows = inputs["input_ids"].numel()
        attention, ffn = (sum(rows - count for count in computed[name]) for name in ("q_proj", "up_proj"))
        assert pair.shortv.shortv_report() == {
            **MIXED,
            "visual_tokens": pair.visual(inputs).sum().item(),
            "skipped_attention": attention,
            "skipped_ffn": ffn,
            "skipped_updates": attention + ffn,
            "total_updates": 2 * rows * len(layers),
        }
        text = computed["q_proj"][0]
        assert text < rows
        assert computed == {
            "q_proj": [text, text, rows, rows],
            "o_proj": [text, text, rows, rows],
            "up_proj": [text, rows, text, rows],
        }

    def test_a_single_prompt_skips_exactly_its_visual_tokens(self, load_pair):
        pair = load_pair(frozen=[0, 1, 3])
        with torch.no_grad():
            pair.shortv(**pair.inputs(RAGGED[0]))
        report = pair.shortv.shortv_report()
        assert report["visual_tokens"] == 16
        assert report["skipped_attention"] == report["skipped_ffn"] == 3 * 16

    def test_nothing_skipped_without_images(self, load_pair):
        pair = load_pair()
        counts = ("visual_tokens", "skipped_attention", "skipped_ffn", "skipped_updates", "total_updates")
        nothing = {**MIXED, **dict.fromkeys(counts, 0)}
        assert pair.shortv.shortv_report() == nothing
        with torch.no_grad():
            pair.shortv(**pair.inputs(RAGGED[0]))
            assert pair.shortv.shortv_report()["skipped_updates"] > 0
            pair.shortv(**pair.inputs("USER: yes"))
        assert pair.shortv.shortv_report() == nothing


class TestFlashSemantics:
    """The masks of flash attention, without its kernels: `None` or a padding mask.

    transformers builds them for every attention with "flash" in its name; the fixture `flash` registers one.
    """

    CASES = pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"text_model": "mistral", "text_config": SLIDING["mistral"]},
            {"text_model": "qwen2", "text_config": SLIDING["qwen2"]},
        ],
        ids=["llama", "mistral, sliding", "qwen2, sliding and full"],
    )

    @CASES
    @pytest.mark.parametrize("prompts", [RAGGED[1:2], RAGGED], ids=["no padding", "padding"])
    def test_forward(self, load_pair, flash, arguments, prompts):
        pair = load_pair(**arguments, frozen={"frozen_layers": [0, 1], "frozen_attention": [2, 3]})
        inputs = pair.inputs(*prompts)
        rows = inputs["attention_mask"].bool()
        with torch.no_grad(), pair.oracle():
            expected = pair.stock(**inputs).logits
            for implementation in ("sdpa", flash):
                pair.shortv.set_attn_implementation({"text_config": implementation})
                assert relative_error(pair.shortv(**inputs).logits, expected, rows) <= TOLERANCE

    @CASES
    @pytest.mark.parametrize("padded", [False, True], ids=["no padding", "padding"])
    def test_second_turn_on_a_cache(self, load_pair, flash, arguments, padded):
        pair = load_pair(**arguments, frozen={"frozen_layers": [0, 1], "frozen_attention": [2], "frozen_ffn": [3]})
        inputs = pair.inputs(*(RAGGED[1], RAGGED[1].replace("answer with", "")) if padded else RAGGED[1:2])
        cut = 26
        ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
        first, second = pair.visual(inputs).split([cut, ids.shape[1] - cut], dim=1)
        assert first.sum() % 16 == second.sum() % 16 == 0
        assert second.any()
        pixels = pixels.view(len(ids), -1, *pixels.shape[1:])
        results = []
        for model, implementation in ((pair.stock, "sdpa"), (pair.shortv, "sdpa"), (pair.shortv, flash)):
            model.set_attn_implementation({"text_config": implementation})
            options = {CACHE: DynamicCache(config=model.config.text_config), "use_cache": True}
            with torch.no_grad(), pair.oracle():
                model(ids[:, :cut], pixels[:, 0], attention_mask=mask[:, :cut], **options)
                results.append(model(ids[:, cut:], pixels[:, 1], attention_mask=mask, **options).logits)
        assert relative_error(results[1], results[0]) <= TOLERANCE
        assert relative_error(results[2], results[0]) <= TOLERANCE

    def test_static_cache(self, load_pair, flash):
        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        with pair.oracle():
            _, expected = generate(pair, pair.stock, inputs)
            pair.set_attention(flash)
            try:
                _, stock = generate(pair, pair.stock, inputs, cache_implementation="static")
            except Exception as error:
                pytest.skip(f"stock flash attention cannot use a static cache: {error}")
            if relative_error(stock, expected, expected.isfinite()) > TOLERANCE:
                pytest.skip("stock flash attention is wrong with a static cache")
        _, actual = generate(pair, pair.shortv, inputs, cache_implementation="static")
        assert relative_error(actual, expected, expected.isfinite()) <= TOLERANCE


def test_an_unknown_attention_is_refused(load_pair):
    from transformers import AttentionInterface

    pair = load_pair()
    inputs = pair.inputs(RAGGED[0])
    AttentionInterface.register("my_attention", lambda *args, **kwargs: None)
    try:
        pair.shortv.set_attn_implementation({"text_config": "my_attention"})
        pair.shortv.freeze_layers([0, 1, 2, 3])
        with pytest.raises(ValueError, match="my_attention") as error:
            pair.shortv(**inputs)
        assert "\n" not in str(error.value)
    finally:
        AttentionInterface._global_mapping.pop("my_attention")

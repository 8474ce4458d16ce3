"""Training with frozen layers: gradients, checkpointing, LoRA, `Trainer`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.support.definition import MIXED, RAGGED, TOLERANCE, Pair, frozen_lists, relative_error


def training_inputs(pair: Pair, *prompts: str, padding_side: str = "right") -> Any:
    """Inputs with labels as collators make them, except that no padding predicts the first token of a row."""
    inputs = pair.inputs(*prompts, padding_side=padding_side)
    ignored = pair.visual(inputs) | (inputs["attention_mask"].cumsum(1) <= 1) | (inputs["attention_mask"] == 0)
    return {**inputs, "labels": inputs["input_ids"].masked_fill(ignored, -100)}


def gradients(model: Any, inputs: Any) -> dict[str, Any]:
    """Gradients of all parameters by name; None where the loss does not depend on the parameter."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_same_gradients(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        # The gradient of key biases is rounding noise: a constant added to all keys changes no attention weight.
        if gradient is None or name.endswith("k_proj.bias"):
            continue
        if gradient.abs().max() == 0:
            assert actual[name] is None or actual[name].abs().max() == 0, name
        else:
            assert relative_error(actual[name], gradient) <= 5 * TOLERANCE, name


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("text_model", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_gradients_equal_the_definitions(load_pair, model_type, text_model, padding_side):
    pair = load_pair(model_type, text_model=text_model)
    inputs = training_inputs(pair, *RAGGED, padding_side=padding_side)
    with pair.oracle():
        expected = gradients(pair.stock, inputs)
    assert expected["model.multi_modal_projector.linear_1.weight"].abs().max() > 0
    assert_same_gradients(gradients(pair.shortv, inputs), expected)
    dense = gradients(pair.stock, inputs)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert relative_error(dense[name], expected[name]) > 1000 * TOLERANCE


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradients_where_filler_rows_see_no_key(load_pair, implementation):
    """The filler rows of a short text-only entry are padding, which sees no key."""
    pair = load_pair(frozen={"frozen_layers": [0, 1], "frozen_attention": [2], "frozen_ffn": [3]})
    pair.set_attention(implementation)
    inputs = training_inputs(pair, RAGGED[1], "USER: yes", padding_side="left")
    with pair.oracle():
        expected = gradients(pair.stock, inputs)
    actual = gradients(pair.shortv, inputs)
    assert all(gradient is None or gradient.isfinite().all() for gradient in actual.values())
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(load_pair, reentrant):
    pair = load_pair(frozen={"frozen_layers": [0], "frozen_attention": [1], "frozen_ffn": [3]})
    inputs = training_inputs(pair, *RAGGED[:3])
    with pair.oracle():
        expected = gradients(pair.stock.train(), inputs)
    pair.shortv.train()
    pair.shortv.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        pair.shortv.enable_input_require_grads()
    counts = []
    layer = pair.shortv.model.language_model.layers[0].mlp
    layer.register_forward_hook(lambda *_: counts.append(1))
    assert_same_gradients(gradients(pair.shortv, inputs), expected)
    assert len(counts) == 2  # once more in the backward pass
    assert pair.shortv.shortv_report()["skipped_updates"] > 0


def test_attention_dropout_trains(load_pair):
    pair = load_pair(frozen=range(4))
    inputs = training_inputs(pair, *RAGGED)
    for layer in pair.shortv.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    pair.shortv.train()
    losses = {pair.shortv(**inputs).loss.item() for _ in range(2)}
    assert len(losses) == 2


class TestLora:
    MODULES = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|up_proj|down_proj)"

    def wrap(self, model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=self.MODULES, init_lora_weights=True)
        return get_peft_model(model, config)

    def test_train_and_merge(self, load_pair):
        pair = load_pair()
        inputs = training_inputs(pair, *RAGGED[:3])
        rows = inputs["attention_mask"].bool()
        with torch.no_grad():
            before = pair.shortv(**inputs).logits
        models = {}
        for name, model in (("stock", pair.stock), ("shortv", pair.shortv)):
            tuned = self.wrap(model)
            optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
            with pair.oracle():
                for _ in range(3):
                    optimizer.zero_grad()
                    tuned(**inputs).loss.backward()
                    optimizer.step()
                with torch.no_grad():
                    models[name] = tuned(**inputs).logits
            if name == "shortv":
                with torch.no_grad(), tuned.disable_adapter():
                    assert relative_error(tuned(**inputs).logits, before, rows) <= TOLERANCE
                merged = tuned.merge_and_unload()
                with torch.no_grad():
                    assert relative_error(merged(**inputs).logits, models[name], rows) <= TOLERANCE
                assert merged.shortv_report()["skipped_updates"] > 0
        assert relative_error(models["shortv"], models["stock"], rows) <= 10 * TOLERANCE
        assert relative_error(models["shortv"], before, rows) > 1000 * TOLERANCE  # it did learn

    def test_an_untrained_adapter_changes_nothing(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        with torch.no_grad():
            before = pair.shortv(**inputs).logits
            assert torch.equal(self.wrap(pair.shortv)(**inputs).logits, before)

    def test_an_adapter_saved_and_loaded(self, load_pair, tmp_path):
        from peft import PeftModel

        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        plain = copy.deepcopy(pair.shortv)
        tuned = self.wrap(pair.shortv)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        tuned.save_pretrained(tmp_path)
        with torch.no_grad():
            expected = tuned(**inputs).logits
            actual = PeftModel.from_pretrained(plain, tmp_path)(**inputs).logits
        assert relative_error(actual, expected) <= TOLERANCE


def test_trainer(load_pair, tmp_path):
    """It reads the model's signature, trains, and saves a folder that loads again."""
    from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

    pair = load_pair()
    inputs = training_inputs(pair, *RAGGED[:2])
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=2, report_to=[], use_cpu=True, save_strategy="no", learning_rate=1e-2
    )
    trainer = Trainer(pair.shortv, arguments, train_dataset=[0], data_collator=lambda _: dict(inputs))
    trainer.train()
    trainer.save_model(tmp_path / "tuned")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "tuned", trust_remote_code=True)
    assert frozen_lists(loaded.config) == MIXED
    with torch.no_grad():
        expected = pair.shortv.eval()(**inputs).logits
        assert relative_error(loaded(**inputs).logits, expected) <= TOLERANCE

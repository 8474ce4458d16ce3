"""Layer Contribution against the plain loop: freeze one layer of the stock model, run all of it, compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

from shortv_export.base.definition import frozen_by_definition
from shortv_export.errors import ShortVError
from shortv_export.measure.layer_contribution import Contributions, layer_contributions
from shortv_export.options import Scoring
from shortv_export.records.scores import FORWARD, REVERSE
from tests.support.tiny_llava import build_tiny_llava

LAYERS = 4
FIRST = Scoring(positions="first", text_contribution=True)
QUESTIONS = ("USER: <image>\n what is in this picture ? ASSISTANT:", "USER: <image>\n a cat ? ASSISTANT:")
TWO_IMAGES = "USER: <image>\n and <image>\n how many cups of coffee are there ? ASSISTANT:"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny bases, built once each."""
    built: dict[str, Path] = {}

    def folder(model_type: str = "llava", text_model: str = "llama", key_value_heads: int = 4) -> Path:
        name = f"{model_type}-{text_model}-{key_value_heads}"
        if name not in built:
            built[name] = build_tiny_llava(
                tmp_path_factory.mktemp("bases") / name,
                model_type=model_type,
                num_layers=LAYERS,
                text_model=text_model,
                num_key_value_heads=key_value_heads,
                num_shards=3,
            )
        return built[name]

    return folder


def load(folder: Path, **kwargs: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **kwargs).eval()


def photo(seed: int, width: int = 80, height: int = 56) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(folder: Path, *prompts: str) -> Mapping[str, Tensor]:
    """Processor inputs, left-padded; images of different shapes."""
    processor = AutoProcessor.from_pretrained(folder)
    shapes = ((80, 56), (56, 120), (60, 60))
    images = [
        [photo(10 * row + place, *shapes[(row + place) % 3]) for place in range(prompt.count("<image>"))]
        for row, prompt in enumerate(prompts)
    ]
    return processor(images=images, text=list(prompts), padding=True, return_tensors="pt")


def divergence_of(original: Tensor, ablated: Tensor, divergence: str) -> Tensor:
    """KL by torch.nn.functional.kl_div, whose first argument is the second distribution."""
    first, second = original.double().log_softmax(-1), ablated.double().log_softmax(-1)
    if divergence == REVERSE:
        first, second = second, first
    return functional.kl_div(second, first, reduction="none", log_target=True).sum(-1)


def plain_loop(
    model: Any, inputs: Mapping[str, Tensor], divergence: str = FORWARD, answer: list[int] | None = None
) -> dict[str, Tensor]:
    """One whole forward pass of the stock model for each layer and ablation; ``(samples, layers)`` each.

    `answer` are the tokens after the prompt of a single sample, at each of which the passes are compared.
    """
    layers = model.model.language_model.layers
    prompt, tokens = inputs["input_ids"].shape[1], answer or [0]
    ids = torch.cat(
        [inputs["input_ids"], torch.tensor([tokens[:-1]], dtype=torch.long).expand(len(inputs["input_ids"]), -1)], 1
    )
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, prompt:])], 1)
    inputs = {**inputs, "input_ids": ids, "attention_mask": mask}
    visual = ids == model.config.image_token_id
    found = {}
    with torch.inference_mode():
        original = model(**inputs).logits[:, prompt - 1 :]
        for name, rows in (("visual", visual), ("attention", visual), ("ffn", visual), ("text", ~visual)):
            by_layer = []
            for layer in range(len(layers)):
                operators = {"frozen_attention": [layer]} if name == "attention" else {}
                operators |= {"frozen_ffn": [layer]} if name == "ffn" else {}
                with frozen_by_definition(layers, [] if operators else [layer], rows, **operators):
                    by_layer.append(divergence_of(original, model(**inputs).logits[:, prompt - 1 :], divergence))
            values = torch.stack(by_layer, dim=-1)  # (samples, positions, layers)
            found[name] = values[:, 0]
            if answer is not None and name != "text":
                found[f"answer_{name}"] = values.mean(1)
    return {**found, "visual_cosine_distance": cosine_distances(model, inputs)}


def cosine_distances(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Of each visual token before and after each layer, as hooks on the stock model see them; mean per sample."""
    visual = (inputs["input_ids"] == model.config.image_token_id).numpy()
    columns = []

    def compare(layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = (args[0] if args else kwargs["hidden_states"]).double().numpy()
        after = output.double().numpy()
        rows = [(before[row][chosen], after[row][chosen]) for row, chosen in enumerate(visual)]
        columns.append(
            [
                np.mean(1 - (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1))
                for one, two in rows
            ]
        )

    hooks = [layer.register_forward_hook(compare, with_kwargs=True) for layer in model.model.language_model.layers]
    with torch.inference_mode():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return torch.tensor(np.array(columns).T)


def assert_equal(measured: list[Contributions], expected: dict[str, Tensor]) -> None:
    """Within 1e-4 of each layer's value."""
    assert {frozenset(sample) for sample in measured} == {frozenset(expected) | {"tokens"}}
    for name, values in expected.items():
        found = torch.stack([sample[name] for sample in measured])
        tolerance = 1e-6 if name == "visual_cosine_distance" else 1e-9
        torch.testing.assert_close(
            found, values, rtol=1e-4, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
        if name == "text":
            assert bool((values > 1e-4).all()), "the comparison needs divergences that are not nearly zero"
        elif name != "visual_cosine_distance":
            assert found[:, -1].tolist() == [0.0] * len(measured)
            assert bool((values[:, :-1] > 1e-5).all()), name


@pytest.mark.parametrize(
    ("model_type", "text_model", "key_value_heads"),
    [
        ("llava", "llama", 4),
        ("llava", "qwen2", 2),
        ("llava_next", "llama", 1),
        ("llava_next", "mistral", 2),
    ],
)
@pytest.mark.parametrize("prompts", [QUESTIONS[:1], (*QUESTIONS, TWO_IMAGES)], ids=["one", "ragged"])
def test_equals_the_plain_loop(
    folders: Any, model_type: str, text_model: str, key_value_heads: int, prompts: tuple[str, ...]
) -> None:
    folder = folders(model_type, text_model, key_value_heads)
    model = load(folder)
    inputs = encoded(folder, *prompts)
    if len(prompts) > 1:
        assert len(set(inputs["attention_mask"].sum(1).tolist())) == 3, "lengths should differ"
    assert_equal(layer_contributions(model, [inputs], scoring=FIRST), plain_loop(model, inputs))


@pytest.mark.parametrize("divergence", [FORWARD, REVERSE])
def test_direction_of_the_divergence(folders: Any, divergence: str) -> None:
    model = load(folders())
    inputs = encoded(folders(), QUESTIONS[0])
    measured = layer_contributions(
        model, [inputs], scoring=replace(FIRST, divergence="reverse" if divergence == REVERSE else "forward")
    )
    assert_equal(measured, plain_loop(model, inputs, divergence))
    other = plain_loop(model, inputs, REVERSE if divergence == FORWARD else FORWARD)
    assert not torch.allclose(measured[0]["text"], other["text"][0], rtol=1e-3)


@pytest.mark.parametrize("max_batch_tokens", [1, 100])
def test_small_layer_calls_give_the_same(folders: Any, max_batch_tokens: int) -> None:
    model = load(folders())
    inputs = encoded(folders(), *QUESTIONS)
    calls: list[int] = []
    hook = model.model.language_model.layers[1].register_forward_pre_hook(
        lambda layer, args: calls.append(args[0].shape[0] * args[0].shape[1])
    )
    measured = layer_contributions(model, [inputs], scoring=replace(FIRST, max_batch_tokens=max_batch_tokens))
    hook.remove()
    assert max(calls) <= max(max_batch_tokens, inputs["input_ids"].numel())
    assert_equal(measured, plain_loop(model, inputs))


def test_layers_alone_give_the_same_in_a_third_of_the_calls(folders: Any) -> None:
    """The paper's measure does not depend on what else is measured, and pays for nothing else."""
    model = load(folders())
    tokens = []
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(lambda _, args, output: tokens.append(output[..., 0].numel()))
    found = {}
    for operators in (True, False):
        scoring = Scoring(positions="first", operators=operators)
        (result,) = layer_contributions(model, [encoded(folders(), QUESTIONS[0])], scoring=scoring)
        found[operators], states = result, sum(tokens) / result["tokens"][:2].sum().item()
        # The states through layer j are the original and k ablations of each layer before; and the operators' own. The
        # last layer computes one row, and one state for the cosine distance.
        kinds = 3 if operators else 1
        passes = sum(1 + kinds * layer for layer in range(LAYERS - 1)) + (kinds - 1) * (LAYERS - 1) + 1
        assert passes <= states < passes + 1
        tokens.clear()
    assert torch.equal(found[True]["visual"], found[False]["visual"])
    assert found[True].keys() - found[False].keys() == {"attention", "ffn"}


def test_eager_attention(folders: Any) -> None:
    model = load(folders(), attn_implementation="eager")
    inputs = encoded(folders(), *QUESTIONS)
    assert_equal(layer_contributions(model, [inputs], scoring=FIRST), plain_loop(model, inputs))


@pytest.mark.parametrize("text_model", ["mistral", "qwen2"])
def test_sliding_window(tmp_path: Path, text_model: str) -> None:
    folder = build_tiny_llava(tmp_path / "base", num_layers=LAYERS, text_model=text_model)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"sliding_window": 12}
    if text_model == "qwen2":
        config["text_config"] |= {
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention"] * (LAYERS // 2),
        }
    (folder / "config.json").write_text(json.dumps(config))
    model = load(folder)
    inputs = encoded(folder, *QUESTIONS)
    assert_equal(layer_contributions(model, [inputs], scoring=FIRST), plain_loop(model, inputs))


def test_one_layer(tmp_path: Path) -> None:
    folder = build_tiny_llava(tmp_path / "base", num_layers=1)
    inputs = encoded(folder, *QUESTIONS)
    model = load(folder)
    assert_equal(layer_contributions(model, [inputs], scoring=FIRST), plain_loop(model, inputs))


def test_offloaded_model(folders: Any) -> None:
    from accelerate import cpu_offload

    model = load(folders())
    inputs = encoded(folders(), *QUESTIONS)
    expected = plain_loop(model, inputs)
    cpu_offload(model, execution_device="cpu")
    assert model.model.language_model.layers[0].mlp.up_proj.weight.device.type == "meta"
    assert_equal(layer_contributions(model, [inputs], scoring=FIRST), expected)


def test_model_is_left_as_it_was(folders: Any) -> None:
    model = load(folders())
    inputs = encoded(folders(), QUESTIONS[0])
    with torch.inference_mode():
        before = model(**inputs).logits
        layer_contributions(model, [inputs], scoring=FIRST)
        torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)


def test_samples_come_one_by_one_and_in_order(folders: Any) -> None:
    model = load(folders())
    batches = [encoded(folders(), *QUESTIONS), encoded(folders(), TWO_IMAGES)]
    seen: list[Contributions] = []
    measured = layer_contributions(model, batches, scoring=FIRST, on_sample=seen.append)
    assert all(one is other for one, other in zip(measured, seen, strict=True))
    assert_equal(measured[2:], plain_loop(model, batches[1]))
    visual = [int((each["input_ids"] == model.config.image_token_id).sum()) for each in batches]
    assert [sample["tokens"][1].item() for sample in measured] == [visual[0] // 2, visual[0] // 2, visual[1]]


@pytest.mark.parametrize(
    ("prompt", "change", "message"),
    [
        ("USER: a cat ? ASSISTANT:", {}, "without visual tokens"),
        ("USER: a cat ? <image>", {}, "ends in an image"),
        (QUESTIONS[0], {"padding": "right"}, "padded on the right"),
        (QUESTIONS[0], {"training": True}, "training mode"),
        (QUESTIONS[0], {"weights": float("nan")}, "not finite"),
    ],
)
def test_bad_input(folders: Any, prompt: str, change: dict[str, Any], message: str) -> None:
    model = load(folders())
    processor = AutoProcessor.from_pretrained(folders())
    images = [photo(0)] if "<image>" in prompt else None
    inputs = dict(processor(images=images, text=[prompt], return_tensors="pt"))
    if change.get("padding") == "right":
        inputs["attention_mask"][:, -1] = 0
    if "weights" in change:
        model.lm_head.weight.data.fill_(change["weights"])
    model.train(change.get("training", False))
    with pytest.raises(ShortVError, match=message) as caught:
        layer_contributions(model, [inputs], scoring=FIRST)
    assert "\n" not in str(caught.value)


def test_no_samples(folders: Any) -> None:
    with pytest.raises(ShortVError, match="no samples"):
        layer_contributions(load(folders()), [], scoring=FIRST)


def test_out_of_memory_names_the_lever(folders: Any) -> None:
    model = load(folders())

    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.model.language_model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(ShortVError, match="lower `max_batch_tokens`") as caught:
        layer_contributions(model, [encoded(folders(), QUESTIONS[0])], scoring=FIRST)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_answers(folders: Any, model_type: str, attention: str) -> None:
    """The answer is the model's own, by its own cache; the plain loop runs prompt and answer in one pass."""
    model = load(folders(model_type), attn_implementation=attention)
    batches = [encoded(folders(model_type), prompt) for prompt in (*QUESTIONS, TWO_IMAGES)]
    # A repetition penalty would change the answer, and is left aside.
    model.generation_config.repetition_penalty = 50.0
    measured = layer_contributions(model, batches, scoring=Scoring(text_contribution=True))
    for inputs, sample in zip(batches, measured, strict=True):
        answer = greedy(model, inputs)
        length = int(sample["tokens"][2])
        assert 1 < length == len(answer)
        assert_equal([sample], plain_loop(model, inputs, answer=answer))
        first = layer_contributions(model, [inputs], scoring=FIRST)[0]
        torch.testing.assert_close(sample["visual"], first["visual"], rtol=1e-5, atol=1e-9)


def greedy(model: Any, inputs: Mapping[str, Tensor]) -> list[int]:
    """Token by token, by whole passes; a placeholder or the end ends it."""
    answer: list[int] = []
    ends = {model.generation_config.eos_token_id, model.config.image_token_id}
    while len(answer) < 32 and not (answer and answer[-1] in ends):
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer], dtype=torch.long)], 1)
        with torch.inference_mode():
            logits = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


def test_an_answer_that_is_empty_counts_at_its_first_token(folders: Any) -> None:
    model = load(folders())
    inputs = encoded(folders(), QUESTIONS[0])
    with torch.inference_mode():
        model.generation_config.eos_token_id = int(model(**inputs).logits[0, -1].argmax())
    (sample,) = layer_contributions(model, [inputs])
    assert sample["tokens"][2] == 1
    for name in ("visual", "attention", "ffn"):
        assert torch.equal(sample[name], sample[f"answer_{name}"])

"""Layer Contribution against the plain loop: freeze one layer of the stock model, run all of it, compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from shortv_export.measure.layer_contribution import FORWARD, REVERSE, LayerContributions, layer_contributions
from tests.support.tiny_llava import build_tiny_llava

LAYERS = 4
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


def plain_loop(model: Any, inputs: Mapping[str, Tensor], divergence: str = FORWARD) -> LayerContributions:
    """One whole forward pass of the stock model for each layer and token set."""
    layers = model.model.language_model.layers
    visual = inputs["input_ids"] == model.config.image_token_id
    results = []
    with torch.inference_mode():
        original = model(**inputs).logits[:, -1]
        for frozen in (visual, ~visual):
            rows = []
            for layer in range(len(layers)):
                with frozen_by_definition(layers, [layer], frozen):
                    rows.append(divergence_of(original, model(**inputs).logits[:, -1], divergence))
            results.append(torch.stack(rows, dim=1))
    return LayerContributions(*results, cosine_distances(model, inputs))


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


def assert_equal(measured: LayerContributions, expected: LayerContributions) -> None:
    """Within 1e-4 of each layer's value."""
    torch.testing.assert_close(measured.visual, expected.visual, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(measured.text, expected.text, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(measured.visual_cosine_distance, expected.visual_cosine_distance, rtol=1e-4, atol=1e-6)
    assert measured.visual[:, -1].tolist() == [0.0] * len(measured.visual)
    assert bool((expected.visual[:, :-1] > 1e-4).all()), "the comparison needs divergences that are not nearly zero"
    assert bool((expected.text > 1e-4).all())


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
    assert_equal(layer_contributions(model, [inputs]), plain_loop(model, inputs))


@pytest.mark.parametrize("divergence", [FORWARD, REVERSE])
def test_direction_of_the_divergence(folders: Any, divergence: str) -> None:
    model = load(folders())
    inputs = encoded(folders(), QUESTIONS[0])
    measured = layer_contributions(model, [inputs], divergence=divergence)
    assert_equal(measured, plain_loop(model, inputs, divergence))
    other = plain_loop(model, inputs, REVERSE if divergence == FORWARD else FORWARD)
    assert not torch.allclose(measured.text, other.text, rtol=1e-3)


@pytest.mark.parametrize("max_batch_tokens", [1, 100])
def test_small_layer_calls_give_the_same(folders: Any, max_batch_tokens: int) -> None:
    model = load(folders())
    inputs = encoded(folders(), *QUESTIONS)
    calls: list[int] = []
    hook = model.model.language_model.layers[1].register_forward_pre_hook(
        lambda layer, args: calls.append(args[0].shape[0] * args[0].shape[1])
    )
    measured = layer_contributions(model, [inputs], max_batch_tokens=max_batch_tokens)
    hook.remove()
    assert max(calls) <= max(max_batch_tokens, inputs["input_ids"].numel())
    assert_equal(measured, plain_loop(model, inputs))


def test_eager_attention(folders: Any) -> None:
    model = load(folders(), attn_implementation="eager")
    inputs = encoded(folders(), *QUESTIONS)
    assert_equal(layer_contributions(model, [inputs]), plain_loop(model, inputs))


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
    assert_equal(layer_contributions(model, [inputs]), plain_loop(model, inputs))


def test_one_layer(tmp_path: Path) -> None:
    folder = build_tiny_llava(tmp_path / "base", num_layers=1)
    inputs = encoded(folder, *QUESTIONS)
    model = load(folder)
    assert_equal(layer_contributions(model, [inputs]), plain_loop(model, inputs))


def test_offloaded_model(folders: Any) -> None:
    from accelerate import cpu_offload

    model = load(folders())
    inputs = encoded(folders(), *QUESTIONS)
    expected = plain_loop(model, inputs)
    cpu_offload(model, execution_device="cpu")
    assert model.model.language_model.layers[0].mlp.up_proj.weight.device.type == "meta"
    assert_equal(layer_contributions(model, [inputs]), expected)


def test_model_is_left_as_it_was(folders: Any) -> None:
    model = load(folders())
    inputs = encoded(folders(), QUESTIONS[0])
    with torch.inference_mode():
        before = model(**inputs).logits
        layer_contributions(model, [inputs])
        torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)


def test_samples_come_one_by_one_and_in_order(folders: Any) -> None:
    model = load(folders())
    batches = [encoded(folders(), *QUESTIONS), encoded(folders(), TWO_IMAGES)]
    seen: list[Tensor] = []
    measured = layer_contributions(model, batches, on_sample=seen.append)
    parts = (measured.visual, measured.text, measured.visual_cosine_distance)
    torch.testing.assert_close(torch.stack(seen), torch.stack(parts, dim=1), rtol=0, atol=0)
    assert_equal(LayerContributions(*(part[2:] for part in parts)), plain_loop(model, batches[1]))


@pytest.mark.parametrize(
    ("prompt", "change", "message"),
    [
        ("USER: a cat ? ASSISTANT:", {}, "without visual tokens"),
        ("USER: a cat ? <image>", {}, "ends in an image"),
        (QUESTIONS[0], {"padding": "right"}, "padded on the right"),
        (QUESTIONS[0], {"divergence": "kl"}, "divergence must be"),
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
        layer_contributions(model, [inputs], divergence=change.get("divergence", FORWARD))
    assert "\n" not in str(caught.value)


def test_no_samples(folders: Any) -> None:
    with pytest.raises(ShortVError, match="no samples"):
        layer_contributions(load(folders()), [])


def test_out_of_memory_names_the_lever(folders: Any) -> None:
    model = load(folders())

    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.model.language_model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(ShortVError, match="lower `max_batch_tokens`") as caught:
        layer_contributions(model, [encoded(folders(), QUESTIONS[0])])
    assert "\n" not in str(caught.value)

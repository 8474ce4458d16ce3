"""Layer Contribution against the plain loop: freeze one layer of the stock model, run all of it, compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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

from shortv_export.base_model import BaseModel, resolve_base
from shortv_export.calibration import Calibration, Sample
from shortv_export.contribution import FORWARD, REVERSE, LayerContributions, layer_contributions, score, write_scores
from shortv_export.errors import ShortVError
from shortv_export.oracle import frozen_by_definition
from shortv_export.recipe import Scores
from shortv_export.tiny import build_tiny_llava

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
    with pytest.raises(ShortVError, match="lower max_batch_tokens") as caught:
        layer_contributions(model, [encoded(folders(), QUESTIONS[0])])
    assert "\n" not in str(caught.value)


def calibration(count: int = 5) -> Calibration:
    samples = tuple(
        Sample(
            images=(photo(seed),),
            question=f"how many {'cups ' * seed}?",
            answer=None,
            digest=f"digest-{seed}",
        )
        for seed in range(count)
    )
    return Calibration(samples=samples, record={"data": "random pixels", "num_samples": count})


def interrupt_after_three(base: BaseModel, output: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(base, calibration(), output=output, progress=interrupt)


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_streaming_from_disk_gives_the_same(folders: Any, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = resolve_base(folders(model_type, "qwen2", 2))
    whole = score(base, calibration())
    assert score(base, calibration(), stream=True) == whole
    # Groups of one sample instead of one group for all.
    monkeypatch.setattr("shortv_export.contribution.STREAM_STATE_BYTES", 0)
    assert score(base, calibration(), stream=True) == whole


def test_streaming_a_damaged_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_tiny_llava(tmp_path / "base", num_layers=2)
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ShortVError, match=r"decoder layer 1 .*up_proj") as caught:
        score(resolve_base(folder), calibration(1), stream=True, output=tmp_path / "scores.json")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_streaming_excludes_a_device_map(folders: Any) -> None:
    with pytest.raises(ShortVError, match="exclude each other"):
        score(resolve_base(folders()), calibration(1), stream=True, device_map="auto")


def test_scores(folders: Any, tmp_path: Path) -> None:
    base = resolve_base(folders())
    progress: list[tuple[int, int]] = []
    scores = score(
        base,
        calibration(),
        output=tmp_path / "scores.json",
        progress=lambda done, total: progress.append((done, total)),
    )
    assert Scores.load(tmp_path / "scores.json") == scores
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert progress == [(done, 5) for done in range(6)]
    assert scores.num_samples == 5
    assert scores.visual[-1] == scores.visual_standard_error[-1] == 0.0
    assert scores.calibration == calibration().record
    assert scores.base == {"repo_id": None, "revision": None}

    single = [score(base, Calibration(samples=(sample,), record={})) for sample in calibration().samples]
    assert single[0].visual_standard_error == (0.0,) * LAYERS
    visual = np.array([one.visual for one in single])
    np.testing.assert_array_equal(scores.visual_samples, visual)
    cosines = np.mean([one.visual_cosine_distance for one in single], axis=0)
    np.testing.assert_allclose(scores.visual_cosine_distance, cosines, rtol=1e-12)
    np.testing.assert_allclose(scores.visual, visual.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scores.visual_standard_error, visual.std(0, ddof=1) / 5**0.5, rtol=1e-9)


@pytest.mark.parametrize("left_by", ["scores.json.partial.jsonl", "scores.json.partial-7.jsonl"])
def test_interrupted_run_goes_on(folders: Any, tmp_path: Path, left_by: str) -> None:
    base = resolve_base(folders())
    expected = score(base, calibration())
    output = tmp_path / "out" / "scores.json"
    partial = tmp_path / "out" / "scores.json.partial.jsonl"
    interrupt_after_three(base, output)
    assert [path.name for path in output.parent.iterdir()] == [partial.name]
    with partial.open("a") as file:
        file.write('\n{"settings": "')  # killed while writing
    partial.rename(output.parent / left_by)  # the run may have had more processes

    done: list[int] = []
    assert score(base, calibration(), output=output, progress=lambda number, _: done.append(number)) == expected
    assert done == [3, 4, 5]
    assert [path.name for path in output.parent.iterdir()] == ["scores.json"]


def test_samples_are_added_to_a_measurement(folders: Any, tmp_path: Path) -> None:
    base = resolve_base(folders())
    output = tmp_path / "scores.json"
    assert score(base, calibration(3), output=output, write=False) == score(base, calibration(3))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json.partial.jsonl"]
    done: list[int] = []
    more = score(base, calibration(5), output=output, write=False, progress=lambda number, _: done.append(number))
    assert done == [3, 4, 5]
    assert more == score(base, calibration(5))
    write_scores(more, output)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    assert Scores.load(output) == more


def test_finished_samples_of_other_settings_are_not_used(folders: Any, tmp_path: Path) -> None:
    base = resolve_base(folders())
    output = tmp_path / "scores.json"
    interrupt_after_three(base, output)
    done: list[int] = []
    reverse = score(
        base, calibration(), divergence=REVERSE, output=output, progress=lambda number, _: done.append(number)
    )
    assert done == [0, 1, 2, 3, 4, 5]
    assert reverse == score(base, calibration(), divergence=REVERSE)
    assert reverse.divergence == REVERSE


def test_output_that_cannot_be_written(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ShortVError, match="cannot write") as caught:
        score(resolve_base(folders()), calibration(1), output=tmp_path / "file" / "scores.json")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_processes_equal_one(folders: Any, tmp_path: Path) -> None:
    base = resolve_base(folders())
    script = tmp_path / "run.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_contribution import calibration, resolve_base, score\n"
        "score(resolve_base(sys.argv[2]), calibration(), output=Path(sys.argv[3]))\n"
    )
    output = tmp_path / "out" / "scores.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(script), str(Path(__file__).parent), str(base.path), str(output)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert [path.name for path in output.parent.iterdir()] == ["scores.json"]
    one, two = score(base, calibration()), Scores.load(output)
    np.testing.assert_allclose(two.visual, one.visual, rtol=1e-6)
    np.testing.assert_allclose(two.text, one.text, rtol=1e-6)
    np.testing.assert_allclose(two.visual_standard_error, one.visual_standard_error, rtol=1e-6)
    assert two.num_samples == 5

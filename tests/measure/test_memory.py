"""The estimate against what PyTorch and safetensors say, and limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shortv_export.base.model import load_base
from shortv_export.base.resolve import resolve_base
from shortv_export.base.shapes import LayerShape
from shortv_export.errors import ShortVError
from shortv_export.measure.memory import MemoryNeed, check_max_memory, estimate, free_bytes, stored_dtype, weight_bytes
from shortv_export.options import Scoring

LLAVA_13B = (LayerShape(5120, 13824, 5120, 5120),) * 40


@pytest.mark.parametrize(("dtype", "value_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_weights(tiny_base: Callable[..., Path], dtype: str, value_bytes: int) -> None:
    base = resolve_base(tiny_base(num_shards=3))
    files = [base.path / name for name in base.files if name.endswith(".safetensors")]
    model: Any = load_base(base, dtype=dtype)

    def size(module: Any) -> int:
        return sum(parameter.nbytes for parameter in module.parameters())

    layers = model.model.language_model.layers
    assert weight_bytes(files, value_bytes, stream=False) == size(model)
    assert weight_bytes(files, value_bytes, stream=True) == size(model) - size(layers) + size(layers[0])


def test_states_of_a_13b_model() -> None:
    need = estimate(0, LLAVA_13B, 640, 2, Scoring(max_batch_tokens=8192))
    assert need.states == 118 * 640 * 5120 * 2
    assert estimate(0, LLAVA_13B, 640, 4, Scoring(max_batch_tokens=8192)).states == 2 * need.states
    # 8192 tokens hold twelve states of 640 tokens; a state is never cut.
    assert need.layer_call == estimate(0, LLAVA_13B, 640, 2, Scoring(max_batch_tokens=12 * 640)).layer_call
    assert need.layer_call == 12 * estimate(0, LLAVA_13B, 640, 2, Scoring(max_batch_tokens=1)).layer_call


def test_the_widest_layer_counts() -> None:
    narrow, wide, visual = (LayerShape(64, *sizes) for sizes in ((96, 64, 64), (512, 64, 64), (96, 64, 64, 8, 512)))
    need = estimate(0, (wide,) * 4, 100, 4, Scoring(max_batch_tokens=1))
    assert estimate(0, (narrow, wide, narrow, narrow), 100, 4, Scoring(max_batch_tokens=1)) == need
    assert estimate(0, (narrow, narrow, narrow, visual), 100, 4, Scoring(max_batch_tokens=1)) == need
    assert estimate(0, (narrow,) * 4, 100, 4, Scoring(max_batch_tokens=1)).layer_call < need.layer_call


@pytest.mark.parametrize("shape", [(256, 688), (128, 512)])
def test_layer_call_against_the_allocator(shape: tuple[int, int]) -> None:
    """What the CPU allocator holds at most during a call of a stock layer, by the profiler, is near the estimate."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    hidden, intermediate = shape
    config = LlamaConfig(hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=4)
    config._attn_implementation = "sdpa"
    layer = LlamaDecoderLayer(config, 0).eval()
    states = torch.randn(4, 300, hidden)
    positions = torch.arange(300)[None].expand(4, -1)
    embeddings = LlamaRotaryEmbedding(config)(states, positions)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        layer(states, position_embeddings=embeddings, position_ids=positions, attention_mask=None)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    need = estimate(
        0, (LayerShape(hidden, intermediate, hidden, hidden),) * 40, 300, 4, Scoring(max_batch_tokens=1200)
    )
    assert 0.9 * peak < need.layer_call < 1.6 * peak


def test_free_memory_has_a_limit() -> None:
    device = torch.device("cpu")
    assert free_bytes(device) > 10_000_000
    assert free_bytes(device, {"cpu": "10MB"}) == 10_000_000
    assert free_bytes(device, {0: 5}) > 10_000_000


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    import psutil

    assert free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total // 1000


def test_refusal_has_the_numbers() -> None:
    need = MemoryNeed(26_000_000_000, 520_000_000, 840_000_000, 640)
    need.check(27_360_000_000, stream=False)
    with pytest.raises(ShortVError) as caught:
        need.check(24_000_000_000, stream=False)
    assert str(caught.value) == (
        "too little memory: it takes 27.4 GB for a sample of 640 tokens (weights 26 GB, states 0.52 GB, a layer call "
        "0.84 GB); 24 GB are free. What takes less: `stream`, `device_map` auto, `max_batch_tokens`, `dtype` bfloat16."
    )


@pytest.mark.parametrize(
    ("size", "expected"), [("20GiB", 20 * 2**30), ("10GB", 10**10), ("1.5GB", 1_500_000_000), ("0MB", 0), (7, 7)]
)
def test_sizes(size: int | str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_max_memory({"cpu": size})
    monkeypatch.setattr("shortv_export.measure.memory.available_memory", lambda: 10**15)
    assert free_bytes(torch.device("cpu"), {"cpu": size}) == expected


@pytest.mark.parametrize("size", ["", "20", "-1GB", "much", "infGiB", -1, "9" * 400 + "GiB", "1GB,0=2GB", "1GB "])
def test_sizes_that_are_none(size: int | str) -> None:
    with pytest.raises(ShortVError, match=r"; give ") as caught:
        check_max_memory({0: "1GB", "cpu": size})
    assert "\n" not in str(caught.value)


def test_the_dtype_of_the_files(tmp_path: Path) -> None:
    """What `from_pretrained` falls back to where a config names none."""
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, dtype=torch.int64), "b": torch.zeros(2, dtype=torch.bfloat16)}, file)
    assert stored_dtype([file]) is torch.bfloat16

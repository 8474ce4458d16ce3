"""Quantised weights: frozen layers against the definition inside vLLM, with the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from shortv_export.vllm.rows import TextQueries
from tests.vllm.engines import ask, by_definition, difference, engine, model_of

POLICY: dict[str, Any] = {"frozen": (0,), "attention": (1,), "ffn": (2, 3)}
EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*lm_head"],
}


def quantised(package: Path, out: Path) -> Path:
    """A copy of a package whose language model has 8-bit weights, as other tools write them."""
    shutil.copytree(package, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": INT8}))
    tensors = {}
    for name, tensor in load_file(out / "model.safetensors").items():
        if "language_model" in name and ".layers." in name and name.endswith("_proj.weight"):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().clamp(-128, 127).to(torch.int8)
            tensors[f"{name}_scale"] = scale
        else:
            tensors[name] = tensor
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_int8(llava: Callable[..., Path], tmp_path: Path) -> None:
    """8-bit weights and activations of compressed-tensors; a scale for each token."""
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsLinearMethod,
    )

    package = quantised(llava(**POLICY, num_key_value_heads=2, text_model="mistral"), tmp_path / "quantised")
    for chunk in (2048, 23):
        with engine(package, max_num_batched_tokens=chunk, max_num_seqs=8) as llm:
            model = model_of(llm)
            projections = [module for module in model.modules() if isinstance(module, TextQueries)]
            assert len(projections) == 2
            assert all(isinstance(part.quant_method, CompressedTensorsLinearMethod) for part in projections)
            assert all(part.parts is None for part in projections)
            found = ask(llm)
            steps = model.shortv_counter.steps
            with by_definition(model, **POLICY) as step:
                expected = ask(llm)
            with by_definition(model, []):
                dense = ask(llm)
        assert steps == step.count > 0
        assert difference(found, expected) <= 1e-5
        assert [answer.tokens for answer in dense] != [answer.tokens for answer in expected]

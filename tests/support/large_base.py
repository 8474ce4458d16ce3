"""A base of any size with random weights, and samples for it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch

PATCH = 14
"""Pixels per side of a patch."""


def write_checkpoint(folder: Path, shape: dict[str, int], num_layers: int) -> int:
    """Writes a base with random bfloat16 weights and a small vision tower (16 visual tokens).

    Each decoder layer has a file of its own, and no more than one layer is in memory at a time.

    Args:
        folder: created if missing.
        shape: `hidden_size`, `intermediate_size` and `num_attention_heads` of the text model.
        num_layers: decoder layers.

    Returns:
        Bytes of weights.
    """
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from shortv_export.measure.streaming import CheckpointLayers
    from tests.support.tiny_llava import build_tiny_llava, hub_tensor_name

    build_tiny_llava(folder, num_layers=1, image_size=4 * PATCH)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "bfloat16"
    config["text_config"] |= shape | {"num_hidden_layers": num_layers, "vocab_size": 32064, "dtype": "bfloat16"}
    config["text_config"] |= {"num_key_value_heads": shape["num_attention_heads"], "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    empty = CheckpointLayers(AutoConfig.from_pretrained(folder))
    files: dict[int | None, dict[str, torch.Size]] = {}
    for name, tensor in empty.model.state_dict().items():
        files.setdefault(empty.layer_of(hub_tensor_name(name)), {})[hub_tensor_name(name)] = tensor.shape
    size = 2 * sum(math.prod(shape) for shapes in files.values() for shape in shapes.values())
    if shutil.disk_usage(folder).free < 1.05 * size:
        raise SystemExit(f"the weights take {size / 1e9:.1f} GB, more than is free in {folder.parent}; set TMPDIR.")
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    weight_map = {}
    for number, shapes in enumerate(files.values(), start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file({name: _filled(shape, block) for name, shape in shapes.items()}, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(shapes, file))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return size


def _filled(shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    """Weights: matrices repeat `block`, scaled so that activations keep their size; vectors are ones."""
    if len(shape) < 2:
        return torch.ones(shape, dtype=torch.bfloat16)
    numbers = (block / math.prod(shape[1:]) ** 0.5).bfloat16()
    return numbers.repeat(-(-math.prod(shape) // len(numbers)))[: math.prod(shape)].view(shape)


def write_samples(folder: Path, count: int, image_size: int, tokens: int) -> Path:
    """Writes a folder of samples with random pixels and prompts of about `tokens` tokens."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    words = "cat " * (tokens - (image_size // PATCH) ** 2 - 5)  # five for the chat template
    lines = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "question": words}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder

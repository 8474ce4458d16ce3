"""Time to package a base of 26 GB: with a copy of its weights, and with a reference to them.

    python benchmarks/package_time.py --folder DIR

The base has the tensor names and shapes of llava-hf/llava-1.5-13b-hf in fp16. Its files are sparse: a valid
safetensors header, then holes, which are read as zeros without disk access. So the result is the time to hash and to
write; with real files, reading from disk comes on top. Copies on a file system with clones (Btrfs, XFS) are not
written: there, only the hashing is left.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import tempfile
import time
from dataclasses import replace
from pathlib import Path

SHARD_BYTES = 5_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="for temporary files; takes as much as the weights")
    parser.add_argument("--layers", type=int, default=40, help="decoder layers; fewer than 40 make a smaller base")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        os.environ["HF_HOME"] = str(folder / "hf-home")  # an empty cache; before huggingface_hub reads it

        from shortv_export.base.resolve import resolve_base
        from shortv_export.files import copies_are_clones
        from shortv_export.selection.presets import given_selection
        from tests.support.packages import make_package

        size = build_sparse_base(folder / "base", arguments.layers)
        print(f"base: {size:,} bytes of weights in {len(list((folder / 'base').glob('*.safetensors')))} files")
        print(f"copies are clones here: {copies_are_clones(folder / 'base' / 'config.json', folder)}")
        started = time.perf_counter()
        base = resolve_base(folder / "base")
        print(f"checking the base: {time.perf_counter() - started:.2f} s")
        base = replace(base, repo_id="acme/base", revision="0" * 40)  # so that it can be referred to
        for weights in ("copy", "reference"):
            started = time.perf_counter()
            make_package(base, folder / weights, given_selection([1], base.num_layers), weights=weights)
            seconds = time.perf_counter() - started
            print(f"package with weights {weights}: {seconds:.1f} s ({size / seconds / 1e9:.2f} GB/s)")


def build_sparse_base(folder: Path, layers: int) -> int:
    """Writes the base; returns the size of its weights in bytes."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from tests.support.tiny_llava import build_tiny_llava, hub_tensor_name

    # The processor, tokenizer and card are those of a tiny model; their size does not matter.
    build_tiny_llava(folder)
    (folder / "model.safetensors").unlink()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=layers,
            num_attention_heads=40,
            num_key_value_heads=40,
        ),
        image_token_index=32000,
        image_seq_length=576,
        dtype="float16",
        architectures=["LlavaForConditionalGeneration"],
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = LlavaForConditionalGeneration(config).state_dict()
    shards: list[dict[str, list[int]]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if filled + 2 * tensor.numel() > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][hub_tensor_name(name)] = list(tensor.shape)
        filled += 2 * tensor.numel()
    weight_map, total = {}, 0
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        total += write_sparse(folder / file, shapes)
        weight_map.update(dict.fromkeys(shapes, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def write_sparse(path: Path, shapes: dict[str, list[int]]) -> int:
    """Writes a sparse safetensors file of fp16 zeros; returns the size of the tensors in bytes."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + offset)
    return offset


if __name__ == "__main__":
    main()

"""Prefill and decoding in vLLM: a stock model and the same with frozen layers, in turn in one process.

    python benchmarks/serving.py                            # 64 + 576 tokens, hidden size 1024, 16 layers, 60 % frozen
    python benchmarks/serving.py --images 5                 # 64 + 2880 tokens
    python benchmarks/serving.py --batch-size 8 --compiled
    python benchmarks/serving.py --shape 7b --dtype bfloat16 --rounds 21  # on a GPU

It needs vLLM in the environment (`make test-vllm` makes one with its CPU build). Weights are random; time does not
depend on them. The seconds are those of the forward passes, without the vision tower, which is tiny, and without
the scheduler; "first token" is the whole request. Both are compared with the ratio of FLOPs by the paper's Eq. 5.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the models are in this process, where they can be timed
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import torch
import vllm
from PIL import Image
from vllm import LLM, SamplingParams

from shortv_export.base.cost import flops_ratio
from shortv_export.base.shapes import layer_shapes
from tests.support.tiny_llava import build_tiny_llava

TEXT_TOKENS, IMAGE_START, IMAGE_TOKENS, IMAGE_SIZE = 64, 35, 576, 336
SHAPES = {
    # hidden size, intermediate size, layers, heads
    "small": (1024, 2752, 16, 16),
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
}
DECODED = 24  # tokens


class Side:
    """A model in an engine of its own, and the seconds of its forward passes."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        tokens = arguments.batch_size * (TEXT_TOKENS + arguments.images * IMAGE_TOKENS)
        self.llm = LLM(
            str(folder),
            load_format="dummy",
            dtype=arguments.dtype,
            enforce_eager=not arguments.compiled,
            max_model_len=4096,
            max_num_batched_tokens=max(tokens, 4096),
            max_num_seqs=max(arguments.batch_size, 4),
            limit_mm_per_prompt={"image": arguments.images},
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            disable_log_stats=True,
            gpu_memory_utilization=0.45,
        )
        engine = self.llm.llm_engine.engine_core.engine_core
        self.model = engine.model_executor.driver_worker.worker.model_runner.model
        self.seconds: list[float] = []
        self.model.register_forward_pre_hook(lambda *_: self.seconds.append(-now()))
        self.model.register_forward_hook(self._done)

    def _done(self, *_: Any) -> None:
        self.seconds[-1] += now()

    def run(self, prompts: list[dict[str, Any]], new_tokens: int) -> float:
        """Runs one batch; returns the seconds of the whole. `seconds` then has those of each forward pass."""
        self.seconds.clear()
        start = now()
        params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        self.llm.generate(prompts, params, use_tqdm=False)
        return now() - start


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def write_models(folder: Path, arguments: argparse.Namespace) -> tuple[Path, Path, dict[str, Any]]:
    """The files of a LLaVA and of its package, without weights; and the config of the text model."""
    base = build_tiny_llava(folder / "base", image_size=IMAGE_SIZE, num_layers=1)
    hidden, intermediate, layers, heads = SHAPES[arguments.shape]
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["text_config"] |= {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": arguments.key_value_heads or heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": 4096,
        "layer_types": ["full_attention"] * layers,
    }
    (base / "model.safetensors").unlink()
    package = folder / "package"
    package.mkdir()
    for path in base.iterdir():
        (package / path.name).write_bytes(path.read_bytes())
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    frozen = list(range(layers - round(0.6 * layers), layers))
    config |= {
        "model_type": "shortv_llava",
        "architectures": ["ShortVLlavaForConditionalGeneration"],
        "frozen_layers": frozen,
    }
    (package / "config.json").write_text(json.dumps(config), "utf-8")
    return base, package, config


def prompts_of(arguments: argparse.Namespace, image_token: int, seed: int) -> list[dict[str, Any]]:
    """A batch of prompts with new pictures, so that nothing is found in a cache."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for _ in range(arguments.batch_size):
        ids = torch.randint(5, 50, (TEXT_TOKENS,), generator=generator).tolist()
        ids[IMAGE_START:IMAGE_START] = [image_token] * arguments.images
        pixels = torch.randint(0, 256, (arguments.images, 8, 8, 3), generator=generator, dtype=torch.uint8)
        images = [Image.fromarray(picture.numpy()).resize((IMAGE_SIZE, IMAGE_SIZE)) for picture in pixels]
        prompts.append({"prompt_token_ids": ids, "multi_modal_data": {"image": images}})
    return prompts


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the median of the rounds' ratios: a slow moment affects both sides of a round."""
    ratios = sorted(short / dense for dense, short in zip(times["dense"], times["short"], strict=True))
    return {
        "median_seconds": {side: statistics.median(values) for side, values in times.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "ratio_of_minima": min(times["short"]) / min(times["dense"]),
        "all_seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--images", type=int, default=1, help="each of 576 tokens")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--key-value-heads", type=int, help="default: multi-head attention")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compiled", action="store_true", help="with vLLM's default compilation")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--decode", action="store_true", help="measure decoding instead, which must cost the same")
    parser.add_argument("--output", type=Path, help="where to save the results as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base, package, config = write_models(Path(temporary), arguments)
        sides = {"dense": Side(base, arguments), "short": Side(package, arguments)}
    prefill: dict[str, list[float]] = {side: [] for side in sides}
    whole: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(arguments.rounds + 1):
        prompts = prompts_of(arguments, config["image_token_index"], number)
        for name in sorted(sides, reverse=number % 2 == 1):
            seconds = sides[name].run(prompts, DECODED if arguments.decode else 1)
            if number:  # the first round warms up
                whole[name].append(seconds)
                steps = sides[name].seconds
                prefill[name].append(statistics.median(steps[1:]) if arguments.decode else sum(steps))
    frozen, visual = config["frozen_layers"], arguments.images * IMAGE_TOKENS
    ratio = flops_ratio(layer_shapes(config["text_config"]), frozen, TEXT_TOKENS, visual)
    kind = "decoding step" if arguments.decode else "prefill"
    result = {
        "shape": arguments.shape,
        "text_tokens": TEXT_TOKENS,
        "visual_tokens": visual,
        "batch_size": arguments.batch_size,
        "layers": config["text_config"]["num_hidden_layers"],
        "num_frozen": len(frozen),
        "dtype": arguments.dtype,
        "compiled": arguments.compiled,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "vllm": vllm.__version__,
        "flops_ratio": ratio,
        kind: compared(prefill),
        "whole request": compared(whole),
    }
    print(f"{visual} + {TEXT_TOKENS} tokens, batch {arguments.batch_size}, shape {arguments.shape}", end=", ")
    print(f"{len(frozen)} of {result['layers']} layers frozen, {arguments.dtype}, {result['device']}", end=", ")
    print("compiled" if arguments.compiled else "eager")
    for name in (kind, "whole request"):
        row = result[name]
        dense, short = (row["median_seconds"][side] * 1e3 for side in ("dense", "short"))
        low, high = row["ratio_range"]
        print(f"  {name:14} dense {dense:9.1f} ms   ShortV {short:9.1f} ms", end="")
        print(f"   ratio {row['ratio']:.3f} ({low:.3f} to {high:.3f}), of minima {row['ratio_of_minima']:.3f}")
    if not arguments.decode:
        print(f"  FLOPs ratio {ratio:.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

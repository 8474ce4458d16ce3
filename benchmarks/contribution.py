"""Time and memory of measuring Layer Contribution: the layer-major walk compared with a plain loop.

    python benchmarks/contribution.py                                  # both, with 24 layers and 64 + 576 tokens
    python benchmarks/contribution.py --hidden-size 1024 --dtype bfloat16 --of visual text
    python benchmarks/contribution.py --growth                         # time for several numbers of layers and tokens
    python benchmarks/contribution.py --memory --hidden-size 1024 --layers 6 12 24  # peak memory, whole and streamed
    python benchmarks/contribution.py --processes 2                    # two processes of torchrun against one
    python benchmarks/contribution.py --shape 13b --layers 40          # streamed from disk; needs 26 GB of disk

The layer-major walk goes through the model layer by layer, with the states of all ablations as one batch (see
`shortv_export/measure/layer_contribution.py`). The plain loop runs the stock model once unchanged, and once for each
layer and kind of tokens with that layer frozen by a hook. It computes logits at the last position only; both sides
batch the samples. The model has the proportions of LLaVA-1.5-7B (the vision tower is a quarter as wide and three
quarters as deep as the language model). Its weights are random; time and memory do not depend on them. Run it on a
quiet machine: the load before and after is recorded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from shortv_export.base.definition import frozen_by_definition
from shortv_export.measure.layer_contribution import layer_contributions
from shortv_export.measure.streaming import load_streamed
from shortv_export.options import Samples, Scoring
from shortv_export.records import Scores, library_versions
from tests.support.large_base import PATCH, write_checkpoint, write_samples

GROWTH = [(6, 640), (12, 640), (24, 640), (24, 320), (24, 160)]  # layers, tokens
SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40},
}
"""Full-sized decoder layers of LLaVA-1.5."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[24])
    parser.add_argument("--tokens", type=int, nargs="+", default=[640], help="tokens of a prompt; most are visual")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--samples", type=int, default=1, help="samples in a batch; with --processes, in a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--max-batch-tokens", type=int, default=Scoring().max_batch_tokens)
    parser.add_argument("--of", nargs="+", choices=("visual", "text"), default=["visual"], help="tokens to freeze")
    parser.add_argument("--dtype", default="float32")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--growth", action="store_true", help="measure the time of the walk for several sizes")
    mode.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    mode.add_argument("--processes", type=int, help="measure samples per second with this many processes and with one")
    mode.add_argument("--shape", choices=SHAPES, help="score one sample with a base of this shape, streamed from disk")
    parser.add_argument("--json", type=Path, help="where to save the result")
    parser.add_argument("--peak-of", nargs=2, metavar=("FOLDER", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(measure_peak(Path(arguments.peak_of[0]), arguments.peak_of[1], arguments))
        return

    result: dict[str, Any] = {
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("json", "peak_of")},
        "machine": {"cpu_count": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": library_versions(),
        "load_before": os.getloadavg()[0],
        "rows": [],
    }
    measure, describe = compare_time, describe_time
    if arguments.growth:
        measure, describe = time_walk, describe_walk
    elif arguments.memory:
        measure, describe = compare_memory, describe_memory
    elif arguments.processes:
        measure, describe = compare_processes, describe_processes
    elif arguments.shape:
        measure, describe = score_from_disk, describe_from_disk
    sizes = [(layers, tokens) for layers in arguments.layers for tokens in arguments.tokens]
    for num_layers, tokens in GROWTH if arguments.growth else sizes:
        row = measure(num_layers, tokens, arguments)
        result["rows"].append({"layers": num_layers, "tokens": tokens, **row})
        print(describe(result["rows"][-1]), flush=True)
    result["load_after"] = os.getloadavg()[0]
    print(f"load average {result['load_before']:.1f} before, {result['load_after']:.1f} after")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def image_size_of(tokens: int) -> int:
    """Pixels per side of the largest image that leaves 16 text tokens."""
    return PATCH * math.isqrt(tokens - 16)


def time_walk(num_layers: int, tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of the layer-major walk."""
    model = llava_shaped(num_layers, image_size_of(tokens), arguments.hidden_size, arguments.dtype)
    inputs = make_inputs(model, arguments.samples, tokens)
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        layer_contributions(model, [inputs], scoring=scoring_of(arguments))
        seconds.append(time.perf_counter() - start)
    passes = layer_passes(num_layers, len(arguments.of))["layer_major"]
    return {"seconds": statistics.median(seconds), "layer_passes": passes, "all_seconds": seconds}


def scoring_of(arguments: argparse.Namespace) -> Scoring:
    """The paper's measure alone, at the first answer token."""
    text = "text" in arguments.of
    return Scoring(operators=False, text_contribution=text, max_batch_tokens=arguments.max_batch_tokens)


def layer_passes(num_layers: int, kinds: int) -> dict[str, int]:
    """Calls of a layer that each way needs for one sample."""
    return {
        "layer_major": num_layers + kinds * num_layers * (num_layers - 1) // 2,
        "plain_loop": num_layers * (kinds * num_layers + 1),
    }


def compare_processes(num_layers: int, tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of `shortv-export score` in one process and in several, each with one thread.

    A run with few samples and one with many give the rate of the additional samples, without the time to start.
    """
    from tests.support.tiny_llava import build_tiny_llava

    few, many = arguments.processes, arguments.processes * (1 + max(2, arguments.samples))
    with tempfile.TemporaryDirectory() as name:
        base = build_tiny_llava(
            Path(name) / "base",
            num_layers=num_layers,
            hidden_size=arguments.hidden_size,
            image_size=image_size_of(tokens),
        )
        data = write_samples(Path(name) / "data", many, image_size_of(tokens), tokens)
        rates, scores = {}, {}
        for processes in (1, arguments.processes):
            seconds = {}
            for samples in (few, many):
                output = Path(name) / f"scores-{processes}-{samples}.json"
                # One process uses torchrun too, so that both start alike.
                launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
                launch += ["-m", "shortv_export", "score", str(base)]
                options = ["--data", str(data), "--num-samples", str(samples), "--output", str(output)]
                options += ["--no-operators", "--json"]
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", *launch, *options],
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    check=True,
                    capture_output=True,
                )
                seconds[samples] = time.perf_counter() - start
            rates[processes] = (many - few) / (seconds[many] - seconds[few])
            scores[processes] = torch.tensor(Scores.load(output).visual)
    one, other = scores[1][:-1], scores[arguments.processes][:-1]  # the last layer's is zero
    return {
        "processes": arguments.processes,
        "samples_per_second": rates,
        "speedup": rates[arguments.processes] / rates[1],
        "largest_relative_difference": float(((one - other).abs() / one).max()),
    }


def score_from_disk(num_layers: int, tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and seconds of a process that scores one sample of a full-sized base with ``--stream``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "base"
        start = time.perf_counter()
        size = write_checkpoint(folder, SHAPES[arguments.shape], num_layers)
        row: dict[str, Any] = {
            "shape": arguments.shape,
            "disk_bytes": size,
            "write_seconds": time.perf_counter() - start,
        }
        write_samples(Path(name) / "data", 1, 4 * PATCH, tokens)
        start = time.perf_counter()
        lines = run_for_peak(folder, "scored", arguments)
        row["seconds"] = time.perf_counter() - start
        row["memory_line"] = next(line for line in lines if line.startswith("memory: "))
        row["peak_bytes"] = int(lines[-1])
    return row


def compare_time(num_layers: int, tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of the walk and of the plain loop, run in turn."""
    model = llava_shaped(num_layers, image_size_of(tokens), arguments.hidden_size, arguments.dtype)
    inputs = make_inputs(model, arguments.samples, tokens)
    walk_seconds, loop_seconds = [], []
    where: list[dict[str, float]] = []
    difference = 0.0
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        walk, parts = timed_walk(model, inputs, scoring_of(arguments))
        walk_seconds.append(time.perf_counter() - start)
        where.append(parts)
        start = time.perf_counter()
        loop = plain_loop(model, inputs, arguments.of)
        loop_seconds.append(time.perf_counter() - start)
        for kind, plain in loop.items():
            measured = torch.stack([sample[kind] for sample in walk])
            read = slice(-1) if kind == "visual" else slice(None)  # the last layer's visual contribution is 0
            relative = ((measured - plain).abs() / plain)[:, read].max()
            difference = float(torch.tensor(difference).maximum(relative))  # not a number, if one is
    visual_tokens = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
    return {
        "visual_tokens": visual_tokens,
        "text_tokens": inputs["input_ids"].shape[1] - visual_tokens,
        "layer_major_seconds": statistics.median(walk_seconds),
        "plain_loop_seconds": statistics.median(loop_seconds),
        "speedup": statistics.median(loop / walk for walk, loop in zip(walk_seconds, loop_seconds, strict=True)),
        "layer_passes": layer_passes(num_layers, len(arguments.of)),
        "where": {name: statistics.median(parts[name] for parts in where) for name in where[0]},
        "largest_relative_difference": difference,
        "all_layer_major_seconds": walk_seconds,
        "all_plain_loop_seconds": loop_seconds,
    }


def timed_walk(model: Any, inputs: Any, scoring: Scoring) -> tuple[Any, dict[str, float]]:
    """The layer-major walk and the seconds of each of its parts, measured by hooks on layers and the final norm."""
    text_model = model.model.language_model
    times: list[tuple[str, float]] = [("start", time.perf_counter())]

    def note(name: str) -> Any:
        return lambda *_: times.append((name, time.perf_counter()))

    hooks = [
        text_model.layers[-1].register_forward_pre_hook(note("last")),
        text_model.norm.register_forward_pre_hook(note("norm")),
    ]
    for layer in text_model.layers[:-1]:
        hooks += [layer.register_forward_pre_hook(note("before")), layer.register_forward_hook(note("after"))]
    try:
        walk = layer_contributions(model, [inputs], scoring=scoring)
    finally:
        for hook in hooks:
            hook.remove()
    end = time.perf_counter()

    def first(name: str) -> float:
        return next(moment for event, moment in times if event == name)

    layers = sum(
        moment - earlier
        for (before, earlier), (after, moment) in pairwise(times)
        if (before, after) == ("before", "after")
    )
    final_norm = max(moment for event, moment in times if event == "norm")
    preparation = first("before") - times[0][1]
    return walk, {
        "vision, embeddings and masks": preparation,
        "all layers but the last": layers,
        "last layer": final_norm - first("last"),
        "norm, head and divergence": end - final_norm,
        "copying states, putting rows back": first("last") - first("before") - layers,
    }


def plain_loop(model: Any, inputs: Any, kinds: list[str]) -> dict[str, torch.Tensor]:
    """Layer Contribution to visual or text tokens, with one whole forward pass for each layer and kind."""
    layers = model.model.language_model.layers
    visual = inputs["input_ids"] == model.config.image_token_id

    def log_probabilities() -> torch.Tensor:
        return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].double().log_softmax(-1)

    with torch.inference_mode():
        original = log_probabilities()
        results = {}
        for kind in kinds:
            frozen, rows = visual if kind == "visual" else ~visual, []
            for layer in range(len(layers)):
                with frozen_by_definition(layers, [layer], frozen):
                    rows.append((original.exp() * (original - log_probabilities())).sum(-1))
            results[kind] = torch.stack(rows, dim=1)
    return results


def compare_memory(num_layers: int, tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of a process: imports only; one batch with the whole model; one batch streamed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        llava_shaped(num_layers, image_size_of(tokens), arguments.hidden_size).save_pretrained(folder)
        row = {"weights_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}
        for mode in ("imports", "whole", "streamed"):
            row[f"{mode}_peak_bytes"] = int(run_for_peak(folder, mode, arguments, tokens)[-1])
    return row


def run_for_peak(folder: Path, mode: str, arguments: argparse.Namespace, tokens: int = 640) -> list[str]:
    """The lines that a fresh process prints; the last is its peak memory (see `measure_peak`)."""
    command = [sys.executable, __file__, "--peak-of", str(folder), mode, "--tokens", str(tokens)]
    for option in ("samples", "max_batch_tokens", "threads"):
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    # glibc returns only large freed buffers, above a threshold that moves up to 32 MiB. The buffers of a small model
    # are below it, unlike those of a real one, and the peak would vary by chance. So the threshold is fixed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def measure_peak(folder: Path, mode: str, arguments: argparse.Namespace) -> int:
    """Peak resident memory of this process, in bytes, after it has measured one batch."""
    from transformers import LlavaForConditionalGeneration

    if mode == "scored":
        import logging

        from shortv_export import pipeline

        logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)

        samples = Samples(str(folder.with_name("data")), 1)
        output = folder.with_name("scores.json")
        pipeline.score(str(folder), output=output, samples=samples, scoring=Scoring(operators=False, stream=True))
    elif mode != "imports":
        layers = None
        if mode == "streamed":
            model, layers = load_streamed(folder, sorted(folder.glob("*.safetensors")))
        else:
            model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
        inputs = make_inputs(model, arguments.samples, arguments.tokens[0])
        layer_contributions(model, [inputs], layers=layers, scoring=scoring_of(arguments))
    # Not from getrusage, which includes the peak of the parent process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def llava_shaped(num_layers: int, image_size: int, hidden_size: int, dtype: str = "float32") -> Any:
    """A LLaVA with the proportions of LLaVA-1.5-7B, in evaluation mode."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision_size = hidden_size // 4
    vision = CLIPVisionConfig(
        hidden_size=vision_size,
        intermediate_size=4 * vision_size,
        num_hidden_layers=num_layers * 3 // 4,
        num_attention_heads=max(1, vision_size // 64),
        image_size=image_size,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=8 * hidden_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11008 // 4096,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, hidden_size // 128),
        num_key_value_heads=max(1, hidden_size // 128),
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.model.language_model.layers.parameters():
        if parameter.dim() > 1:  # the stock initialisation makes every layer nearly the identity
            torch.nn.init.normal_(parameter, std=1 / parameter.shape[-1] ** 0.5)
    return model.to(getattr(torch, dtype))


def make_inputs(model: Any, samples: int, tokens: int) -> dict[str, torch.Tensor]:
    """A batch of random images, each inside a random text."""
    vision, text = model.config.vision_config, model.config.text_config
    visual_tokens = (vision.image_size // vision.patch_size) ** 2
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(6, text.vocab_size, (samples, tokens - visual_tokens), generator=generator)
    image = torch.full((samples, visual_tokens), model.config.image_token_id)
    return {
        "input_ids": torch.cat([words[:, :4], image, words[:, 4:]], dim=1),
        "attention_mask": torch.ones(samples, tokens, dtype=torch.long),
        "pixel_values": torch.randn(samples, 3, vision.image_size, vision.image_size, generator=generator).to(
            model.dtype
        ),
    }


def describe_walk(row: dict[str, Any]) -> str:
    each = row["seconds"] / row["layer_passes"] / row["tokens"]
    return (
        f"{row['layers']} layers, {row['tokens']} tokens: {row['seconds']:.2f} s, {row['layer_passes']} layer passes, "
        f"{1e6 * each:.2f} microseconds per pass and token"
    )


def describe_memory(row: dict[str, Any]) -> str:
    sizes = ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ')} {size / 1e6:.0f} MB"
        for name, size in row.items()
        if name.endswith("_bytes")
    )
    return f"{row['layers']} layers: {sizes}"


def describe_processes(row: dict[str, Any]) -> str:
    rates = ", ".join(f"{count}: {rate:.3g}" for count, rate in row["samples_per_second"].items())
    return (
        f"{row['layers']} layers, {row['tokens']} tokens: samples per second by processes {rates}; "
        f"{row['speedup']:.2f}x; largest relative difference {row['largest_relative_difference']:.1e}"
    )


def describe_from_disk(row: dict[str, Any]) -> str:
    return (
        f"{row['shape']} shape, {row['layers']} layers, {row['tokens']} tokens: {row['disk_bytes'] / 1e9:.2f} GB on "
        f"disk, written in {row['write_seconds']:.0f} s; scored in {row['seconds']:.0f} s with a peak of "
        f"{row['peak_bytes'] / 1e9:.2f} GB; {row['memory_line']}"
    )


def describe_time(row: dict[str, Any]) -> str:
    passes = row["layer_passes"]
    lines = [
        f"{row['layers']} layers, {row['visual_tokens']} + {row['text_tokens']} tokens: layer-major "
        f"{row['layer_major_seconds']:.2f} s, plain loop {row['plain_loop_seconds']:.2f} s, {row['speedup']:.2f}x "
        f"(by layer passes {passes['plain_loop'] / passes['layer_major']:.2f}x); "
        f"largest relative difference {row['largest_relative_difference']:.1e}"
    ]
    lines += [f"  {seconds / row['layer_major_seconds']:6.1%}  {name}" for name, seconds in row["where"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

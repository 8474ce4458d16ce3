"""Prefill time of the language model: dense, frozen, and the floor of each, in turn in one process.

    python benchmarks/prefill.py --shape llava-1.5 --hidden-size 1024 --layers 24 --output prefill.json

FLOPs alone are not the limit: products of 64 rows run at a lower rate than products of 640. So the benchmark measures
a *floor* beside each side: the unavoidable matrix products and attention of the layers at their real shapes, with the
model's own weights, back to back and nothing else. It prints medians, each side's time over its floor, and the
speed-up beside its two limits: 1 / FLOPs ratio, and floor of the dense model / floor of the frozen one.

Weights are random: time does not depend on them. It measures the code of this checkout's `modeling/`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, LlamaConfig

from shortv_export.families import modeling_dir
from shortv_export.flops import LayerShape, flops_ratio

TEXT_TOKENS = 64
# Visual tokens of the paper's cost model, and where they stand: after 35 tokens of prompt, as in LLaVA's template.
VISUAL_TOKENS = {"llava-1.5": 576, "llava-next": 2880}
IMAGE_START = 35


def remote_code():
    """`modeling/` as a package, which is what transformers makes of a repository's files."""
    spec = importlib.util.spec_from_loader("shortv_modeling", loader=None, is_package=True)
    package = importlib.util.module_from_spec(spec)
    package.__path__ = [str(modeling_dir())]
    sys.modules["shortv_modeling"] = package
    return (
        importlib.import_module("shortv_modeling.configuration_shortv_llava"),
        importlib.import_module("shortv_modeling.modeling_shortv_llava"),
    )


def build_model(arguments: argparse.Namespace) -> torch.nn.Module:
    """A LLaVA whose language model has the wanted shape, and whose vision tower is as small as can be."""
    configuration, modeling = remote_code()
    config = configuration.ShortVLlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=1000,
            hidden_size=arguments.hidden_size,
            intermediate_size=arguments.intermediate_size or round(arguments.hidden_size * 2.6875),
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.hidden_size // arguments.head_dim,
            num_key_value_heads=arguments.key_value_heads or arguments.hidden_size // arguments.head_dim,
            max_position_embeddings=4096,
        ),
        image_token_index=999,
        frozen_layers=[],
    )
    with torch.device(arguments.device):
        model = modeling.ShortVLlavaForConditionalGeneration._from_config(
            config, dtype=getattr(torch, arguments.dtype)
        )
    return model.eval()


def floor(model: torch.nn.Module, frozen: set[int], hidden: torch.Tensor, text: torch.Tensor) -> Callable[[], None]:
    """The matrix products and attention that a prefill cannot do without."""
    layers = model.model.language_model.layers
    heads = model.config.text_config.num_attention_heads
    keys = torch.arange(hidden.shape[1], device=hidden.device)
    bias = torch.zeros(len(text), len(keys), dtype=hidden.dtype, device=hidden.device)
    bias.masked_fill_(keys[None] > text[:, None], -torch.inf)
    text_hidden = hidden[:, text]

    def split(states: torch.Tensor, head_dim: int) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, head_dim).transpose(1, 2)

    def run() -> None:
        for index, layer in enumerate(layers):
            attention, mlp = layer.self_attn, layer.mlp
            rows = text_hidden if index in frozen else hidden
            query = split(F.linear(rows, attention.q_proj.weight), attention.head_dim)
            key = split(F.linear(hidden, attention.k_proj.weight), attention.head_dim)
            value = split(F.linear(hidden, attention.v_proj.weight), attention.head_dim)
            options = {"attn_mask": bias} if index in frozen else {"is_causal": True}
            output = F.scaled_dot_product_attention(query, key, value, enable_gqa=key.shape[1] != heads, **options)
            F.linear(output.transpose(1, 2).flatten(2), attention.o_proj.weight)
            gate = F.linear(rows, mlp.gate_proj.weight)
            F.linear(rows, mlp.up_proj.weight)
            F.linear(gate, mlp.down_proj.weight)

    return run


def in_turn(functions: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each function, all of them once per round, so that a slow moment of the machine meets them all."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 1):
        for name, function in functions.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=VISUAL_TOKENS, default="llava-1.5")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--intermediate-size", type=int, help="default: 2.6875 times the hidden size, as in Vicuna")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--key-value-heads", type=int, help="default: multi-head attention")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--num-frozen", type=int, help="default: 60 %% of the layers")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="where to save the results as JSON")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = build_model(arguments)
    visual_tokens = VISUAL_TOKENS[arguments.shape]
    tokens = TEXT_TOKENS + visual_tokens
    num_frozen = arguments.num_frozen or round(0.6 * arguments.layers)
    # Which ones does not matter for the time: the last ones, as in the paper's lists.
    frozen = list(range(arguments.layers - num_frozen, arguments.layers))
    visual = torch.zeros(arguments.batch_size, tokens, dtype=torch.bool, device=arguments.device)
    visual[:, IMAGE_START : IMAGE_START + visual_tokens] = True
    text = torch.nonzero(~visual[0]).flatten()
    hidden = torch.randn(
        arguments.batch_size, tokens, arguments.hidden_size, dtype=model.dtype, device=arguments.device
    )

    def prefill(frozen_layers: list[int]) -> Callable[[], None]:
        def run() -> None:
            model.freeze_layers(frozen_layers)
            model(inputs_embeds=hidden, visual_mask=visual, use_cache=True, logits_to_keep=1)

        return run

    with torch.inference_mode():
        times = in_turn(
            {
                "dense": prefill([]),
                "frozen": prefill(frozen),
                "dense_floor": floor(model, set(), hidden, text),
                "frozen_floor": floor(model, set(frozen), hidden, text),
            },
            arguments.repeats,
            arguments.device,
        )

    seconds = {name: statistics.median(values) for name, values in times.items()}
    shape = LayerShape.from_config(model.config.text_config.to_dict())
    ratio = flops_ratio(shape, arguments.layers, num_frozen, TEXT_TOKENS, visual_tokens)
    device = (
        torch.cuda.get_device_name() if arguments.device.type == "cuda" else platform.processor() or platform.machine()
    )
    result = {
        "shape": arguments.shape,
        "text_tokens": TEXT_TOKENS,
        "visual_tokens": visual_tokens,
        "hidden_size": arguments.hidden_size,
        "layers": arguments.layers,
        "num_frozen": num_frozen,
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "median_seconds": seconds,
        "flops_ratio": ratio,
        "time_ratio": seconds["frozen"] / seconds["dense"],
        "floor_ratio": seconds["frozen_floor"] / seconds["dense_floor"],
        "dense_over_floor": seconds["dense"] / seconds["dense_floor"],
        "frozen_over_floor": seconds["frozen"] / seconds["frozen_floor"],
        "speed_up": seconds["dense"] / seconds["frozen"],
        "speed_up_limit_by_flops": 1 / ratio,
        "speed_up_limit_by_floor": seconds["dense_floor"] / seconds["frozen_floor"],
        "all_seconds": times,
    }
    result["share_of_flops_limit"] = result["speed_up"] * ratio
    print(
        f"{visual_tokens} + {TEXT_TOKENS} tokens, {num_frozen} of {arguments.layers} layers frozen, {arguments.dtype}"
    )
    for side in ("dense", "frozen"):
        print(
            f"  {side:6} {seconds[side] * 1e3:9.1f} ms   floor {seconds[f'{side}_floor'] * 1e3:9.1f} ms"
            f"   time / floor {result[f'{side}_over_floor']:.3f}"
        )
    print(
        f"  time ratio {result['time_ratio']:.3f}   FLOPs ratio {ratio:.3f}   floor ratio {result['floor_ratio']:.3f}"
    )
    print(
        f"  speed-up {result['speed_up']:.2f}x   limit by FLOPs {result['speed_up_limit_by_flops']:.2f}x"
        f" ({result['share_of_flops_limit']:.0%} reached)   limit by floor {result['speed_up_limit_by_floor']:.2f}x"
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Prefill time of the language model, stock and frozen, and the least possible time of each.

    python benchmarks/prefill.py                      # 64 + 576 tokens, hidden size 1024, 24 layers
    python benchmarks/prefill.py --hidden-size 2048
    python benchmarks/prefill.py --shape llava-next   # 64 + 2880 tokens; with --memory, its peak memory
    python benchmarks/prefill.py --operators          # some layers freeze attention alone, some the FFN alone
    python benchmarks/prefill.py --mode compiled      # both models compiled; on a GPU, also --mode graphs: CUDA graphs
    python benchmarks/prefill.py --kernels            # kernels that each kind of layer launches, without any time
    python benchmarks/prefill.py --decode             # decoding, and a prefill with nothing frozen: must cost the same

FLOPs alone are not the limit: matrix products of 64 rows run at a lower rate than those of 640 rows. So a *floor* is
measured for each model: only the necessary matrix products and attention, at their real shapes and with the model's
weights. The result shows median times, time / floor, and the speed-up beside two limits: 1 / FLOPs ratio, and the
floor of the stock model / the floor of the frozen one.

Weights are random; time does not depend on them. The code measured is `modeling/` of this checkout.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from shortv_export.base.cost import flops_ratio
from shortv_export.base.definition import cache_name
from shortv_export.base.shapes import layer_shapes
from shortv_export.files.bundled import modeling_dir

TEXT_TOKENS = 64
# As in the paper's cost model. The image comes after 35 tokens, as in LLaVA's template.
VISUAL_TOKENS = {"llava-1.5": 576, "llava-next": 2880}
IMAGE_START = 35


def remote_code():
    """Imports `modeling/` as a package, as transformers does with the files of a repository."""
    spec = importlib.util.spec_from_loader("shortv_modeling", loader=None, is_package=True)
    package = importlib.util.module_from_spec(spec)
    package.__path__ = [str(modeling_dir())]
    sys.modules["shortv_modeling"] = package
    return (
        importlib.import_module("shortv_modeling.configuration_shortv_llava"),
        importlib.import_module("shortv_modeling.modeling_shortv_llava"),
    )


def build_models(arguments: argparse.Namespace) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A stock and a ShortV LLaVA with the same weights; the vision tower, which is not measured, is tiny."""
    configuration, modeling = remote_code()
    parts = {
        "vision_config": CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        "text_config": LlamaConfig(
            vocab_size=1000,
            hidden_size=arguments.hidden_size,
            intermediate_size=arguments.intermediate_size or round(arguments.hidden_size * 2.6875),
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.hidden_size // arguments.head_dim,
            num_key_value_heads=arguments.key_value_heads or arguments.hidden_size // arguments.head_dim,
            max_position_embeddings=4096,
        ),
        "image_token_index": 999,
    }
    dtype = getattr(torch, arguments.dtype)
    with torch.device(arguments.device):
        config = configuration.ShortVLlavaConfig(**parts, frozen_layers=[])
        shortv = modeling.ShortVLlavaForConditionalGeneration._from_config(config, dtype=dtype)
        stock = LlavaForConditionalGeneration._from_config(LlavaConfig(**parts), dtype=dtype)
    stock.load_state_dict(shortv.state_dict(), assign=True)
    return stock.eval(), shortv.eval()


def floor(
    model: torch.nn.Module, frozen: dict[str, list[int]], hidden: torch.Tensor, text: torch.Tensor
) -> Callable[[], None]:
    """Runs only the matrix products and attention that a prefill needs; on a GPU, as one CUDA graph."""
    frozen_attention = {*frozen["frozen_layers"], *frozen["frozen_attention"]}
    frozen_ffn = {*frozen["frozen_layers"], *frozen["frozen_ffn"]}
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
            rows = text_hidden if index in frozen_attention else hidden
            query = split(F.linear(rows, attention.q_proj.weight), attention.head_dim)
            key = split(F.linear(hidden, attention.k_proj.weight), attention.head_dim)
            value = split(F.linear(hidden, attention.v_proj.weight), attention.head_dim)
            options = {"attn_mask": bias} if index in frozen_attention else {"is_causal": True}
            output = F.scaled_dot_product_attention(query, key, value, enable_gqa=key.shape[1] != heads, **options)
            F.linear(output.transpose(1, 2).flatten(2), attention.o_proj.weight)
            rows = text_hidden if index in frozen_ffn else hidden
            gate = F.linear(rows, mlp.gate_proj.weight)
            F.linear(rows, mlp.up_proj.weight)
            F.linear(gate, mlp.down_proj.weight)

    if hidden.device.type != "cuda":
        return run
    run()  # libraries allocate their workspaces before anything is captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


VIEWS = (
    "alias",
    "as_strided",
    "detach",
    "expand",
    "lift_fresh",
    "permute",
    "select",
    "slice",
    "split",
    "squeeze",
    "t",
)
VIEWS += ("transpose", "unbind", "unsqueeze", "view", "_unsafe_view")


class Kernels(TorchDispatchMode):
    """Counts the operations that launch a kernel: views, and those on nothing, launch none."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        first = output[0] if isinstance(output, (tuple, list)) else output
        if name not in VIEWS and not (isinstance(first, torch.Tensor) and first.numel() == 0):
            self.counts[name] += 1
        return output


def in_turn(functions: dict[str, Callable[[], object]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each function. Each round runs all of them, so that a slow moment affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    wait = torch.cuda.synchronize if arguments.device.type == "cuda" else lambda: None
    for round_number in range(arguments.repeats + 1):
        for name, function in functions.items():
            wait()
            start = time.perf_counter()
            function()
            wait()
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
    parser.add_argument("--operators", action="store_true", help="a third of these layers freeze one operator each")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--mode", choices=("eager", "compiled", "graphs"), default="eager")
    parser.add_argument("--kernels", action="store_true", help="count kernels instead")
    parser.add_argument("--decode", action="store_true", help="measure what must not get slower instead")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--side", choices=("stock", "frozen"), help=argparse.SUPPRESS)  # used by --memory
    parser.add_argument("--output", type=Path, help="where to save the results as JSON")
    arguments = parser.parse_args()
    if arguments.memory and not arguments.side:
        result = measure_memory()
    else:
        with torch.inference_mode():
            result = Prefill(arguments).measure()
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


class Prefill:
    """One configuration: two models and a prompt, and the measurements."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.arguments = arguments
        self.stock, self.shortv = build_models(arguments)
        self.visual_tokens = VISUAL_TOKENS[arguments.shape]
        tokens = TEXT_TOKENS + self.visual_tokens
        self.now_frozen: dict[str, list[int]] | None = None
        self.num_frozen = arguments.num_frozen or round(0.6 * arguments.layers)
        # The time does not depend on which layers; the last ones are frozen, as in the paper's lists.
        layers = list(range(arguments.layers - self.num_frozen, arguments.layers))
        third = len(layers) // 3 if arguments.operators else 0
        self.frozen = {
            "frozen_layers": layers[2 * third :],
            "frozen_attention": layers[:third],
            "frozen_ffn": layers[third : 2 * third],
        }
        self.nothing: dict[str, list[int]] = {name: [] for name in self.frozen}
        if arguments.mode != "eager":
            for model in (self.stock, self.shortv):
                mode = "reduce-overhead" if arguments.mode == "graphs" else None
                model.forward = torch.compile(model.forward, mode=mode, dynamic=False)
        self.visual = torch.zeros(arguments.batch_size, tokens, dtype=torch.bool, device=arguments.device)
        self.visual[:, IMAGE_START : IMAGE_START + self.visual_tokens] = True
        size = (arguments.batch_size, tokens, arguments.hidden_size)
        self.hidden = torch.randn(size, dtype=self.stock.dtype, device=arguments.device)

    def measure(self) -> dict:
        if self.arguments.side:
            return self.measure_one_side()
        if self.arguments.kernels:
            return self.count_kernels()
        return self.measure_unchanged() if self.arguments.decode else self.measure_prefill()

    def run_stock(self) -> object:
        return self.stock(inputs_embeds=self.hidden, use_cache=True, logits_to_keep=1)

    def run_shortv(self, frozen: dict[str, list[int]]) -> object:
        if frozen != self.now_frozen:
            self.shortv.freeze_layers(**frozen)
            self.now_frozen = frozen
        return self.shortv(inputs_embeds=self.hidden, visual_mask=self.visual, use_cache=True, logits_to_keep=1)

    def measure_prefill(self) -> dict:
        """The prefill times of both models, and their floors."""
        arguments = self.arguments
        text = torch.nonzero(~self.visual[0]).flatten()
        times = in_turn(
            {
                "stock": self.run_stock,
                "frozen": lambda: self.run_shortv(self.frozen),
                "stock_floor": floor(self.shortv, self.nothing, self.hidden, text),
                "frozen_floor": floor(self.shortv, self.frozen, self.hidden, text),
            },
            arguments,
        )
        seconds = {name: statistics.median(values) for name, values in times.items()}
        shapes = layer_shapes(self.shortv.config.text_config.to_dict())
        ratio = flops_ratio(shapes, **self.frozen, text_tokens=TEXT_TOKENS, visual_tokens=self.visual_tokens)
        result = self.describe() | {
            "median_seconds": seconds,
            "flops_ratio": ratio,
            "time_ratio": seconds["frozen"] / seconds["stock"],
            "floor_ratio": seconds["frozen_floor"] / seconds["stock_floor"],
            "stock_over_floor": seconds["stock"] / seconds["stock_floor"],
            "frozen_over_floor": seconds["frozen"] / seconds["frozen_floor"],
            "speed_up": seconds["stock"] / seconds["frozen"],
            "speed_up_limit_by_flops": 1 / ratio,
            "speed_up_limit_by_floor": seconds["stock_floor"] / seconds["frozen_floor"],
            "share_of_flops_limit": seconds["stock"] / seconds["frozen"] * ratio,
            "all_seconds": times,
        }
        for side in ("stock", "frozen"):
            print(
                f"  {side:6} {seconds[side] * 1e3:9.1f} ms   floor {seconds[f'{side}_floor'] * 1e3:9.1f} ms"
                f"   time / floor {result[f'{side}_over_floor']:.3f}"
            )
        print(f"  time ratio {result['time_ratio']:.3f}   FLOPs ratio {ratio:.3f}", end="")
        print(f"   floor ratio {result['floor_ratio']:.3f}")
        print(f"  speed-up {result['speed_up']:.2f}x   limit by FLOPs {1 / ratio:.2f}x", end="")
        print(f" ({result['share_of_flops_limit']:.0%} reached)", end="")
        print(f"   limit by floor {result['speed_up_limit_by_floor']:.2f}x")
        return result

    def count_kernels(self) -> dict:
        """Kernels per layer: of a stock layer, and of one that freezes both operators, attention, or the FFN."""

        def kernels(run: Callable[[], object]) -> Counter[str]:
            with Kernels() as counted:
                run()
            return counted.counts

        result = self.describe()
        nothing = kernels(lambda: self.run_shortv(self.nothing))
        stock = kernels(self.run_stock)
        config = self.stock.model.language_model.config
        config.num_hidden_layers -= 1  # it then leaves out the last layer
        layer = {"stock": stock.total() - kernels(self.run_stock).total()}
        config.num_hidden_layers += 1
        for name in self.nothing:
            # One more layer of a kind, in the place of a dense one: what all layers share is counted out.
            one, two = (kernels(lambda: self.run_shortv({**self.nothing, name: [*range(n)]})) for n in (1, 2))  # noqa: B023
            layer[name] = layer["stock"] + two.total() - one.total()
        result["kernels_per_layer"] = layer
        assert nothing == stock, "with nothing frozen, the model must run as stock"
        for name, count in layer.items():
            print(f"  {name:17} {count} kernels per layer, {count / layer['stock']:.2f} of a stock layer's")
        return result

    def measure_unchanged(self) -> dict:
        """Decoding after a frozen prefill, and a prefill with nothing frozen, each against the stock model."""
        token = torch.full((self.arguments.batch_size, 1), 5, device=self.arguments.device)
        caches = {
            name: {cache_name(output): output[cache_name(output)]}
            for name, output in {"stock": self.run_stock(), "shortv": self.run_shortv(self.frozen)}.items()
        }

        def step(name: str, model: torch.nn.Module) -> None:
            model(input_ids=token, use_cache=True, **caches[name])

        def steps(name: str, model: torch.nn.Module) -> Callable[[], None]:
            return lambda: [step(name, model) for _ in range(10)] and None

        decode = in_turn({"stock": steps("stock", self.stock), "shortv": steps("shortv", self.shortv)}, self.arguments)
        prefill = in_turn({"stock": self.run_stock, "shortv": lambda: self.run_shortv(self.nothing)}, self.arguments)
        result = self.describe()
        for name, times in {"ten_decoding_steps": decode, "prefill_nothing_frozen": prefill}.items():
            seconds = {side: statistics.median(values) for side, values in times.items()}
            # The median of each round's ratio, since a slow moment affects both sides of a round.
            ratio = statistics.median(b / a for a, b in zip(times["stock"], times["shortv"], strict=True))
            result[name] = {"median_seconds": seconds, "ratio": ratio, "all_seconds": times}
            print(f"  {name.replace('_', ' '):24} stock {seconds['stock'] * 1e3:9.1f} ms", end="")
            print(f"   ShortV {seconds['shortv'] * 1e3:9.1f} ms   ratio {ratio:.3f}")
        return result

    def measure_one_side(self) -> dict:
        """Prints by how many bytes one prefill raises the peak memory of this process."""
        before = peak_memory(self.arguments.device, reset=True)
        if self.arguments.side == "stock":
            self.run_stock()
        else:
            self.run_shortv(self.frozen)
        print(peak_memory(self.arguments.device) - before)
        return {}

    def describe(self) -> dict:
        """The configuration and the machine; also prints them."""
        arguments = self.arguments
        on_gpu = arguments.device.type == "cuda"
        print(f"{self.visual_tokens} + {TEXT_TOKENS} tokens, batch {arguments.batch_size}, hidden size", end=" ")
        kinds = ", ".join(f"{len(layers)} {name}" for name, layers in self.frozen.items() if layers)
        print(f"{arguments.hidden_size}, {arguments.layers} layers: {kinds}, {arguments.dtype}, {arguments.mode}")
        return {
            "shape": arguments.shape,
            "text_tokens": TEXT_TOKENS,
            "visual_tokens": self.visual_tokens,
            "hidden_size": arguments.hidden_size,
            "layers": arguments.layers,
            **self.frozen,
            "mode": arguments.mode,
            "batch_size": arguments.batch_size,
            "dtype": arguments.dtype,
            "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def measure_memory() -> dict:
    """The peak memory that a prefill adds, each model in a fresh process."""
    command = [sys.executable, *sys.argv]
    added = {}
    for side in ("stock", "frozen"):
        output = subprocess.run([*command, "--side", side], check=True, capture_output=True, text=True).stdout
        added[side] = int(output.splitlines()[-1])
        print(f"  {side:6} prefill adds {added[side] / 2**20:9.1f} MiB to the peak")
    return {"added_bytes": added, "ratio": added["frozen"] / added["stock"]}


def peak_memory(device: torch.device, reset: bool = False) -> int:
    """Peak bytes on the GPU, or of the resident set of this process (Linux only). `reset` first clears the peak."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert peak is not None
    return int(peak[1]) * 1024


if __name__ == "__main__":
    main()

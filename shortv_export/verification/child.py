"""Runs in a fresh, isolated process: loads a package as any user would and compares it with its definition.

``python -I child.py`` reads a JSON object from standard input (see `_Run`) and prints the checks as a JSON list, up to
and including the first that failed. Before it is started, the package's remote code was found to be this release's.
"""

import gc
import itertools
import json
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

import torch
import transformers

sys.modules["shortv_export"] = None  # type: ignore[assignment]  # importing it raises from here on

# Relative to the largest value. In fp32, the order of additions makes this much difference.
TOLERANCE = 1e-5
_SEED = 0
_NEW_TOKENS = 8


class _Failed(Exception):
    """A check failed; the message says why."""


def main() -> None:
    """Runs the checks in order and prints them."""
    checks = []
    run = _Run(json.load(sys.stdin))
    looks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("self-contained", _self_contained),
        ("loads", run.load),
        ("inputs", run.same_inputs),
        ("frozen", run.frozen),
        ("generates", run.generate),
        ("definition", run.definition),
    )
    for name, look in looks:
        try:
            checks.append({"name": name, "passed": True, "detail": look()})
        except _Failed as failure:
            checks.append({"name": name, "passed": False, "detail": str(failure)})
            break
    print("\n" + json.dumps(checks))
    gc.freeze()  # else Python looks through all objects for garbage when it ends, for 1 to 2 seconds


def _self_contained() -> str:
    try:
        import shortv_export  # noqa: F401
    except ImportError:
        return "loads in a process without shortv_export"
    raise _Failed("shortv_export could be imported, so the package may depend on it.")


class _Run:
    """Runs the package's model first, then the stock model, so that only one is in memory.

    Attributes:
        task: ``package`` and ``stock`` (folders), ``model_class`` and ``base_class`` (names of classes), ``prompt``
            (for a processor without chat template), ``definition`` (a Python file), ``frozen`` (the lists of
            ``config.json``), ``resident_layers`` (how many decoder layers memory holds at a time; None for all) and
            ``offload_folder`` (where loading may write).
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.stock_definition = _module(task["definition"])
        self.model: Any = None
        self.inputs: Any = None
        self.logits = torch.empty(0)
        self.cached: list[list[torch.Tensor]] = []
        self.visual = torch.empty(0)
        # Layers on disk are read again for each token.
        self.new_tokens = _NEW_TOKENS if task["resident_layers"] is None else 1

    def load(self) -> str:
        """Loads the model with all its weights, and makes inputs of one image and one question."""
        self.model = self._from_pretrained(transformers.AutoModel, "package", trust_remote_code=True)
        name = type(self.model).__name__
        if name != self.task["model_class"]:
            raise _Failed(f"AutoModel loads a {name}, not a {self.task['model_class']}.")
        self.inputs = self._inputs_of("package", trust_remote_code=True)
        self.visual = self.stock_definition.visual_tokens(self.model.config, self.inputs["input_ids"])
        if not self.visual.any():
            raise _Failed("the processor puts no visual token into a prompt with an image.")
        return f"{name}, every weight found"

    def same_inputs(self) -> str:
        """Compares the inputs with those of the base's processor, which transformers may choose by model type."""
        expected = self._inputs_of("stock")
        for name in sorted(expected.keys() | self.inputs.keys()):
            found, wanted = self.inputs.get(name), expected.get(name)
            if found is None or wanted is None or not torch.equal(found, wanted):
                raise _Failed(f"for an image and a question, its processor makes other {name} than the base's.")
        return "its processor makes the same inputs of an image and a question as the base's"

    def frozen(self) -> str:
        """Compares what the model reports to have skipped in one forward pass with its list."""
        with torch.inference_mode():
            output = self.model(**self.inputs, use_cache=True)
        self.logits, self.cached = output.logits, self._cached(output)
        report = self.model.shortv_report()
        lists, visual = self.task["frozen"], int(self.visual.sum())
        decoder = self.stock_definition.text_decoder(self.model).layers
        attention, ffn = ([*lists["frozen_layers"], *lists[name]] for name in ("frozen_attention", "frozen_ffn"))
        # Linear attention and convolutions run for every token.
        attention = [layer for layer in attention if hasattr(decoder[layer], "self_attn")]
        expected = {
            **lists,
            # A model that freezes nothing does not look for visual tokens.
            "visual_tokens": visual if any(lists.values()) else 0,
            "skipped_attention": len(attention) * visual,
            "skipped_ffn": len(ffn) * visual,
        }
        for key, value in expected.items():
            seen = list(report[key]) if key in lists else report[key]
            if seen != value:
                raise _Failed(f"the model reports {key} {seen} instead of {value}.")
        return f"{visual} visual tokens skipped attention in {len(attention)} layers and the FFN in {len(ffn)}"

    def generate(self) -> str:
        """Generates a greedy answer, then frees the model's memory."""
        with torch.inference_mode():
            answer = self.model.generate(**self.inputs, max_new_tokens=self.new_tokens, do_sample=False)
        new = answer.shape[1] - self.inputs["input_ids"].shape[1]
        self.model = None
        gc.collect()
        if new < 1:
            raise _Failed("the model generates nothing.")
        return f"{new} tokens"

    def definition(self) -> str:
        """Compares with the stock model of the same weights, in which what is frozen adds nothing to visual rows."""
        stock = self._from_pretrained(getattr(transformers, self.task["base_class"]), "stock")
        layers = self.stock_definition.text_decoder(stock).layers
        frozen = self.stock_definition.frozen_by_definition(layers, frozen=self.visual, **self.task["frozen"])
        with torch.inference_mode(), frozen:
            expected = stock(**self.inputs, use_cache=True)
        logits = _difference(self.logits, expected.logits)
        if not logits <= TOLERANCE:  # a NaN fails too
            raise _Failed(f"the logits differ from the definition by {logits:.2g} of their scale.")
        pairs = zip(self.cached, self._cached(expected), strict=True)
        cached = [max(itertools.starmap(_difference, zip(found, wanted, strict=True))) for found, wanted in pairs]
        for layer, difference in enumerate(cached):
            if not difference <= TOLERANCE:
                raise _Failed(f"keys and values of layer {layer} differ from the definition by {difference:.2g}.")
        return (
            f"logits within {logits:.2g}, keys and values of all layers within {max(cached):.2g} "
            "of the base's with visual rows put back"
        )

    def _inputs_of(self, folder: str, **options: Any) -> dict[str, torch.Tensor]:
        try:
            processor = transformers.AutoProcessor.from_pretrained(self.task[folder], **options)
        except Exception as error:  # transformers raises many kinds; an ImportError says what to install
            raise _Failed(f"the {folder} processor does not load: {_one_line(error)}") from None
        inputs = _inputs(processor, self.task["prompt"])
        return dict(self.stock_definition.placed(self.model, inputs))

    def _cached(self, output: Any) -> list[list[torch.Tensor]]:
        """Each layer's cached keys and values, ``(batch, key heads, tokens)``.

        Each vector is projected onto one random direction: whole caches of a long prompt would take gigabytes.
        """
        kept = []
        for layer in output[self.stock_definition.cache_name(output)].layers:
            generator = torch.Generator().manual_seed(_SEED)
            states = self.stock_definition.cached_states(layer)
            kept.append([each.cpu() @ torch.randn(each.shape[-1], generator=generator) for each in states])
        return kept

    def _from_pretrained(self, auto: Any, folder: str, **options: Any) -> Any:
        options |= {"dtype": torch.float32, "use_safetensors": True}
        try:
            options |= self._placement(auto, folder, **options) | {"output_loading_info": True}
            model, loading = auto.from_pretrained(self.task[folder], **options)
        except Exception as error:  # transformers raises many kinds
            raise _Failed(f"the {folder} model does not load: {_one_line(error)}") from None
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if loading[kind]:
                some = ", ".join(sorted(map(str, loading[kind]))[:3])
                raise _Failed(f"the {folder} model loads with {kind.replace('_', ' ')}: {some}.")
        return model.eval()

    def _placement(self, auto: Any, folder: str, trust_remote_code: bool = False, **_: Any) -> dict[str, Any]:
        """Leaves the last decoder layers on disk if memory does not hold all."""
        resident = self.task["resident_layers"]
        if resident is None:
            return {}
        config = transformers.AutoConfig.from_pretrained(self.task[folder], trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            if auto is transformers.AutoModel:
                skeleton = auto.from_config(config, trust_remote_code=trust_remote_code)
            else:
                skeleton = auto._from_config(config)
        away = self.stock_definition.text_decoder(skeleton).layers[resident:]
        layers = [name for name, module in skeleton.named_modules() if any(module is layer for layer in away)]
        names = (*dict(skeleton.named_parameters()), *dict(skeleton.named_buffers()))
        kept = [name for name in names if not name.startswith(tuple(f"{layer}." for layer in layers))]
        device_map = {**dict.fromkeys(layers, "disk"), **dict.fromkeys(kept, "cpu")}
        return {"device_map": device_map, "offload_folder": self.task["offload_folder"]}


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute difference, relative to the expected tensor's largest absolute value."""
    return (found - expected).abs().max().item() / max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)


def _inputs(processor: Any, plain_prompt: str) -> Any:
    """Inputs for an image of noise and a question, by the chat template or else the family's plain prompt."""
    from PIL import Image

    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randint(256, (240, 320, 3), generator=generator, dtype=torch.uint8)
    question = "What is in this picture?"
    if processor.chat_template:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        prompt = plain_prompt.replace("<image>", getattr(processor, "image_token", "<image>"))
        prompt = prompt.format(question=question)
    try:
        inputs = processor(images=[Image.fromarray(noise.numpy())], text=[prompt], return_tensors="pt")
    except Exception as error:  # processors raise many kinds
        raise _Failed(f"the processor takes no image: {_one_line(error)}") from None
    inputs.pop("labels", None)  # some processors make labels for training
    return inputs


def _module(path: str) -> Any:
    """Imports a module from its file."""
    loader = SourceFileLoader("definition", path)
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    main()

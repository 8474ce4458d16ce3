"""A stock model and the ShortV model made from its weights, whose results the stock model defines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

# The name of the cache in a model's arguments and output.
CACHE = "cache" if Version(version("transformers")) >= Version("5.24") else "past_key_values"

TOLERANCE = 1e-5  # relative error of fp32 results against the definition

# Text configs of which some layers have a sliding window, shorter than the prompts.
SLIDING = {
    "mistral": {"sliding_window": 12},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 12,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
}

# Rows differ in length, number of images and their places.
RAGGED = (
    "USER: <image>\n what is in this picture ? ASSISTANT:",
    "USER: is there a cat <image>\n or a rocket <image>\n in the picture ? answer with one word . ASSISTANT:",
    "USER: <image>\n yes",
    "USER: is the sky in the picture ? ASSISTANT:",
)


def edit_config(folder: Path, text_config: dict[str, Any] | None = None, **fields: Any) -> Path:
    """Sets fields of a `config.json` and of its `text_config`; ``...`` removes a field."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for target, values in ((config, fields), (config["text_config"], text_config or {})):
        target.update(values)
        for name in [name for name, value in values.items() if value is ...]:
            del target[name]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


LISTS = ("frozen_layers", "frozen_attention", "frozen_ffn")

# What tests freeze unless they say otherwise: a layer of each kind, and one with nothing frozen.
MIXED = {"frozen_layers": [0], "frozen_attention": [1], "frozen_ffn": [2]}


def make_shortv(folder: Path, frozen_layers: Any, **operators: Any) -> Path:
    """Turns the folder of a stock model into a ShortV model: adds the code and edits the config.

    Args:
        operators: `frozen_attention` and `frozen_ffn` of the config.
    """
    from shortv_export.base.families import FAMILIES

    family = FAMILIES[json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]]
    for name in family.code:
        (folder / name).write_text(family.source(name), encoding="utf-8")
    return edit_config(
        folder,
        model_type=family.shortv_model_type,
        architectures=[family.model_class],
        auto_map=family.auto_map,
        frozen_layers=frozen_layers,
        **operators,
    )


@dataclass
class Pair:
    """A stock LLaVA and the ShortV model made from the same weights, with their processor."""

    base: Path
    folder: Path
    stock: Any
    shortv: Any
    processor: Any
    photos: dict[str, Any]

    def inputs(self, *prompts: str, padding_side: str = "left") -> Any:
        """Processor outputs; each `<image>` takes the next photograph."""
        photos = list(self.photos.values())
        images = [photos[index % len(photos)] for index in range(sum(prompt.count("<image>") for prompt in prompts))]
        return self.processor(
            images=images or None,
            text=list(prompts),
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
        )

    def embedded(self, *prompts: str) -> tuple[Any, Any]:
        """Inputs with `inputs_embeds` instead of `input_ids`, and their visual rows."""
        inputs = self.inputs(*prompts)
        visual = self.visual(inputs)
        inputs["inputs_embeds"] = self.stock.get_input_embeddings()(inputs.pop("input_ids")).detach()
        return inputs, visual

    def merged(self, *prompts: str) -> tuple[Any, Any]:
        """As `embedded`, with image features in the place of placeholders."""
        import torch

        inputs, visual = self.embedded(*prompts)
        with torch.no_grad():
            features = self.stock.model.get_image_features(
                inputs.pop("pixel_values"),
                vision_feature_layer=self.stock.config.vision_feature_layer,
                vision_feature_select_strategy=self.stock.config.vision_feature_select_strategy,
                return_dict=True,
            ).pooler_output
        inputs["inputs_embeds"][visual] = torch.cat(list(features))
        return inputs, visual

    def visual(self, inputs: Any) -> Any:
        return inputs["input_ids"] == self.stock.config.image_token_id

    def oracle(self) -> Any:
        """A context in which the stock model computes the definition of what the ShortV model freezes."""
        return oracle(self.stock, frozen_lists(self.shortv.config))

    def defined(self, frozen: Any) -> Any:
        """As `oracle`, for these frozen rows, ``(batch, tokens)`` bool."""
        return defined(self.stock, frozen_lists(self.shortv.config), frozen)

    def set_attention(self, implementation: str) -> None:
        for model in (self.stock, self.shortv):
            model.set_attn_implementation({"text_config": implementation})


def frozen_lists(config: Any) -> dict[str, list[int]]:
    """The three lists of a ShortV config."""
    return {name: getattr(config, name) or [] for name in LISTS}


def defined(stock: Any, frozen: dict[str, Any], rows: Any) -> Any:
    """A context in which a stock model computes the definition for these frozen rows, ``(batch, tokens)`` bool.

    Args:
        frozen: the lists of a ShortV config, by name.
    """
    from shortv_export.base.definition import frozen_by_definition, text_decoder

    operators = {name: layers for name, layers in frozen.items() if name != "frozen_layers"}
    return frozen_by_definition(text_decoder(stock).layers, frozen["frozen_layers"], rows, **operators)


@contextmanager
def oracle(stock: Any, frozen: dict[str, Any]) -> Iterator[None]:
    """A context in which a stock LLaVA computes the definition: what is frozen adds nothing to visual rows.

    The visual rows are those of the model's own `get_placeholder_mask`. So it does not matter how images arrive: as
    pixels or encoded, in chunks or in a second turn, with or without `input_ids`.
    """
    model, language_model = stock.model, stock.model.language_model
    find, run = model.get_placeholder_mask, language_model.forward
    found: list[Any] = []

    def get_placeholder_mask(*args: Any, **kwargs: Any) -> Any:
        mask = find(*args, **kwargs)
        found.append(mask[..., 0].bool())
        return mask

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not found:
            return run(*args, **kwargs)
        with defined(stock, frozen, found.pop()):
            return run(*args, **kwargs)

    model.get_placeholder_mask, language_model.forward = get_placeholder_mask, forward
    try:
        yield
    finally:
        del model.get_placeholder_mask, language_model.forward


def generate(pair: Pair, model: Any, inputs: Any, **options: Any) -> tuple[Any, Any]:
    """Sequences, and the scores of all steps as one tensor. By default, no image token is generated."""
    import torch

    image_token = pair.stock.config.image_token_id
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [image_token], **options}
    torch.manual_seed(0)
    output = model.generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
    return output.sequences, torch.stack(output.scores)


def relative_error(actual: Any, expected: Any, rows: Any = None) -> float:
    """Largest absolute difference divided by the largest absolute value, of all or these (batch, tokens) rows."""
    if rows is not None:
        actual, expected = actual[rows], expected[rows]
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def rows_with_features(model: Any, inputs: Any) -> tuple[Any, Any]:
    """The rows, (batch, tokens) bool, into which a stock model puts visual features; and its logits."""
    import torch

    from shortv_export.base.definition import text_decoder

    seen: list[Any] = []
    hook = text_decoder(model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with hook, torch.no_grad():
        logits = model(**inputs).logits
        return (seen[0] != model.get_input_embeddings()(inputs["input_ids"])).any(-1), logits


def frozen_kl(model: Any, inputs: Any, frozen: Any, rows: Any) -> Any:
    """KL(stock || definition) of the next token, in nats, of each batch entry.

    `frozen` are the lists of a config by name, or the frozen layers alone; `rows` are put back.
    """
    import torch

    with torch.no_grad():
        stock = model(**inputs).logits[:, -1].double().log_softmax(-1)
        with defined(model, frozen if isinstance(frozen, dict) else {"frozen_layers": frozen}, rows):
            ablated = model(**inputs).logits[:, -1].double().log_softmax(-1)
    return (stock.exp() * (stock - ablated)).sum(-1)


def greedy_answer(model: Any, inputs: Any, count: int = 32) -> list[int]:
    """The most likely tokens, one by one, up to the end or a placeholder."""
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends])}
    ends |= {getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")}
    tokens, _ = _generated(model, inputs, count)
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), count)
    return tokens[:length]


def frozen_answer_kl(model: Any, inputs: Any, frozen: dict[str, Any], rows: Any, answer: list[int]) -> Any:
    """Mean KL(stock || definition) over the tokens of an answer that both are forced to give, in nats."""
    _, stock = _generated(model, inputs, len(answer), answer)
    with defined(model, frozen, rows):
        _, ablated = _generated(model, inputs, len(answer), answer)
    return (stock.exp() * (stock - ablated)).sum(-1).mean()


def _generated(model: Any, inputs: Any, count: int, forced: Any = None) -> tuple[list[int], Any]:
    """So many tokens that `generate` gives, or is forced to give; and the log-probabilities before each of them."""
    import torch
    from transformers import GenerationMixin

    queue = iter(forced or ())

    def force(input_ids: Any, scores: Any) -> Any:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([next(queue)]), 0.0)

    with torch.no_grad():
        output = GenerationMixin.generate(  # Janus has a `generate` of its own, which leaves out the processors
            model,
            **inputs,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=-1,
            logits_processor=[force] if forced else [],
            return_dict_in_generate=True,
            output_logits=True,
        )
    return output.sequences[0, -count:].tolist(), torch.cat(output.logits).double().log_softmax(-1)

"""A stock model and the ShortV model made from its weights; the first says what the second must compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

# What models call the argument, and the part of their output, that is the cache.
CACHE = "cache" if Version(version("transformers")) >= Version("5.24") else "past_key_values"


TOLERANCE = 1e-5  # relative error of fp32 results against the oracle


# A batch in which everything differs between rows: number of images, where they stand, length.
RAGGED = (
    "USER: <image>\n what is in this picture ? ASSISTANT:",
    "USER: is there a cat <image>\n or a rocket <image>\n in the picture ? answer with one word . ASSISTANT:",
    "USER: <image>\n yes",
    "USER: is the sky in the picture ? ASSISTANT:",
)


def edit_config(folder: Path, text_config: dict[str, Any] | None = None, **fields: Any) -> Path:
    """Sets fields of a `config.json`, and of its `text_config`; the value ``...`` removes a field."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for target, values in ((config, fields), (config["text_config"], text_config or {})):
        target.update(values)
        for name in [name for name, value in values.items() if value is ...]:
            del target[name]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


@dataclass
class Pair:
    """A stock model and the ShortV model made from the same weights, with their processor."""

    base: Path
    folder: Path
    stock: Any
    shortv: Any
    processor: Any
    photos: dict[str, Any]

    def inputs(self, *prompts: str, padding_side: str = "left") -> Any:
        """Processor outputs; every `<image>` takes the next photograph."""
        photos = list(self.photos.values())
        images = [photos[index % len(photos)] for index in range(sum(prompt.count("<image>") for prompt in prompts))]
        return self.processor(
            images=images or None,
            text=list(prompts),
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
        )

    def visual(self, inputs: Any) -> Any:
        return inputs["input_ids"] == self.stock.config.image_token_id

    def oracle(self, frozen_layers: Any = None) -> Any:
        """A context in which the stock model computes what ShortV with these layers (or its own) is defined to."""
        return oracle(self.stock, self.shortv.config.frozen_layers if frozen_layers is None else frozen_layers)

    def set_attention(self, implementation: str) -> None:
        for model in (self.stock, self.shortv):
            model.set_attn_implementation({"text_config": implementation})

    def set_attributes(self, **attributes: Any) -> None:
        """On the text configurations of both models."""
        for model in (self.stock, self.shortv):
            for name, value in attributes.items():
                setattr(model.config.text_config, name, value)


@contextmanager
def oracle(stock: Any, frozen_layers: Any) -> Iterator[None]:
    """Every forward pass of a stock LLaVA freezes, by definition, the rows into which *it* puts image features.

    Which rows those are, the model itself says (`get_placeholder_mask`), so that this holds however the images arrive:
    as pixels, encoded beforehand, in chunks, in a second turn, with or without `input_ids`.
    """
    from shortv_export.base.definition import frozen_by_definition

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
        with frozen_by_definition(language_model.layers, frozen_layers, found.pop()):
            return run(*args, **kwargs)

    model.get_placeholder_mask, language_model.forward = get_placeholder_mask, forward
    try:
        yield
    finally:
        del model.get_placeholder_mask, language_model.forward


def relative_error(actual: Any, expected: Any, rows: Any = None) -> float:
    """Largest absolute difference over largest absolute value; of the given (batch, tokens) rows, if any are."""
    if rows is not None:
        actual, expected = actual[rows], expected[rows]
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()

"""What transformers makes of a config: the fields with their defaults, and the size of the model, without weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import ShortVError
from ..records import CONFIG_NAME
from .confined import entering
from .worker import Worker

# Far above the numbers in any real config.
_LARGEST = 1 << 53  # beyond it, JSON readers disagree about integers
_LARGEST_SIZE = 1 << 31
_MOST_LAYERS = 1 << 12
_DEEPEST = 32
_LAYERS = re.compile(r"num_.*layers|(?:.*_)?depth|n_layers?|num_.*blocks")
_SIZE = re.compile(r"num_.*|n_.*|.*(?:size|dim|width|heads|channels|length|positions?|embeddings|rank|factor)")

_ACTIVATIONS = ("hidden_act", "hidden_activation", "projector_hidden_act")


@dataclass(frozen=True)
class Skeleton:
    """A stock model without weights.

    Attributes:
        parameters: how many numbers its weights are.
        embeddings: how many token ids it knows.
    """

    parameters: int
    embeddings: int


def check_numbers(name: str, config: Mapping[str, Any]) -> None:
    """Refuses a config with a number that no model has, before anything is made of that size.

    Raises:
        ShortVError: a size is negative or far too large, a number is not finite, or the config is nested too deeply.
    """
    pending: list[tuple[str, Any, int]] = [("", config, 0)]
    while pending:
        key, value, depth = pending.pop()
        if depth > _DEEPEST:
            raise ShortVError(f"{name}: its {CONFIG_NAME} is nested more than {_DEEPEST} deep; use another base.")
        if isinstance(value, dict):
            pending += [(str(inner), item, depth + 1) for inner, item in value.items()]
        elif isinstance(value, list):
            pending += [(key, item, depth + 1) for item in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ShortVError(f"{name}: its {CONFIG_NAME} has {key!r:.60} {value}; write a number.")
        elif type(value) is int:
            most = _MOST_LAYERS if _LAYERS.fullmatch(key) else _LARGEST_SIZE if _SIZE.fullmatch(key) else _LARGEST
            if abs(value) > most:
                raise ShortVError(f"{name}: its {CONFIG_NAME} has {key!r:.60} {value!s:.40}; use at most {most}.")


@dataclass(frozen=True)
class Description:
    """What transformers makes of a config.

    Attributes:
        complete: the config with the defaults of the stock class filled in.
        skeleton: of the stock model; or why it cannot be built.
    """

    complete: dict[str, Any]
    skeleton: Skeleton | ShortVError


_KNOWN: dict[str, Description] = {}
"""By the text of the config: a base is looked at more than once."""


def describe(name: str, config: Mapping[str, Any], base_class: str) -> Description:
    """Asks transformers what a config means, in a worker.

    Args:
        name: the base, for messages.
        config: its ``config.json``.
        base_class: its class in transformers.

    Raises:
        ShortVError: the config is not valid.
    """
    text = json.dumps(config, sort_keys=True)
    if text in _KNOWN:
        return _KNOWN[text]
    _import_models(config, base_class)
    with Worker(name, str, text) as worker:
        complete = json.loads(worker.run(_complete))
        try:
            described = _KNOWN[text] = Description(complete, Skeleton(*worker.run(_build)))
        except ShortVError as error:
            described = Description(complete, error)
    return described


def _import_models(config: Mapping[str, Any], base_class: str) -> None:
    """Imports what the worker will need, as a fork then has it already. None of it is of the base."""
    import transformers

    getattr(transformers, base_class)
    for part in config.values():
        with suppress(Exception):  # not the part of a model, or not one that can be imported
            transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[part["model_type"]]]


# In the worker.


def _complete(config: str) -> str:
    from transformers import AutoConfig

    entering(CONFIG_NAME, "is not valid")
    return json.dumps(AutoConfig.for_model(**json.loads(config)).to_dict())  # this never runs code of the base


def _build(config: str) -> tuple[int, int]:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.activations import ACT2FN

    entering(CONFIG_NAME, "describes no model that transformers can build")
    fields = json.loads(config)
    for part in (fields, *(value for value in fields.values() if isinstance(value, dict))):
        for key, value in part.items():
            if key in _ACTIVATIONS and isinstance(value, str) and value not in ACT2FN:
                raise ValueError(f"transformers has no activation function {value!r:.60}, its {key}")
    with torch.device("meta"):  # allocates no memory
        # The size does not depend on how attention is computed, which may need packages.
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**fields), attn_implementation="eager")
    return sum(map(torch.numel, model.parameters())), model.get_input_embeddings().weight.shape[0]

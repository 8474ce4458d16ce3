"""What transformers makes of a config: the fields with their defaults, and the size of the model, without weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ShortVError
from ..records import CONFIG_NAME
from .worker import entering, in_worker

# Far above the numbers in any real config.
_LARGEST = 1 << 53  # beyond it, JSON readers disagree about integers
_LARGEST_SIZE = 1 << 31
_MOST_LAYERS = 1 << 12
_DEEPEST = 32
_LAYERS = re.compile(r"num_.*layers|(?:.*_)?depth|n_layers?|num_.*blocks")
_SIZE = re.compile(r"num_.*|n_.*|.*(?:size|dim|width|heads|channels|length|positions?|embeddings|rank|factor)")

_ACTIVATIONS = ("hidden_act", "hidden_activation", "projector_hidden_act")

# What is known of a config, by its text: a base is looked at more than once.
_COMPLETE: dict[str, str] = {}
_SKELETONS: dict[str, Skeleton] = {}


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
            raise ShortVError(f"{name}: its {CONFIG_NAME} has {key} {value}; write a number.")
        elif type(value) is int:
            most = _MOST_LAYERS if _LAYERS.fullmatch(key) else _LARGEST_SIZE if _SIZE.fullmatch(key) else _LARGEST
            if abs(value) > most:
                raise ShortVError(f"{name}: its {CONFIG_NAME} has {key:.60} {value!s:.40}; use at most {most}.")


def complete_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of the stock class filled in.

    Raises:
        ShortVError: it is not valid.
    """
    text = json.dumps(config)
    if text not in _COMPLETE:
        _COMPLETE[text] = in_worker(name, _completed, text)
    completed: dict[str, Any] = json.loads(_COMPLETE[text])
    return completed


def skeleton(name: str, config: Mapping[str, Any], base_class: str) -> Skeleton:
    """The size of a config's stock model, which is of this class of transformers.

    Raises:
        ShortVError: transformers cannot build the model, or not within the limits of time and memory.
    """
    import transformers

    text = json.dumps(config)
    if text not in _SKELETONS:
        getattr(transformers, base_class)  # imported here, a fork has it
        _SKELETONS[text] = Skeleton(*in_worker(name, _built, text))
    return _SKELETONS[text]


# In the worker.


def _completed(config: str) -> str:
    from transformers import AutoConfig

    entering(CONFIG_NAME, "is not valid")
    return json.dumps(AutoConfig.for_model(**json.loads(config)).to_dict())  # this never runs code of the base


def _built(config: str) -> tuple[int, int]:
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

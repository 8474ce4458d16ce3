"""Freezes operators of the decoder layers of a vLLM model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .attention import shortv_backend
from .rows import TextOutput, TextQueries, TextRows, mix_in, text_kernel, text_mixer

MIXERS = ("linear_attn", "short_conv")
OUTPUTS = ("o_proj", "out_proj")
FEED_FORWARDS = ("mlp", "feed_forward")


@dataclass
class Frozen:
    """What is frozen in a model.

    Attributes:
        attention: names of the attention layers, as in vLLM's metadata.
        num_ffn: number of feed-forward networks.
        num_mixers: number of linear attentions or convolutions. They save nothing.
    """

    attention: set[str] = field(default_factory=set)
    num_ffn: int = 0
    num_mixers: int = 0

    @property
    def calls(self) -> dict[str, int]:
        """How often each kind of frozen module must run in a step with visual rows."""
        attention = dict.fromkeys(("queries", "attention", "output"), len(self.attention))
        calls = attention | {"ffn": self.num_ffn, "mixer": self.num_mixers}
        return {kind: number for kind, number in calls.items() if number}


def read_lists(config: Any, num_layers: int) -> tuple[set[int], set[int]]:
    """The decoder layers whose attention, and those whose feed-forward network is frozen.

    Raises:
        ValueError: a list is missing or not valid. It must never freeze nothing by mistake.
    """
    if config.frozen_layers is None:
        raise ValueError("config.json has no `frozen_layers`: this checkpoint is not a ShortV model.")
    named: dict[str, set[int]] = {}
    for name in ("frozen_layers", "frozen_attention", "frozen_ffn"):
        layers = getattr(config, name) or []
        if not isinstance(layers, (list, tuple)) or any(type(index) is not int for index in layers):
            raise ValueError(f"`{name}` must be a list of integers, not {layers!r}.")
        if len(set(layers)) < len(layers) or set(layers) & set().union(*named.values()):
            raise ValueError(f"`{name}` names a layer a second time: {layers}.")
        if not set(layers) <= set(range(num_layers)):
            raise ValueError(f"`{name}` must lie in 0..{num_layers - 1}: {layers}.")
        named[name] = set(layers)
    both = named["frozen_layers"]
    return both | named["frozen_attention"], both | named["frozen_ffn"]


def freeze(layers: Any, config: Any, context: dict[str, Any]) -> Frozen:
    """Freezes what the lists of `config` name.

    Args:
        layers: the decoder layers.
        config: with `frozen_layers`, and perhaps `frozen_attention` and `frozen_ffn`.
        context: vLLM's layers by name, which gets the frozen modules.

    Raises:
        ValueError: a list is not valid, or a layer is built in another way than expected.
    """
    attention_layers, ffn_layers = read_lists(config, len(layers))
    frozen = Frozen()
    for index, layer in enumerate(layers):
        attention = getattr(layer, "self_attn", None)
        if attention is not None:
            # All layers, frozen or not, so that they stay one group, for which metadata is made once.
            attention.attn.attn_backend = shortv_backend(attention.attn.attn_backend)
        if index in attention_layers:
            if attention is not None:
                _freeze_attention(layer, attention, frozen, context)
            elif index in (config.frozen_attention or []):
                raise ValueError(f"`frozen_attention` names layer {index}, which has no attention to freeze.")
            else:
                _, mixer = _part(layer, MIXERS)
                mixer.forward = text_mixer(mixer.forward)
                frozen.num_mixers += 1
        if index in ffn_layers:
            name, ffn = _part(layer, FEED_FORWARDS)
            _mix_in_rows(ffn, TextRows, f"shortv.{index}.{name}", context)
            frozen.num_ffn += 1
    return frozen


def _freeze_attention(layer: Any, attention: Any, frozen: Frozen, context: dict[str, Any]) -> None:
    core, backend = attention.attn, attention.attn.attn_backend
    if backend.forward_includes_kv_cache_update:
        raise ValueError(
            f"ShortV models do not run with the attention backend {backend.get_name()}: it fills the cache."
        )
    _, output = _part(attention, OUTPUTS)
    _, projection = _part(attention, ("qkv_proj",))
    _mix_in_rows(projection, TextQueries, f"shortv.{core.layer_name}.queries", context)
    _mix_in_rows(output, TextOutput, f"shortv.{core.layer_name}.output", context)
    projection.width = sum(projection.output_partition_sizes)
    output.width = output.output_size
    core.impl.forward = text_kernel(core.impl.forward)
    frozen.attention.add(core.layer_name)
    projection.split_when_loaded()


def _part(module: Any, names: Iterable[str]) -> tuple[str, Any]:
    for name in names:
        if hasattr(module, name):
            return name, getattr(module, name)
    raise ValueError(f"ShortV layers do not know {type(module).__name__}, which has no {' or '.join(names)}.")


def _mix_in_rows(part: Any, mixin: type, name: str, context: dict[str, Any]) -> None:
    mix_in(part, mixin)
    part.shortv_name = name
    context[name] = part

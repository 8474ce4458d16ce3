"""The definition of a frozen layer: the stock model computes everything, then the frozen rows are put back.

It is slow on purpose and independent of the remote code, which is compared with it. It imports only torch, because
verification runs it in a process without this project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def text_decoder(model: Any) -> Any:
    """The module of a stock vision-language model that holds embeddings, decoder layers (`layers`) and final norm."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "layers") else decoder.model


def final_norm(decoder: Any) -> Any:
    """The norm that a `text_decoder` applies after its last layer."""
    return decoder.norm if hasattr(decoder, "norm") else decoder.embedding_norm


def input_device(model: Any) -> torch.device:
    """The device that a model's inputs belong on."""
    weight = model.get_input_embeddings().weight
    # A meta weight is offloaded by accelerate, whose hooks move the inputs.
    return torch.device("cpu") if weight.is_meta else weight.device


def placed(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs on the model's device and in its dtype, as by ``inputs.to(model.device, model.dtype)`` on cards."""
    device = input_device(model)
    return {
        name: value.to(device, model.dtype) if value.is_floating_point() else value.to(device)
        for name, value in inputs.items()
    }


def cache_name(named: Mapping[str, Any]) -> str:
    """The key of the cache in a model's output or its layers' keyword arguments; `cache` since transformers 5.24."""
    return "cache" if "cache" in named else "past_key_values"


def cached_states(layer: Any) -> list[torch.Tensor]:
    """The tensors in one layer of a cache: keys and values, or states of linear attention or of a convolution."""
    if hasattr(layer, "keys"):
        return [layer.keys, layer.values]
    kept: list[Any] = []
    for states in (layer.conv_states, layer.recurrent_states):  # numbered dicts since transformers 5.24
        kept += states.values() if isinstance(states, dict) else [states]
    return [states for states in kept if states is not None]


def visual_tokens(config: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Where visual tokens are: ``(batch, tokens)`` bool, by the image and video token ids of `config`."""
    visual = torch.zeros_like(input_ids, dtype=torch.bool)
    for name in ("image_token_id", "video_token_id"):
        token = getattr(config, name, None)
        if token is not None:
            visual |= input_ids == token
    return visual


# Names of a decoder layer's modules. Linear attention and convolutions stand in the place of attention; Gemma 4 has
# experts beside its dense FFN.
ATTENTION = ("self_attn", "linear_attn", "conv")
FFN = ("mlp", "feed_forward", "experts")


def operator_modules(layer: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    """The modules of a stock decoder layer that make up one operator: `ATTENTION` or `FFN`."""
    return [getattr(layer, name) for name in names if isinstance(getattr(layer, name, None), nn.Module)]


@contextmanager
def frozen_by_definition(
    layers: nn.ModuleList,
    frozen_layers: Iterable[int],
    frozen: torch.Tensor,
    *,
    frozen_attention: Iterable[int] = (),
    frozen_ffn: Iterable[int] = (),
) -> Iterator[None]:
    """Freezes tokens in some decoder layers of a stock model while the context lasts.

    Args:
        layers: the language model's decoder layers.
        frozen_layers: numbers of the layers to freeze.
        frozen: ``(batch, tokens)`` bool; these rows leave a frozen layer as they entered it. Passes over another
            number of tokens, such as decoding steps, are not changed.
        frozen_attention, frozen_ffn: numbers of the layers in which a single operator adds nothing to these rows.
    """

    def put_back(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        if before.shape[1] != frozen.shape[1]:
            return output
        after = torch.where(frozen.to(after.device)[..., None], before, after)
        return (after, *output[1:]) if isinstance(output, tuple) else after

    def add_nothing(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        update = output[0] if isinstance(output, tuple) else output
        if update.shape[:-1] not in (frozen.shape, (frozen.numel(),)):  # some experts take rows in one dimension
            return output
        rows = frozen.to(update.device).reshape(update.shape[:-1])[..., None]
        update = update.masked_fill(rows, 0)
        return (update, *output[1:]) if isinstance(output, tuple) else update

    hooks = [layers[index].register_forward_hook(put_back, with_kwargs=True) for index in frozen_layers]
    for names, numbers in ((ATTENTION, frozen_attention), (FFN, frozen_ffn)):
        modules = [module for index in numbers for module in operator_modules(layers[index], names)]
        hooks += [module.register_forward_hook(add_nothing) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

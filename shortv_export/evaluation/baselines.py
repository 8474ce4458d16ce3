"""Other methods to compare ShortV with, as temporary changes to the same loaded model (paper, Tables 1, 5 and 6).

- **FastV** (arXiv 2403.06764) drops a share R of the visual tokens after the first K layers: those that the last
  prompt token attends to least in layer K, mean over heads.
- **VTW** (arXiv 2405.05803) drops all visual tokens after the first K layers: FastV with R = 100 %.
- **ShortV + FastV**: both at once. A frozen layer freezes the visual tokens that are left.
- **Random** and **cosine** selection: other frozen layers, as many as ShortV's.

Layers after the K-th are called without the rows of dropped tokens, and their cache has no keys and values of them.
The other tokens keep their positions. One unpadded sample at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base import LayerShape, dense_layer_flops, frozen_layer_flops, model_flops
from ..base.definition import cache_name, text_decoder, visual_tokens
from ..errors import ShortVError
from ..options import Budget
from ..records import Scores
from ..selection import Prefill, select_layers
from .changes import Change, Inputs, frozen

# The paper's setting (Table 1). VTW's K is half of the layers there.
FASTV_LAYERS = 2
FASTV_DROP = 0.5


def comparisons(
    frozen_layers: Sequence[int],
    shapes: Sequence[LayerShape],
    text_tokens: int,
    visual_tokens: int,
    scores: Scores | None,
    seed: int = 0,
) -> list[Change]:
    """The methods that the paper compares with, in its setting, and at a cost of at most ShortV's where they reach it.

    Args:
        frozen_layers: by ShortV.
        shapes: of the decoder's layers.
        text_tokens, visual_tokens: of the prompt at which costs are compared.
        scores: for cosine selection, which is left out without cosine distances.
        seed: of random selection.
    """
    num_layers = len(shapes)
    budget = model_flops(shapes, frozen_layers, text_tokens, visual_tokens)

    def affordable(changes: Iterable[Change]) -> list[Change]:
        """The first that costs no more than ShortV, if one does."""
        return [
            change for change in changes if change.flops and change.flops(shapes, text_tokens, visual_tokens) <= budget
        ][:1]

    found = []
    if num_layers > FASTV_LAYERS:
        # In steps of 0.1 %, which the name shows.
        found += [fastv(FASTV_DROP), *affordable(fastv(step / 1000) for step in range(1001))]
    found += [vtw(max(1, num_layers // 2)), *affordable(vtw(after) for after in range(num_layers - 1, 0, -1))]
    if num_layers > FASTV_LAYERS:
        found.append(shortv_and_fastv(frozen_layers, num_layers))
    count = len(frozen_layers)
    random = select_layers(None, Budget(num_frozen=count), Prefill(shapes), method="random", seed=seed)
    found.append(replace(frozen(random.frozen_layers, num_layers), name=f"random {count} of {num_layers}"))
    if scores is not None and scores.visual_cosine_distance:
        cosine = select_layers(scores, Budget(num_frozen=count), Prefill(shapes), method="cosine")
        found.append(replace(frozen(cosine.frozen_layers, num_layers), name=f"cosine {count} of {num_layers}"))
    return [replace(change, baseline=True) for change in {change.name: change for change in found}.values()]


def fastv(drop: float, after: int = FASTV_LAYERS) -> Change:
    """FastV: drops this share of the visual tokens, the least attended, after so many layers (at least 1)."""
    return _pruning(f"FastV K={after} R={drop:.1%}", after, drop)


def vtw(after: int) -> Change:
    """VTW: drops all visual tokens after so many layers (at least 1)."""
    return _pruning(f"VTW K={after}", after, 1.0)


def shortv_and_fastv(
    frozen_layers: Sequence[int], num_layers: int, drop: float = FASTV_DROP, after: int = FASTV_LAYERS
) -> Change:
    """Frozen layers and FastV at once (paper, Table 5)."""
    name = f"{len(frozen_layers)} of {num_layers} + {fastv(drop, after).name}"
    return _pruning(name, after, drop, frozen(frozen_layers, num_layers))


def pruned_flops(
    shapes: Sequence[LayerShape],
    text_tokens: int,
    visual_tokens: int,
    *,
    after: int,
    kept: int,
    frozen_layers: Sequence[int] = (),
) -> int:
    """Prefill FLOPs of the decoder layers (Eqs. 3 and 4), with `kept` visual tokens after the first layers.

    The one query that it takes to choose the tokens is not counted.
    """
    total = 0
    for layer, shape in enumerate(shapes):
        flops = frozen_layer_flops if layer in frozen_layers else dense_layer_flops
        total += flops(shape, text_tokens, visual_tokens if layer < after else kept)
    return total


def _kept(visual_tokens: int, drop: float) -> int:
    return round(visual_tokens * (1 - drop))


def _pruning(name: str, after: int, drop: float, shortv: Change | None = None) -> Change:
    frozen_layers = (shortv.frozen_layers if shortv else None) or ()

    @contextmanager
    def apply(model: Any, inputs: Inputs) -> Iterator[None]:
        visual = inputs.get("visual_mask")
        visual = visual_tokens(model.config, inputs["input_ids"]) if visual is None else visual
        with shortv.apply(model, inputs) if shortv else nullcontext(), _pruned(model, visual, after, drop):
            yield

    def flops(shapes: Sequence[LayerShape], text: int, visual: int) -> float:
        kept = _kept(visual, drop)
        return pruned_flops(shapes, text, visual, after=after, kept=kept, frozen_layers=frozen_layers)

    return Change(name, apply, flops=flops)


@contextmanager
def _pruned(model: Any, visual: Tensor, after: int, drop: float) -> Iterator[None]:
    """Inside the context, layers from number `after` on are called without some visual rows of this prompt.

    Args:
        model: a ShortV model.
        visual: ``(1, tokens)`` bool, of the prompt.
        after: number of layers with all rows, at least 1.
        drop: share of the visual tokens.

    Raises:
        ShortVError: a batch of several samples, or a text model with layers that do not see all tokens.
    """
    decoder = text_decoder(model)
    config = decoder.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    if {*kinds} != {"full_attention"} or (len(kinds) == 1 and getattr(config, "sliding_window", None)):
        raise ShortVError("FastV and VTW need a text model whose layers see all tokens; leave out `baselines`.")
    if visual.shape[0] != 1:
        raise ShortVError("FastV and VTW run one sample at a time.")
    pruned = _Pruned(visual, drop)
    hooks = [decoder.layers[after - 1].register_forward_hook(pruned.choose, with_kwargs=True)]
    for layer in decoder.layers[after:]:
        hooks.append(layer.register_forward_pre_hook(pruned.narrow, with_kwargs=True))
        hooks.append(layer.register_forward_hook(pruned.widen))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Pruned:
    """The hooks of decoder layers that leave out rows.

    Between layers the states keep all rows, for models that add something to them there. The dropped rows stay
    unchanged and are never read.

    Attributes:
        visual: ``(1, tokens)`` bool.
        drop: share of the visual tokens.
        rows: row numbers that the later layers are called on, ascending.
    """

    def __init__(self, visual: Tensor, drop: float) -> None:
        self.visual = visual
        self.drop = drop
        self.rows = torch.arange(visual.shape[1])
        self._wide: Tensor | None = None
        self._narrowed: dict[int, tuple[Any, Any]] = {}

    def choose(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the last layer with all rows: chooses the rows to keep."""
        hidden_states = args[0] if args else kwargs["hidden_states"]
        if hidden_states.shape[1] != self.visual.shape[1]:
            return
        keep = ~self.visual[0].to(hidden_states.device)
        count = _kept(int(self.visual.sum()), self.drop)
        if count:
            attention = _attention_of_last_row(layer, hidden_states, kwargs)
            keep[attention.masked_fill(keep, -1).topk(count).indices] = True
        self.rows = keep.nonzero()[:, 0]
        self._narrowed = {}

    def narrow(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a later layer: drops rows of its input."""
        hidden_states, *rest = args or (kwargs.pop("hidden_states"),)
        if hidden_states.shape[1] != self.visual.shape[1]:
            # A decoded token sees all keys of this layer, which are fewer than a mask for all layers has.
            return (hidden_states, *rest), kwargs | {"attention_mask": None}
        self._wide = hidden_states
        kwargs = {name: self._once(name, value) for name, value in kwargs.items()}
        return (hidden_states[:, self.rows.to(hidden_states.device)], *rest), kwargs

    def widen(self, layer: Any, args: tuple[Any, ...], output: Any) -> Any:
        """After a later layer: puts its output back among the dropped rows."""
        if self._wide is None:
            return output
        states = output[0] if isinstance(output, tuple) else output
        wide = self._wide.to(states.device).index_copy(1, self.rows.to(states.device), states)
        self._wide = None
        return (wide, *output[1:]) if isinstance(output, tuple) else wide

    def _once(self, name: str, value: Any) -> Any:
        # Layers share masks and tables, so each is narrowed once. As `value` is kept, no other object gets its id.
        if id(value) not in self._narrowed:
            self._narrowed[id(value)] = (value, self._narrow_argument(name, value))
        return self._narrowed[id(value)][1]

    def _narrow_argument(self, name: str, value: Any) -> Any:
        """An argument of a decoder layer, for the kept rows."""
        if name == "position_embeddings":  # (..., tokens, width)
            return tuple(table.index_select(-2, self.rows.to(table.device)) for table in value)
        if name == "text_rows" and value is not None:  # the rows that frozen layers compute
            find_text_rows = sys.modules[type(value).__module__].find_text_rows
            return find_text_rows(self.visual[:, self.rows.to(self.visual.device)].to(value.rows.device))
        if not isinstance(value, Tensor):
            return value
        rows = self.rows.to(value.device)
        if name == "attention_mask":  # (batch, 1, tokens, tokens), or of padding (batch, tokens)
            return value.index_select(-1, rows).index_select(-2, rows) if value.dim() == 4 else value[:, rows]
        # Positions, and anything else with one value per token.
        return value.index_select(-1, rows) if value.shape[-1:] == self.visual.shape[1:] else value


class _Keys:
    """Stands in for a cache: returns these keys and values and stores nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys_and_values = keys, values

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.keys_and_values


def _attention_of_last_row(layer: Any, hidden_states: Tensor, call: dict[str, Any]) -> Tensor:
    """The attention of the last row to each row, in a layer that has run; mean over heads, ``(tokens,)`` float32.

    The layer's own attention runs again for that row, on the cached keys, in the implementation that returns its
    weights.

    Args:
        layer: a decoder layer.
        hidden_states: its input, ``(1, tokens, hidden)``.
        call: its keyword arguments.
    """
    attention = layer.self_attn
    name = cache_name(call)
    cached = call[name].layers[attention.layer_idx]
    implementation = attention.config._attn_implementation
    attention.config._attn_implementation = "eager"
    try:
        _, weights = attention(
            layer.normed(hidden_states[:, -1:].to(cached.keys.device)),
            position_embeddings=tuple(table[..., -1:, :] for table in call["position_embeddings"]),
            attention_mask=None,
            **{name: _Keys(cached.keys, cached.values)},
        )
    finally:
        attention.config._attn_implementation = implementation
    mean: Tensor = weights[0, :, 0].float().mean(0)
    return mean.to(hidden_states.device)

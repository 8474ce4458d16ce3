"""The methods that the paper compares ShortV with (Tables 1, 5 and 6).

- **FastV** (arXiv 2403.06764) drops a share R of the visual tokens after the first K layers: those with the least
  attention from the last prompt token in layer K, averaged over heads.
- **VTW** (arXiv 2405.05803) drops all visual tokens after the first K layers: FastV with R = 100 %.
- **ShortV + FastV**: frozen layers freeze the visual tokens that FastV keeps.
- **Random** and **cosine** selection: other frozen layers, as many as ShortV's. Beside single operators, also the
  **layers** with the lowest Layer Contribution, and no more of each than cost as much.

Layers after the K-th run without the dropped tokens and cache no keys and values of them. The other tokens keep their
positions. One unpadded sample runs at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..base import LayerShape, model_flops
from ..base.definition import cache_name, text_decoder, visual_tokens
from ..errors import ShortVError
from ..options import Budget
from ..records import Frozen, Scores
from ..selection import select_layers
from .changes import UNCHANGED, Change, Inputs, shortv

# FastV's setting in the paper (Table 1). VTW's K is half of the layers there.
FASTV_LAYERS = 2
FASTV_DROP = 0.5


def paper_baselines(
    frozen: Frozen,
    shapes: Sequence[LayerShape],
    text_tokens: int,
    visual_tokens: int,
    scores: Scores | None,
) -> list[Change]:
    """The paper's baselines in its settings; FastV and VTW also in the mildest setting that costs no more than ShortV.

    Args:
        frozen: what ShortV freezes.
        shapes: of the decoder's layers.
        text_tokens, visual_tokens: of the prompt at which FLOPs are compared.
        scores: for cosine selection, which is left out if they hold no cosine distances.
    """
    num_layers = len(shapes)
    prompt = (shapes, text_tokens, visual_tokens)
    budget = model_flops(shapes, **frozen.lists, text_tokens=text_tokens, visual_tokens=visual_tokens)

    def affordable(changes: Iterable[Change]) -> list[Change]:
        """The first change that costs no more than ShortV, if there is one."""
        return [change for change in changes if change.flops and change.flops(*prompt) <= budget][:1]

    found = []
    if num_layers > FASTV_LAYERS:
        # R in steps of 0.1 %, the precision that the name shows.
        found += [fastv(FASTV_DROP), *affordable(fastv(step / 1000) for step in range(1001))]
    found += [vtw(max(1, num_layers // 2)), *affordable(vtw(after) for after in range(num_layers - 1, 0, -1))]
    if num_layers > FASTV_LAYERS:
        found.append(shortv_and_fastv(frozen, num_layers))
    # As many layers as ShortV freezes; beside single operators, the fewest layers that cost no more.
    counts = range(1, num_layers + 1) if frozen.operators else [len(frozen.layers)]
    names = {"lc": "layers", "random": "random", "cosine": "cosine"}
    if not frozen.operators or scores is None:
        del names["lc"]
    if scores is None or not scores.visual_cosine_distance:
        del names["cosine"]
    for method, name in names.items():
        selections = (select_layers(scores, Budget(num_frozen=count), shapes, method=method) for count in counts)
        changes = (shortv(selection.frozen, num_layers) for selection in selections)
        found += [
            replace(change, name=f"{name} {change.name}")
            for change in (affordable(changes) if frozen.operators else changes)
        ]
    return [replace(change, baseline=True) for change in {change.name: change for change in found}.values()]


def fastv(drop: float, after: int = FASTV_LAYERS) -> Change:
    """FastV: drops this share of the visual tokens after so many layers (at least 1)."""
    return _pruning(f"FastV K={after} R={drop:.1%}", after, drop)


def vtw(after: int) -> Change:
    """VTW: drops all visual tokens after so many layers (at least 1)."""
    return _pruning(f"VTW K={after}", after, 1.0)


def shortv_and_fastv(frozen: Frozen, num_layers: int, drop: float = FASTV_DROP, after: int = FASTV_LAYERS) -> Change:
    """ShortV and FastV at once (paper, Table 5)."""
    freeze = shortv(frozen, num_layers)
    return _pruning(f"{freeze.name} + {fastv(drop, after).name}", after, drop, freeze)


def _kept(visual_tokens: int, drop: float) -> int:
    return round(visual_tokens * (1 - drop))


def _pruning(name: str, after: int, drop: float, freeze: Change = UNCHANGED) -> Change:
    @contextmanager
    def apply(model: Any, inputs: Inputs) -> Iterator[None]:
        visual = inputs.get("visual_mask")
        visual = visual_tokens(model.config, inputs["input_ids"]) if visual is None else visual
        with freeze.apply(model, inputs), _pruned(model, visual, after, drop):
            yield

    def flops(shapes: Sequence[LayerShape], text: int, visual: int) -> float:
        # Choosing the tokens takes one query of attention more, which is not counted.
        lists = (freeze.frozen or Frozen()).lists
        later = {name: [layer - after for layer in layers] for name, layers in lists.items()}
        before = model_flops(shapes[:after], text_tokens=text, visual_tokens=visual, **lists)
        return before + model_flops(shapes[after:], text_tokens=text, visual_tokens=_kept(visual, drop), **later)

    return Change(name, apply, flops=flops)


@contextmanager
def _pruned(model: Any, visual: Tensor, after: int, drop: float) -> Iterator[None]:
    """Inside the context, layers from number `after` on run without some visual tokens of this prompt.

    Args:
        model: a ShortV model.
        visual: ``(1, tokens)`` bool: which tokens of the prompt are visual.
        after: number of layers that run with all tokens, at least 1.
        drop: share of the visual tokens.

    Raises:
        ShortVError: a batch of several samples, or a text model with layers that do not attend to all tokens.
    """
    decoder = text_decoder(model)
    config = decoder.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    if {*kinds} != {"full_attention"} or (len(kinds) == 1 and getattr(config, "sliding_window", None)):
        raise ShortVError("FastV and VTW need a text model whose layers attend to all tokens; leave out `baselines`.")
    if visual.shape[0] != 1:
        raise ShortVError("FastV and VTW run one sample at a time; give one.")
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
    """Hooks that make decoder layers run without the dropped tokens.

    Between layers the hidden states keep all rows, since some models add to them there. The dropped rows stay
    unchanged and are never read.

    `visual` and `drop` are those of `_pruned`.
    """

    def __init__(self, visual: Tensor, drop: float) -> None:
        self.visual = visual
        self.drop = drop
        self.rows = torch.arange(visual.shape[1])  # those that are kept, ascending
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
            # The mask of a decoded token is made for all layers: too long for the shorter cache of this one. The token
            # attends to all of that, so it needs no mask.
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
        # Layers share masks and tables, so each is narrowed once. Keeping `value` keeps its id from being reused.
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


def _attention_of_last_row(layer: Any, hidden_states: Tensor, call: dict[str, Any]) -> Tensor:
    """The last row's attention to each row, in a layer that has run; mean over heads, ``(tokens,)`` float32.

    Runs the layer's own attention again for that row, on the cached keys, in eager mode, which returns the weights.

    Args:
        layer: a decoder layer.
        hidden_states: the layer's input, ``(1, tokens, hidden)``.
        call: the layer's keyword arguments.
    """
    attention = layer.self_attn
    name = cache_name(call)
    cached = call[name].layers[attention.layer_idx]
    # A cache that returns these keys and values and stores nothing.
    cache = SimpleNamespace(update=lambda *_, **__: (cached.keys, cached.values))
    implementation = attention.config._attn_implementation
    attention.config._attn_implementation = "eager"
    try:
        _, weights = attention(
            layer.normed(hidden_states[:, -1:].to(cached.keys.device)),
            position_embeddings=tuple(table[..., -1:, :] for table in call["position_embeddings"]),
            attention_mask=None,
            **{name: cache},
        )
    finally:
        attention.config._attn_implementation = implementation
    mean: Tensor = weights[0, :, 0].float().mean(0)
    return mean.to(hidden_states.device)

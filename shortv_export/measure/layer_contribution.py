"""Layer Contribution, exact and layer-major (ShortV, arXiv 2504.00502, Eq. 2).

The LC of decoder layer *i* for a token set *X* (visual or text tokens) is the KL divergence, at the last prompt
position, between the model's next-token distribution and that of the model in which the states of *X* leave layer *i*
as they entered it.

One walk over the layers measures every ablation. Ablating layer *i* does not affect the layers before it, so layer *j*
runs, as one batch, the original states and those of the ablations of all layers before *j*. The ablation of layer *j*
itself is the layer's original output with the rows of *X* taken from its input. That is L(L+1)/2 layer passes per
token set instead of L² + L, and each layer's weights are needed once. The last layer computes only the last prompt
position.

The stock model makes the embeddings, masks and position embeddings. Its decoder layers are called unchanged, with any
`accelerate` hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..base.definition import cache_name, final_norm, placed, text_decoder, visual_tokens
from ..errors import ShortVError
from ..options import Scoring
from ..records import FORWARD, REVERSE
from .memory import out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_BATCH_TOKENS = Scoring.max_batch_tokens


@dataclass(frozen=True)
class LayerContributions:
    """Layer Contributions of each sample; all ``(samples, layers)`` float64 on the CPU.

    Attributes:
        visual, text: LC of the visual and of the text tokens, in nats.
        visual_cosine_distance: 1 - cosine similarity of a visual token's hidden state before and after the layer,
            mean over the visual tokens. The paper compares LC with it.
    """

    visual: Tensor
    text: Tensor
    visual_cosine_distance: Tensor


def layer_contributions(
    model: PreTrainedModel,
    inputs: Iterable[Mapping[str, Tensor]],
    *,
    layers: Iterable[nn.Module] | None = None,
    divergence: str = FORWARD,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_state_bytes: int = 0,
    on_sample: Callable[[Tensor], None] | None = None,
) -> LayerContributions:
    """Measures the Layer Contribution of every decoder layer, for visual and for text tokens.

    Besides the model and one layer call, a batch needs memory for its states: (2L-1) x samples x tokens x hidden size
    x bytes per value.

    Args:
        model: a stock model of a supported family, in evaluation mode; it may be dispatched over devices.
        inputs: what its processor returns, one sample or a left-padded batch at a time.
        layers: the decoder layers, if not the model's own (see `StreamedLayers`). Each group of batches reads them
            once.
        divergence: `FORWARD` (the paper's Eq. 2) or `REVERSE` (its reference code).
        max_batch_tokens: most tokens per layer call; a single state may be longer.
        max_state_bytes: most memory for the states of a group: batches that pass each layer together, so that the
            layers are read less often. With 0, every batch is a group.
        on_sample: called for each finished sample, in order, with its visual LC, text LC and visual cosine distance,
            ``(3, layers)``.

    Raises:
        ShortVError: a sample has no visual tokens, has one at the last prompt position, or is padded on the right; the
            logits are not finite; memory runs out.
    """
    if divergence not in (FORWARD, REVERSE):
        raise ShortVError(f"divergence must be {FORWARD!r} or {REVERSE!r}, not {divergence!r}.")
    if model.training:
        raise ShortVError("the model is in training mode; call model.eval() first.")
    decoder: Iterable[nn.Module] = text_decoder(model).layers if layers is None else layers
    finished: list[Tensor] = []
    advice = f"lower `max_batch_tokens` (now {max_batch_tokens}), or use `stream` or `device_map` auto"
    with torch.inference_mode(), out_of_memory(advice):
        batches = (_Batch.prepare(model, batch_inputs, number) for number, batch_inputs in enumerate(inputs, start=1))
        for group in _groups(batches, max_state_bytes):
            for index, layer in enumerate(decoder):
                for batch in group:
                    batch.advance(index, layer, max_batch_tokens)
            for batch in group:
                for sample in batch.contributions(model, divergence):
                    finished.append(sample)
                    if on_sample is not None:
                        on_sample(sample)
    if not finished:
        raise ShortVError("there are no samples to measure on.")
    return LayerContributions(*torch.stack(finished, dim=1))


class _Batch:
    """Some samples between two layers: the original states and those of every ablation so far.

    Attributes:
        visual: ``(samples, tokens)`` bool.
        calls: the keyword arguments that the stock model gives to each layer.
        added: what the stock model adds to the states after each layer but the last, such as deepstack features; or
            None.
        states: ``(2L-1, samples, tokens, hidden)``: the original, then the visual and the text ablation of layer 0,
            of layer 1, and so on. No layer follows the last one, so its ablations are not kept.
        outcome: after the last layer, ``(2L, samples, hidden)`` at the last prompt position: all states in their
            order, then the last layer's text ablation.
        cosine_distances: of the original visual states over each layer so far, ``(samples,)`` each.
    """

    def __init__(
        self, embeddings: Tensor, visual: Tensor, calls: list[dict[str, Any]], added: list[Tensor | None]
    ) -> None:
        self.visual = visual
        self.calls = calls
        self.added = added
        self.states = embeddings.new_empty(2 * len(calls) - 1, *embeddings.shape)
        self.states[0] = embeddings
        self.outcome = embeddings[:0]
        self.cosine_distances: list[Tensor] = []

    @classmethod
    def prepare(cls, model: PreTrainedModel, inputs: Mapping[str, Tensor], number: int) -> _Batch:
        """Runs the stock model up to its layers: it merges images and text, and makes masks and positions."""
        inputs = placed(model, inputs)
        visual = visual_tokens(model.config, inputs["input_ids"])
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ShortVError(f"batch {number} is padded on the right; set the tokenizer's padding_side to 'left'.")
        if not bool(visual.any(dim=1).all()):
            raise ShortVError(
                f"batch {number} has a sample without visual tokens; give every sample an image or a video."
            )
        if bool(visual[:, -1].any()):
            raise ShortVError(f"batch {number} has a prompt that ends in an image or a video; put text after it.")
        with _recorded_calls(text_decoder(model)) as calls:
            model(**inputs, use_cache=False, logits_to_keep=1)
        if not all(isinstance(call["attention_mask"], Tensor | None) for call in calls):
            raise ShortVError("this attention implementation's masks are not tensors; load the model with 'sdpa'.")
        embeddings, *added = [call.pop("hidden_states") for call in calls]
        return cls(embeddings, visual, calls, [states if states.any() else None for states in added])

    def advance(self, index: int, layer: nn.Module, max_batch_tokens: int) -> None:
        """Runs every state through decoder layer `index`, and adds the ablations of that layer."""
        device = next(layer.parameters()).device
        if device.type != "meta":
            self.states, self.visual = self.states.to(device), self.visual.to(device)
        samples, tokens = self.visual.shape
        before = self.states[0].clone()
        parts = self.states[: 1 + 2 * index].split(max(1, max_batch_tokens // (samples * tokens)))
        if index == len(self.calls) - 1:
            # Accelerate may run an offloaded layer on another device than its input's.
            rows = [_last_row(layer, part.flatten(0, 1), self._call(index, part)).to(before.device) for part in parts]
            # The text ablation of this layer: the last prompt position leaves it as it entered.
            self.outcome = torch.cat([*rows, before[:, -1]]).view(-1, samples, before.shape[-1])
            # Only the cosine distance needs the visual tokens after the last layer.
            after = layer(before, **self._call(index, self.states[:1])).to(before.device)
            self.cosine_distances.append(_cosine_distance(before, after, self.visual))
            del self.states
            return
        for part in parts:
            part.copy_(layer(part.flatten(0, 1), **self._call(index, part)).view_as(part))
        visual, after = self.visual[..., None], self.states[0]
        self.cosine_distances.append(_cosine_distance(before, after, self.visual))
        torch.where(visual, before, after, out=self.states[1 + 2 * index])
        torch.where(visual, after, before, out=self.states[2 + 2 * index])
        if (added := self.added[index]) is not None:
            self.states[: 3 + 2 * index] += added.to(device)

    def _call(self, index: int, part: Tensor) -> dict[str, Any]:
        """The keyword arguments of layer `index` for a part of the states: each sample's values once per state."""
        samples = part.shape[1]

        def repeated(value: Any, dim: int = 0) -> Any:
            if isinstance(value, tuple):  # rotary tables: (..., samples, tokens, width)
                return tuple(repeated(item, item.dim() - 3) for item in value)
            if isinstance(value, Tensor) and value.dim() and value.shape[dim] == samples:
                return torch.cat([value] * len(part), dim)
            return value

        return {name: repeated(value) for name, value in self.calls[index].items()}

    def contributions(self, model: PreTrainedModel, divergence: str) -> Tensor:
        """Visual LC, text LC and visual cosine distance, ``(samples, 3, layers)`` float64; after the last layer."""
        head: Any = model.get_output_embeddings()
        logits = head(final_norm(text_decoder(model))(self.outcome))
        distributions = log_probabilities(logits)
        first, second = distributions[:1], distributions[1:]
        if divergence == REVERSE:
            first, second = second, first
        values = (first.exp() * (first - second)).sum(-1)
        # The last layer's visual LC is 0 by definition: nothing reads its visual states.
        visual = torch.cat([values[:-1:2], torch.zeros_like(values[:1])])
        text = torch.cat([values[1::2], values[-1:]])
        cosine_distance = torch.stack([distance.cpu().double() for distance in self.cosine_distances])
        return torch.stack([visual, text, cosine_distance]).permute(2, 0, 1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities over the last dimension, on the CPU.

    They are float64, because small KL divergences are sums of differences that nearly cancel.

    Raises:
        ShortVError: a logit is not finite.
    """
    values = logits.cpu().double().log_softmax(-1)
    if not bool(values.isfinite().all()):
        raise ShortVError("the model gives logits that are not finite; use `dtype` bfloat16 or float32.")
    return values


def _cosine_distance(before: Tensor, after: Tensor, visual: Tensor) -> Tensor:
    """1 - cosine similarity of the visual tokens' states ``(samples, tokens, hidden)``, mean per sample, float32."""
    distance = 1 - nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return distance.where(visual, 0).sum(1) / visual.sum(1)


def _groups(batches: Iterable[_Batch], max_state_bytes: int) -> Iterator[list[_Batch]]:
    """Groups batches: at least one, and more as long as another one of the last one's size would fit."""
    group: list[_Batch] = []
    size = 0
    for batch in batches:
        group.append(batch)
        size += batch.states.nbytes
        if size + batch.states.nbytes > max_state_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Recorder(nn.Module):
    """Stands in for a decoder layer: records its arguments and returns zeros.

    The next layer's input is then what the model itself adds between the two layers.
    """

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, hidden_states: Tensor, *args: None, **kwargs: Any) -> Tensor:
        self.calls.append({"hidden_states": hidden_states, **kwargs})
        return torch.zeros_like(hidden_states)


@contextmanager
def _recorded_calls(text_model: Any) -> Iterator[list[dict[str, Any]]]:
    """Replaces the text model's decoder layers by recorders of their arguments, in this context."""
    calls: list[dict[str, Any]] = []
    layers = text_model.layers
    text_model.layers = nn.ModuleList(_Recorder(calls) for _ in range(text_model.config.num_hidden_layers))
    try:
        yield calls
    finally:
        text_model.layers = layers


class _KeysAndValuesStored(Exception):
    """Ends a layer's call once its keys and values are stored."""


class _KeysAndValues:
    """Stands in for a cache in two calls of a layer: the first stores keys and values, the second reads them."""

    def __init__(self) -> None:
        self.keys_and_values: tuple[Tensor, Tensor] | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens before those of the call. In the second call, that is all but one."""
        return 0 if self.keys_and_values is None else self.keys_and_values[0].shape[2] - 1

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys_and_values is None:
            self.keys_and_values = keys, values
            raise _KeysAndValuesStored
        return self.keys_and_values


def _last_row(layer: nn.Module, hidden_states: Tensor, call: dict[str, Any]) -> Tensor:
    """A stock decoder layer's output at the last token, ``(rows, hidden)``, for states ``(rows, tokens, hidden)``.

    Only keys and values are computed for all tokens. `call` are the layer's keyword arguments.
    """
    if not hasattr(layer, "self_attn"):  # linear attention passes a state from token to token
        return layer(hidden_states, **call)[:, -1]
    call = call | {cache_name(call): _KeysAndValues()}
    with suppress(_KeysAndValuesStored):
        layer(hidden_states, **call)
    tables = call["position_embeddings"]  # Llama 4 has one complex table instead of two
    last = [item[..., -1:, :] for item in ([tables] if isinstance(tables, Tensor) else tables)]
    call["position_embeddings"] = last[0] if isinstance(tables, Tensor) else tuple(last)
    for name, value in call.items():
        if not isinstance(value, Tensor):
            continue
        if name == "attention_mask":
            call[name] = value[:, :, -1:] if value.dim() == 4 else value
        elif value.shape[1:] == hidden_states.shape[1:2]:  # one value per token, such as positions
            call[name] = value[:, -1:]
    return layer(hidden_states[:, -1:], **call)[:, 0]

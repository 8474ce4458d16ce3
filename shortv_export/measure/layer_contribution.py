"""Layer Contribution, exact and layer-major (ShortV, arXiv 2504.00502, Eq. 2), also of single operators.

The LC of decoder layer *i* for a token set *X* (visual or text tokens) is the KL divergence, at the last prompt
position, between the model's next-token distribution and that of the model in which the states of *X* leave layer *i*
as they entered it. For visual tokens, the same is measured with a single operator of the layer left out: attention
alone, or the FFN alone, adds nothing to their states.

A model that answers with one token is judged by the last prompt position. Longer answers depend on visual tokens at
each of their tokens, so the divergence is also measured as the mean over the model's own greedy answer, whose tokens
follow the prompt as text.

One walk over the layers measures every ablation. Ablating layer *i* does not affect the layers before it, so layer *j*
runs, as one batch, the original states and those of the ablations of all layers before *j*. The ablations of layer *j*
itself start from the layer's original input and output. That is about L²/2 layer passes per kind of ablation instead
of L², and each layer's weights are needed once. The last layer computes only the rows that are read.

The stock model makes the embeddings, masks and position embeddings. Its decoder layers are called unchanged, with any
`accelerate` hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..base.definition import cache_name, final_norm, frozen_by_definition, placed, text_decoder, visual_tokens
from ..errors import ShortVError
from ..options import Scoring
from .memory import out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_ANSWER_TOKENS = 32
"""Most tokens of an answer at which divergences are measured."""


Contributions = dict[str, Tensor]
"""Of one sample, ``(layers,)`` float64 on the CPU each:

- ``"visual"`` (the paper's LC), ``"attention"``, ``"ffn"``: KL at the last prompt position, in nats, with everything
  left out for visual tokens, or that operator alone. The operators only if they are asked for.
- ``"answer_visual"``, ``"answer_attention"``, ``"answer_ffn"``: the mean over the answer, if answers are asked for.
- ``"text"``: LC of the text tokens, if asked for.
- ``"visual_cosine_distance"``: 1 - cosine similarity of a visual token's hidden state before and after the layer, mean
  over the visual tokens. The paper compares LC with it.

``"tokens"`` has the numbers of text and of visual tokens of the prompt, and of tokens of the answer: ``(3,)``.
"""


def layer_contributions(
    model: PreTrainedModel,
    inputs: Iterable[Mapping[str, Tensor]],
    *,
    layers: Iterable[nn.Module] | None = None,
    scoring: Scoring = Scoring(),
    max_state_bytes: int = 0,
    on_sample: Callable[[Contributions], None] | None = None,
) -> list[Contributions]:
    """Measures the Layer Contribution of every decoder layer, and that of its operators.

    Besides the model and one layer call, a batch needs memory for its states: (kL-k+1) x samples x tokens x hidden
    size x bytes per value, for k kinds of ablation (see `Scoring.ablations`).

    Args:
        model: a stock model of a supported family, in evaluation mode; it may be dispatched over devices.
        inputs: what its processor returns, one sample at a time; also left-padded batches, unless answers are read.
        layers: the decoder layers, if not the model's own (see `StreamedLayers`). Each group of batches reads them
            once; each token of an answer, too.
        scoring: the direction of the divergence, the positions, whether text tokens are measured, and the most tokens
            per layer call; a single state may be longer.
        max_state_bytes: most memory for the states of a group: batches that pass each layer together, so that the
            layers are read less often. With 0, every batch is a group.
        on_sample: called for each finished sample, in order.

    Raises:
        ShortVError: a sample has no visual tokens, has one at the last prompt position, or is padded on the right; the
            logits are not finite; memory runs out.
    """
    if model.training:
        raise ShortVError("the model is in training mode; call model.eval() first.")
    decoder: Iterable[nn.Module] = text_decoder(model).layers if layers is None else layers
    kinds = scoring.ablations
    finished: list[Contributions] = []
    batch_tokens = scoring.max_batch_tokens
    advice = f"lower `max_batch_tokens` (now {batch_tokens}), or use `stream` or `device_map` auto"
    with torch.inference_mode(), out_of_memory(advice):
        if not scoring.over_answer:
            answered: Iterable[tuple[Mapping[str, Tensor], int]] = ((each, 1) for each in inputs)
        elif layers is None:
            answered = (with_answer(model, each, greedy_answer(model, each)) for each in inputs)
        else:
            answered = _streamed_answers(model, layers, [*inputs])
        batches = (
            _Batch.prepare(model, each, positions, kinds, number)
            for number, (each, positions) in enumerate(answered, start=1)
        )
        for group in _groups(batches, max_state_bytes):
            for index, layer in enumerate(decoder):
                for batch in group:
                    batch.advance(index, layer, batch_tokens)
            for batch in group:
                for sample in batch.contributions(model, scoring):
                    finished.append(sample)
                    if on_sample is not None:
                        on_sample(sample)
    if not finished:
        raise ShortVError("there are no samples to measure on.")
    return finished


class _Batch:
    """Some samples between two layers: the original states and those of every ablation so far.

    Attributes:
        visual: ``(samples, tokens)`` bool; an answer's tokens are text.
        calls: the keyword arguments that the stock model gives to each layer.
        added: what the stock model adds to the states after each layer but the last, such as deepstack features; or
            None.
        positions: the number of rows at the end whose distributions are compared: one, or as many as the answer has
            tokens.
        kinds: of ablations; none for a plain forward pass.
        states: ``(1 + k(L-1), samples, tokens, hidden)``: the original, then the k ablations of layer 0, of layer 1,
            and so on. No layer follows the last one, so its ablations are not kept.
        outcome: after the last layer, ``(1 + k(L-1) + 1, samples, positions, hidden)``: all states in their order,
            then the last layer's text ablation.
        cosine_distances: of the original visual states over each layer so far, ``(samples,)`` each.
    """

    def __init__(
        self,
        embeddings: Tensor,
        visual: Tensor,
        calls: list[dict[str, Any]],
        added: list[Tensor | None],
        kinds: tuple[str, ...],
        positions: int,
    ) -> None:
        self.visual = visual
        self.calls = calls
        self.added = added
        self.kinds = kinds
        self.positions = positions
        self.states = embeddings.new_empty(1 + len(kinds) * (len(calls) - 1), *embeddings.shape)
        self.states[0] = embeddings
        self.outcome = embeddings[:0]
        self.cosine_distances: list[Tensor] = []

    @classmethod
    def prepare(
        cls, model: PreTrainedModel, inputs: Mapping[str, Tensor], positions: int, kinds: tuple[str, ...], number: int
    ) -> _Batch:
        """Runs the stock model up to its layers: it merges images and text, and makes masks and positions.

        Args:
            inputs: of a batch; a prompt and its answer but the last token, of one sample, if `positions` is not 1.
            positions: see the attributes.
            kinds: see the attributes.
            number: of the batch, for messages.
        """
        inputs = placed(model, inputs)
        visual = visual_tokens(model.config, inputs["input_ids"])
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ShortVError(f"batch {number} is padded on the right; set the tokenizer's padding_side to 'left'.")
        if not bool(visual.any(dim=1).all()):
            raise ShortVError(
                f"batch {number} has a sample without visual tokens; give every sample an image or a video."
            )
        if bool(visual[:, -positions].any()):
            raise ShortVError(f"batch {number} has a prompt that ends in an image or a video; put text after it.")
        decoder, prompt = text_decoder(model), visual.shape[1] - positions + 1
        with _recorded_calls(decoder) as calls, later_answer_hidden(decoder.layers, prompt):
            model(**inputs, use_cache=False, logits_to_keep=1)
        if not all(isinstance(call["attention_mask"], Tensor | None) for call in calls):
            raise ShortVError("this attention implementation's masks are not tensors; load the model with 'sdpa'.")
        embeddings, *added = [call.pop("hidden_states") for call in calls]
        return cls(embeddings, visual, calls, [states if states.any() else None for states in added], kinds, positions)

    def advance(self, index: int, layer: nn.Module, max_batch_tokens: int) -> None:
        """Runs every state through decoder layer `index`, and adds the ablations of that layer."""
        device = next(layer.parameters()).device
        if device.type != "meta":
            self.states, self.visual = self.states.to(device), self.visual.to(device)
        samples, tokens = self.visual.shape
        before = self.states[0].clone()
        known = 1 + len(self.kinds) * index
        parts = self.states[:known].split(max(1, max_batch_tokens // (samples * tokens)))
        if index == len(self.calls) - 1:
            read = self.positions
            # Accelerate may run an offloaded layer on another device than its input's.
            rows = [
                _last_rows(layer, part.flatten(0, 1), self._call(index, part), read).to(before.device)
                for part in parts
            ]
            # The text ablation of this layer: the rows that are read leave it as they entered.
            self.outcome = torch.cat([*rows, before[:, -read:]]).unflatten(0, (-1, samples))
            if self.kinds:
                # Only the cosine distance needs the visual tokens after the last layer.
                after = layer(before, **self._call(index, self.states[:1])).to(before.device)
                self.cosine_distances.append(_cosine_distance(before, after, self.visual))
            del self.states
            return
        for part in parts:
            part.copy_(layer(part.flatten(0, 1), **self._call(index, part)).view_as(part))
        if self.kinds:
            after = self.states[0]
            self.cosine_distances.append(_cosine_distance(before, after, self.visual))
            for kind, state in zip(self.kinds, self.states[known:], strict=False):
                state.copy_(self._ablated(kind, index, layer, before, after))
        if (added := self.added[index]) is not None:
            self.states[: known + len(self.kinds)] += added.to(device)

    def _ablated(self, kind: str, index: int, layer: nn.Module, before: Tensor, after: Tensor) -> Tensor:
        """The states after a layer, ``(samples, tokens, hidden)``, with an ablation of this layer."""
        visual = self.visual[..., None]
        if kind == "visual":
            return torch.where(visual, before, after)
        if kind == "text":
            return torch.where(visual, after, before)
        with frozen_by_definition(nn.ModuleList([layer]), [], self.visual, **{f"frozen_{kind}": [0]}):
            output: Tensor = layer(before, **self._call(index, self.states[:1]))
        return output

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

    def contributions(self, model: PreTrainedModel, scoring: Scoring) -> list[Contributions]:
        """Of each sample; after the last layer."""
        original = self.distributions(model, 0)

        def divergence(state: int) -> Tensor:
            first, second = original, self.distributions(model, state)
            if scoring.divergence == "reverse":
                first, second = second, first
            return (first.exp() * (first - second)).sum(-1)

        values: Contributions = {}
        last = len(self.outcome) - 1
        for place, kind in enumerate(self.kinds, start=1):
            found = [divergence(state) for state in range(place, last, len(self.kinds))]
            # Nothing reads the visual states of the last layer.
            found.append(divergence(last) if kind == "text" else original.new_zeros(original.shape[:-1]))
            by_position = torch.stack(found, dim=-1)  # (samples, positions, layers)
            values[kind] = by_position[:, 0]
            if scoring.over_answer and kind != "text":
                values[f"answer_{kind}"] = by_position.mean(1)
        values["visual_cosine_distance"] = torch.stack([each.cpu().double() for each in self.cosine_distances], dim=-1)
        visual = self.visual.sum(1).cpu()
        text = self.visual.shape[1] - visual - (self.positions - 1)
        values["tokens"] = torch.stack([text, visual, torch.full_like(visual, self.positions)], dim=-1).double()
        return [{name: rows[sample] for name, rows in values.items()} for sample in range(len(visual))]

    def distributions(self, model: PreTrainedModel, state: int) -> Tensor:
        """Log-probabilities at the positions that are read, ``(samples, positions, vocabulary)``."""
        head: Any = model.get_output_embeddings()
        return log_probabilities(head(final_norm(text_decoder(model))(self.outcome[state])))


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


def greedy_answer(model: Any, inputs: Mapping[str, Tensor]) -> list[int]:
    """The model's own greedy answer to one sample: token ids, at most `MAX_ANSWER_TOKENS`.

    The settings of its generation config, such as penalties, are left aside: this is the answer whose tokens the
    model's own distributions put first.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    # What a config given to `generate` leaves open would be filled in from the model's own.
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    try:
        with torch.inference_mode():
            output = model.generate(**placed(model, inputs), max_new_tokens=MAX_ANSWER_TOKENS)
    finally:
        model.generation_config = own
    answer: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return answer


def with_answer(model: Any, inputs: Mapping[str, Tensor], answer: Sequence[int]) -> tuple[Mapping[str, Tensor], int]:
    """The inputs of one sample followed by its answer, and at how many rows at the end the answer's tokens are read.

    The last token of the answer is left out, since nothing is read after it. A placeholder of an image or a video ends
    the answer, because a model replaces placeholders in its inputs.
    """
    placeholders = visual_tokens(model.config, torch.tensor(answer)).tolist()
    length = placeholders.index(True) + 1 if any(placeholders) else len(answer)
    ids = inputs["input_ids"]
    tokens = torch.tensor([answer[: length - 1]], dtype=ids.dtype, device=ids.device)

    def extended(name: str, value: Tensor) -> Tensor:
        if name == "input_ids":
            return torch.cat([value, tokens], 1)
        if value.shape != ids.shape:
            return value
        # An answer is attended to, and it is of the type text, which is 0.
        return torch.cat([value, torch.full_like(tokens, name == "attention_mask", dtype=value.dtype)], 1)

    return {name: extended(name, value) for name, value in inputs.items()}, length


def _streamed_answers(
    model: Any, layers: Iterable[nn.Module], inputs: Sequence[Mapping[str, Tensor]]
) -> list[tuple[Mapping[str, Tensor], int]]:
    """As `with_answer` and `greedy_answer`, for layers that are read again for each token of the answers."""
    found = model.generation_config.eos_token_id
    ends = {*(found if isinstance(found, list) else [found])}
    answers: list[list[int]] = [[] for _ in inputs]
    for _ in range(MAX_ANSWER_TOKENS):
        unfinished = [number for number, answer in enumerate(answers) if not (answer and answer[-1] in ends)]
        group = []
        for number in unfinished:
            prompt, length = with_answer(model, inputs[number], [*answers[number], 0])
            group.append(_Batch.prepare(model, prompt, length, (), number + 1))
        for index, layer in enumerate(layers if group else ()):
            for batch in group:
                batch.advance(index, layer, 1)
        for number, batch in zip(unfinished, group, strict=True):
            answers[number].append(int(batch.distributions(model, 0)[0, -1].argmax()))
    return [with_answer(model, each, answer) for each, answer in zip(inputs, answers, strict=True)]


@contextmanager
def later_answer_hidden(layers: Iterable[nn.Module], prompt: int) -> Iterator[None]:
    """Makes masks causal over the tokens of an answer, as they are when it is generated token by token.

    Where a prompt attends to all of itself (PaliGemma), a stock model would let it attend to the answer, too.

    Args:
        layers: decoder layers, or what stands for them.
        prompt: number of tokens before the answer.
    """
    hidden: dict[int, tuple[Tensor, Tensor]] = {}  # layers share masks

    def hide(layer: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = call.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] <= prompt:
            return args, call
        if id(mask) not in hidden:
            tokens = mask.shape[-1]
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).triu(1)
            later[:, :prompt] = False
            off: Any = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            hidden[id(mask)] = mask, mask.masked_fill(later, off)
        return args, call | {"attention_mask": hidden[id(mask)][1]}

    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
    """Stands in for a cache in two calls of a layer: the first stores keys and values, the second reads them.

    Args:
        queries: number of tokens in the second call.
    """

    def __init__(self, queries: int) -> None:
        self.queries = queries
        self.keys_and_values: tuple[Tensor, Tensor] | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens before those of the call."""
        return 0 if self.keys_and_values is None else self.keys_and_values[0].shape[2] - self.queries

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys_and_values is None:
            self.keys_and_values = keys, values
            raise _KeysAndValuesStored
        return self.keys_and_values


def _last_rows(layer: nn.Module, hidden_states: Tensor, call: dict[str, Any], count: int) -> Tensor:
    """A stock decoder layer's output at the last `count` tokens, ``(rows, count, hidden)``.

    Only keys and values are computed for all tokens of the states ``(rows, tokens, hidden)``. `call` are the layer's
    keyword arguments.
    """
    if not hasattr(layer, "self_attn"):  # linear attention passes a state from token to token
        return layer(hidden_states, **call)[:, -count:]
    call = call | {cache_name(call): _KeysAndValues(count)}
    with suppress(_KeysAndValuesStored):
        layer(hidden_states, **call)
    tables = call["position_embeddings"]  # Llama 4 has one complex table instead of two
    last = [item[..., -count:, :] for item in ([tables] if isinstance(tables, Tensor) else tables)]
    call["position_embeddings"] = last[0] if isinstance(tables, Tensor) else tuple(last)
    if call["attention_mask"] is None and count > 1:
        # Without a mask, a layer takes fewer queries than keys to be the first ones.
        tokens = hidden_states.shape[1]
        causal = torch.ones(count, tokens, dtype=torch.bool, device=hidden_states.device).tril(tokens - count)
        call["attention_mask"] = causal[None, None]
    for name, value in call.items():
        if not isinstance(value, Tensor):
            continue
        if name == "attention_mask":
            call[name] = value[:, :, -count:] if value.dim() == 4 else value
        elif value.shape[1:] == hidden_states.shape[1:2]:  # one value per token, such as positions
            call[name] = value[:, -count:]
    return layer(hidden_states[:, -count:], **call)

"""Layer Contribution, exact and layer-major (ShortV, arXiv 2504.00502, Eq. 2).

The LC of decoder layer *i* for a token set *X* (visual or text tokens) is the KL divergence, at the last
prompt position, between the model's next-token distribution and that of the model in which *X* leaves layer
*i* as it entered it. Layers before *i* do not notice, and layer *i* itself computes what it always does, so
one walk over the layers serves every ablation: at layer *j* the original states and those of the ablations of
all layers before *j* pass together, and the ablation of *j* is the layer's original output with the rows of
*X* taken from its input. That is L(L+1)/2 layer passes per token set instead of L² + L, and each layer is
needed once. In the last layer only the last prompt position is computed.

The stock model makes the embeddings, masks and position embeddings itself; the decoder layers are called as
they are, through whatever hooks placed them (`accelerate`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import ShortVError
from .oracle import text_decoder, visual_tokens
from .recipe import Scores, library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from .base_model import BaseModel
    from .calibration import Calibration

FORWARD = "kl(original||ablated)"
"""The paper's Eq. 2."""
REVERSE = "kl(ablated||original)"
"""What the paper's reference code computes."""

MAX_BATCH_TOKENS = 8192
"""Tokens per call of a decoder layer; the FFN of a 7B model then holds about half a gigabyte in bf16."""

STREAM_STATE_BYTES = 4 * 1024**3
"""Hidden states held at a time while streaming: more samples per reading of the weights."""


@dataclass(frozen=True)
class LayerContributions:
    """Layer Contributions of each sample, in nats; all ``(samples, layers)`` float64 on the CPU.

    Attributes:
        visual, text: of the visual and of the text tokens.
        visual_cosine_distance: 1 - cosine similarity of a visual token's hidden state before and after the layer,
            mean over the visual tokens; what the paper compares LC with.
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

    Beside the model and one layer call of `max_batch_tokens`, a batch needs memory for its states: (2L-1) x
    samples x tokens x hidden size x bytes per value.

    Args:
        model: a stock model of a supported family, in evaluation mode; it may be dispatched over devices.
        inputs: what its processor returns, one sample or a left-padded batch at a time.
        layers: the decoder layers, if not the model's own (see `StreamedLayers`); iterated once per group.
        divergence: `FORWARD` (the paper's Eq. 2) or `REVERSE` (its reference code).
        max_batch_tokens: tokens per layer call; at least one state passes at a time, however long it is.
        max_state_bytes: how much memory the states of the batches that pass a layer together may take. Zero:
            batches go one by one, which costs nothing while the layers stay in memory.
        on_sample: called with each finished sample's visual LC, text LC and visual cosine distance, ``(3, layers)``,
            in order.

    Raises:
        ShortVError: a sample without visual tokens, with one at the last prompt position, or padded on the
            right; logits that are not finite; too little memory.
    """
    if divergence not in (FORWARD, REVERSE):
        raise ShortVError(f"divergence must be {FORWARD!r} or {REVERSE!r}, not {divergence!r}.")
    if model.training:
        raise ShortVError("the model is in training mode; call model.eval() first.")
    decoder: Iterable[nn.Module] = text_decoder(model).layers if layers is None else layers
    finished: list[Tensor] = []
    with torch.inference_mode(), _memory_errors(max_batch_tokens):
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
    """Some samples on their way through the layers: the original states and those of every ablation so far.

    Attributes:
        number: of the batch, for messages.
        visual: ``(samples, tokens)`` bool.
        calls: the keyword arguments that the stock model gives to each layer.
        states: ``(2L-1, samples, tokens, hidden)``; first the original, then the visual and the text ablation
            of layer 0, those of layer 1, and so on. The last layer's need no place, as no layer follows.
        outcome: after the last layer, ``(2L, samples, hidden)`` at the last prompt position: of all states in
            their order, then of the last layer's text ablation.
        cosine_distances: of the original visual states over each layer so far, ``(samples,)`` each.
    """

    def __init__(self, number: int, embeddings: Tensor, visual: Tensor, calls: list[dict[str, Any]]) -> None:
        self.number = number
        self.visual = visual
        self.calls = calls
        self.states = embeddings.new_empty(2 * len(calls) - 1, *embeddings.shape)
        self.states[0] = embeddings
        self.outcome = embeddings[:0]
        self.cosine_distances: list[Tensor] = []

    @classmethod
    def prepare(cls, model: PreTrainedModel, inputs: Mapping[str, Tensor], number: int) -> _Batch:
        """Lets the stock model merge images and text, and make masks and positions, without its layers."""
        embedding: Any = model.get_input_embeddings()
        device = embedding.weight.device
        if device.type != "meta":  # a meta weight is accelerate's, whose hooks move the inputs
            inputs = {name: value.to(device) for name, value in inputs.items()}
        visual = visual_tokens(model.config, inputs["input_ids"])
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ShortVError(f"batch {number} is padded on the right; set the tokenizer's padding_side to 'left'.")
        if not bool(visual.any(dim=1).all()):
            raise ShortVError(f"batch {number} has a sample without visual tokens; give every sample an image.")
        if bool(visual[:, -1].any()):
            raise ShortVError(f"batch {number} has a prompt that ends in an image; put text after it.")
        with _recorded_calls(text_decoder(model)) as calls:
            model(**inputs, use_cache=False, logits_to_keep=1)
        if not all(isinstance(call["attention_mask"], Tensor | None) for call in calls):
            raise ShortVError("this attention implementation's masks are not tensors; load the model with 'sdpa'.")
        embeddings = calls[0]["hidden_states"]
        for call in calls:
            del call["hidden_states"]
        return cls(number, embeddings, visual, calls)

    def advance(self, index: int, layer: nn.Module, max_batch_tokens: int) -> None:
        """Takes every state through decoder layer `index`, and adds the ablations of that layer."""
        device = next(layer.parameters()).device
        if device.type != "meta":
            self.states, self.visual = self.states.to(device), self.visual.to(device)
        samples, tokens = self.visual.shape
        before = self.states[0].clone()
        parts = self.states[: 1 + 2 * index].split(max(1, max_batch_tokens // (samples * tokens)))
        if index == len(self.calls) - 1:
            rows = [_last_row(layer, part.flatten(0, 1), self._call(index, part)) for part in parts]
            # Text frozen in this layer: its last prompt position leaves as it entered.
            self.outcome = torch.cat([*rows, before[:, -1]]).view(-1, samples, before.shape[-1])
            # Only the cosine distance asks what the last layer does to the visual tokens.
            after = layer(before, **self._call(index, self.states[:1]))
            self.cosine_distances.append(_cosine_distance(before, after, self.visual))
            del self.states
            return
        for part in parts:
            part.copy_(layer(part.flatten(0, 1), **self._call(index, part)).view_as(part))
        visual, after = self.visual[..., None], self.states[0]
        self.cosine_distances.append(_cosine_distance(before, after, self.visual))
        torch.where(visual, before, after, out=self.states[1 + 2 * index])
        torch.where(visual, after, before, out=self.states[2 + 2 * index])

    def _call(self, index: int, part: Tensor) -> dict[str, Any]:
        """The keyword arguments of layer `index` for some states: what differs by sample is repeated."""
        samples = part.shape[1]

        def repeated(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(repeated(item) for item in value)
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == samples:
                return value.expand(len(part), *value.shape).flatten(0, 1)
            return value

        return {name: repeated(value) for name, value in self.calls[index].items()}

    def contributions(self, model: PreTrainedModel, divergence: str) -> Tensor:
        """After the last layer: visual LC, text LC and visual cosine distance, ``(samples, 3, layers)`` float64."""
        head: Any = model.get_output_embeddings()
        logits = head(text_decoder(model).norm(self.outcome))
        # In float64, because a small divergence is a sum of differences that nearly cancel.
        log_probabilities = logits.cpu().double().log_softmax(-1)
        if not bool(log_probabilities.isfinite().all()):
            raise ShortVError(f"batch {self.number} gives logits that are not finite; use dtype bfloat16 or float32.")
        first, second = log_probabilities[:1], log_probabilities[1:]
        if divergence == REVERSE:
            first, second = second, first
        values = (first.exp() * (first - second)).sum(-1)
        # The last layer's visual LC is 0 by definition: nothing reads the visual states after it.
        visual = torch.cat([values[:-1:2], torch.zeros_like(values[:1])])
        text = torch.cat([values[1::2], values[-1:]])
        cosine_distance = torch.stack([distance.cpu().double() for distance in self.cosine_distances])
        return torch.stack([visual, text, cosine_distance]).permute(2, 0, 1)


def _cosine_distance(before: Tensor, after: Tensor, visual: Tensor) -> Tensor:
    """1 - cosine similarity of the visual tokens' states, mean per sample: ``(samples,)`` float32.

    Args:
        before, after: ``(samples, tokens, hidden)``.
        visual: ``(samples, tokens)`` bool.
    """
    distance = 1 - nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return distance.where(visual, 0).sum(1) / visual.sum(1)


def _groups(batches: Iterable[_Batch], max_state_bytes: int) -> Iterator[list[_Batch]]:
    """Batches that pass each layer together: one, or as many as fit if the next is like the last."""
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
    """Stands in for a decoder layer: keeps what it was called with and changes nothing."""

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        self.calls.append({"hidden_states": hidden_states, **kwargs})
        return hidden_states


@contextmanager
def _recorded_calls(text_model: Any) -> Iterator[list[dict[str, Any]]]:
    """While the context lasts, the text model's decoder layers only record the arguments of their calls."""
    calls: list[dict[str, Any]] = []
    layers = text_model.layers
    text_model.layers = nn.ModuleList(_Recorder(calls) for _ in range(text_model.config.num_hidden_layers))
    try:
        yield calls
    finally:
        text_model.layers = layers


class _KeysAndValuesComplete(Exception):
    """A `_KeysAndValues` has what it is for."""


class _KeysAndValues:
    """Stands in for a cache in two calls of a layer: takes keys and values, then gives them."""

    def __init__(self) -> None:
        self.keys_and_values: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys_and_values is None:
            self.keys_and_values = keys, values
            raise _KeysAndValuesComplete
        return self.keys_and_values


def _last_row(layer: nn.Module, hidden_states: Tensor, call: dict[str, Any]) -> Tensor:
    """A decoder layer's output at the last token: keys and values of all tokens, all else of that token only.

    Args:
        layer: a stock decoder layer.
        hidden_states: ``(rows, tokens, hidden)``.
        call: the layer's keyword arguments.

    Returns:
        ``(rows, hidden)``.
    """
    call = call | {"past_key_values": _KeysAndValues()}
    with suppress(_KeysAndValuesComplete):
        layer(hidden_states, **call)
    call["position_embeddings"] = tuple(item[:, -1:] for item in call["position_embeddings"])
    call["position_ids"] = call["position_ids"][:, -1:]
    if call["attention_mask"] is not None and call["attention_mask"].dim() == 4:
        call["attention_mask"] = call["attention_mask"][:, :, -1:]
    return layer(hidden_states[:, -1:], **call)[:, 0]


@contextmanager
def _memory_errors(max_batch_tokens: int) -> Iterator[None]:
    """Says what to do when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise ShortVError(
            f"out of memory; lower max_batch_tokens (now {max_batch_tokens}), or use device_map or stream."
        ) from None


class StreamedLayers:
    """The decoder layers of a checkpoint, read from its safetensors one at a time and dropped after use.

    Iterating yields stock layers in order; a layer's weights are gone once the next one is asked for.

    Args:
        files: the checkpoint's safetensors files.
        config: of the text model, as the model that will call the layers has it.
        dtype, device: of the layers.

    Raises:
        ShortVError: a layer's tensors are missing or have other shapes.
    """

    def __init__(
        self, files: Sequence[Path], config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        from safetensors import safe_open
        from transformers import AutoModel

        self.dtype = dtype
        self.device = device
        with torch.device("meta"):
            text_model: Any = AutoModel.from_config(config, dtype=dtype)
        self.layers: nn.ModuleList = text_model.layers.eval()
        # For each layer, {file: {tensor name in the file: parameter name in the layer}}.
        self.places: list[dict[Path, dict[str, str]]] = [{} for _ in self.layers]
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if (match := _DECODER_TENSOR.search(name)) and int(match["layer"]) < len(self.places):
                        self.places[int(match["layer"])].setdefault(file, {})[name] = match["parameter"]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[nn.Module]:
        from safetensors import safe_open

        for index, (layer, places) in enumerate(zip(self.layers, self.places, strict=True)):
            weights: dict[str, Tensor] = {}
            for file, names in places.items():
                with safe_open(file, framework="pt", device=str(self.device)) as tensors:
                    for name, parameter in names.items():
                        weights[parameter] = tensors.get_tensor(name).to(self.dtype)
            try:
                layer.load_state_dict(weights, assign=True)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ShortVError(f"decoder layer {index} cannot be read: {reason}") from None
            weights.clear()
            yield layer
            layer.to("meta")


# `language_model.model.layers.0...` in llava-hf repositories, `model.language_model.layers.0...` in newer.
_DECODER_TENSOR = re.compile(r"(^|\.)language_model\.(model\.)?layers\.(?P<layer>\d+)\.(?P<parameter>.+)$")


def load_streamed(
    folder: Path, files: Sequence[Path], *, dtype: str | torch.dtype = "auto", device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, StreamedLayers]:
    """The stock model without its decoder layers, and the layers to stream.

    Args:
        folder: of the checkpoint.
        files: its safetensors files.
        dtype, device: of both.

    Raises:
        ShortVError: the checkpoint lacks tensors.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import logging

    config = AutoConfig.from_pretrained(folder)
    num_layers = config.text_config.num_hidden_layers
    config.text_config.num_hidden_layers = 0
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # every decoder tensor is unexpected, on purpose
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ShortVError(f"the checkpoint lacks the tensors {missing}; download it again.")
    text_config = text_decoder(model).config
    text_config.num_hidden_layers = num_layers
    layers = StreamedLayers(files, text_config, model.dtype, torch.device(device))
    return model.to(device).eval(), layers


def score(
    base: BaseModel,
    calibration: Calibration,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    stream: bool = False,
    divergence: str = FORWARD,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    output: Path | None = None,
    write: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Measures a base's Layer Contributions: means over the calibration samples, and standard errors.

    Under `accelerate launch` or `torchrun` the samples are divided among the processes, and every process
    returns the scores of all. Every sample is a batch of its own, without padding, so the result depends
    neither on how they are divided nor on where a run was interrupted.

    Args:
        base: the base model.
        calibration: the samples to measure on.
        dtype, device_map: how to load the base; without a map it goes on this process's accelerator, if any.
        stream: read the decoder layers from disk one at a time instead of loading them.
        divergence, max_batch_tokens: see `layer_contributions`.
        output: where to save the scores. Finished samples are kept beside it until then
            (``<output>.partial.jsonl``), and a run that was interrupted goes on from there.
        write: False leaves the finished samples there and writes no scores, for a call with more samples to come
            (see `write_scores`).
        progress: called with how many of this process's samples are done, and how many it has.

    Raises:
        ShortVError: see `layer_contributions`; both `stream` and `device_map`; the output cannot be written.
    """
    from accelerate import PartialState
    from accelerate.utils import reduce
    from transformers import AutoProcessor

    from .base_model import load_base
    from .calibration import encode

    if stream and device_map is not None:
        raise ShortVError("stream and device_map exclude each other; leave out one of them.")
    if not calibration.samples:
        raise ShortVError("there are no samples to measure on.")
    process = PartialState()
    device = process.device
    finished = _FinishedSamples(output, _settings(base, dtype, divergence), process.process_index)
    numbers = range(process.process_index, len(calibration.samples), process.num_processes)
    samples = [calibration.samples[number] for number in numbers]
    missing = [sample for sample in samples if sample.digest not in finished]

    if progress is not None:
        progress(len(samples) - len(missing), len(samples))
    if missing:
        layers = None
        if stream:
            files = [base.path / name for name in base.files if name.endswith(".safetensors")]
            model, layers = load_streamed(base.path, files, dtype=dtype, device=device)
            processor = AutoProcessor.from_pretrained(base.path)
        else:
            if device_map is None and device.type != "cpu":
                device_map = {"": str(device)}
            model, processor = load_base(base, dtype=dtype, device_map=device_map)
        queue = iter(missing)
        left = len(missing)

        def on_sample(values: Tensor) -> None:
            nonlocal left
            finished.add(next(queue).digest, values)
            left -= 1
            if progress is not None:
                progress(len(samples) - left, len(samples))

        layer_contributions(
            model,
            (encode(processor, [sample]) for sample in missing),
            layers=layers,
            divergence=divergence,
            max_batch_tokens=max_batch_tokens,
            max_state_bytes=STREAM_STATE_BYTES if stream else 0,
            on_sample=on_sample,
        )

    # Every process fills in its own samples; adding zeros is exact, so the sum is what one process has.
    values = torch.zeros(len(calibration.samples), 3, base.num_layers, dtype=torch.float64)
    for number, sample in zip(numbers, samples, strict=True):
        values[number] = finished[sample.digest]
    if process.num_processes > 1:
        values = reduce(values.to(device), "sum").cpu()
    scores = _summary(values, base, calibration, divergence)
    if output is not None and write:
        write_scores(scores, output)
    return scores


def write_scores(scores: Scores, output: Path) -> None:
    """Saves the scores that all processes have, and removes the finished samples beside them.

    Those of an earlier run with more processes, too.
    """
    from accelerate import PartialState

    process = PartialState()
    if process.is_main_process:
        scores.save(output)
    process.wait_for_everyone()
    for path in _finished_files(output):
        path.unlink(missing_ok=True)


def _finished_files(output: Path) -> list[Path]:
    return sorted(output.parent.glob(f"{glob.escape(output.name)}.partial*.jsonl"))


def _summary(values: Tensor, base: BaseModel, calibration: Calibration, divergence: str) -> Scores:
    """The scores of samples whose ``(samples, 3, layers)`` are visual LC, text LC and visual cosine distance."""
    visual, text, cosine_distance = values.unbind(1)
    num_samples = len(values)
    error = visual.std(0) / num_samples**0.5 if num_samples > 1 else torch.zeros_like(visual[0])
    return Scores(
        visual=tuple(visual.mean(0).tolist()),
        text=tuple(text.mean(0).tolist()),
        visual_standard_error=tuple(error.tolist()),
        num_samples=num_samples,
        visual_samples=tuple(map(tuple, visual.tolist())),
        visual_cosine_distance=tuple(cosine_distance.mean(0).tolist()),
        divergence=divergence,
        calibration=calibration.record,
        base={"repo_id": base.repo_id, "revision": base.revision},
        versions=library_versions(),
    )


def _settings(base: BaseModel, dtype: str | torch.dtype, divergence: str) -> str:
    """A digest of what a sample's LC depends on besides the sample."""
    stats = {}
    if base.revision is None:  # a folder's files may change between two runs
        stats = {name: [(stat := (base.path / name).stat()).st_size, stat.st_mtime_ns] for name in base.files}
    what = [base.repo_id, base.revision, stats, base.config, str(dtype), divergence, library_versions()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class _FinishedSamples:
    """The samples that are done: in memory, and one JSON line each beside the output.

    A process appends to its own file and reads all of them, so a run may go on with more or fewer processes.

    Args:
        output: the file that the scores will go to; None keeps nothing on disk.
        settings: digest of the settings; lines of other settings are not used.
        process: number of this process.
    """

    NAMES = ("visual", "text", "visual_cosine_distance")

    def __init__(self, output: Path | None, settings: str, process: int) -> None:
        self.settings = settings
        self.values: dict[str, Tensor] = {}
        self.path: Path | None = None
        if output is None:
            return
        self.path = output.with_name(f"{output.name}.partial{f'-{process}' if process else ''}.jsonl")
        for path in _finished_files(output):
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            record = json.loads(line)
        except ValueError:  # the line that an interrupted run was writing
            return
        if record.get("settings") == self.settings:
            self.values[record["sample"]] = torch.tensor([record[name] for name in self.NAMES], dtype=torch.float64)

    def __contains__(self, digest: str) -> bool:
        return digest in self.values

    def __getitem__(self, digest: str) -> Tensor:
        """Visual LC, text LC and visual cosine distance of a sample, ``(3, layers)`` float64."""
        return self.values[digest]

    def add(self, digest: str, values: Tensor) -> None:
        """Keeps a sample.

        Raises:
            ShortVError: it cannot be written.
        """
        self.values[digest] = values
        if self.path is None:
            return
        record = {"settings": self.settings, "sample": digest, **dict(zip(self.NAMES, values.tolist(), strict=True))}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # First an end of line: an interrupted run may have left half a line.
                file.write(f"\n{json.dumps(record)}\n")
        except OSError as error:
            raise ShortVError(f"cannot write {self.path}: {error.strerror}.") from None

"""Reads a stock model's decoder layers from disk one at a time, for models larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..base.definition import text_decoder
from ..errors import ShortVError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def stored_tensors(files: Sequence[Path]) -> Iterator[tuple[Path, str, Any]]:
    """File, name and header (``get_shape()``, ``get_dtype()``) of each tensor in safetensors files."""
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                yield file, name, tensors.get_slice(name)


class CheckpointLayers:
    """Tells which decoder layer a tensor of a checkpoint belongs to, as transformers renames and converts tensors.

    Args:
        config: of the stock model.
        dtype: of its layers; by default that of the config.

    Attributes:
        model: the stock model, without weights.
        layers: its decoder layers.
        mapping: transformers' renamings and conversions for the checkpoint.
    """

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype | None = None) -> None:
        from transformers import AutoModelForImageTextToText
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        with torch.device("meta"):
            self.model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
        self.layers: nn.ModuleList = text_decoder(self.model).layers
        self.mapping: list[Any] = get_model_conversion_mapping(self.model)
        self._renamings = [entry for entry in self.mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in self.mapping if isinstance(entry, WeightConverter)]
        self._parameters = self.model.state_dict()
        self._prefix = next(f"{name}." for name, module in self.model.named_modules() if module is self.layers)

    def layer_of(self, name: str) -> int | None:
        """The number of a tensor's decoder layer; None if the tensor belongs to no layer."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        name, _ = rename_source_key(name, self._renamings, self._converters, prefix, self._parameters)
        if not name.startswith(self._prefix):
            return None
        number = int(name.removeprefix(self._prefix).partition(".")[0])
        return number if number < len(self.layers) else None


class StreamedLayers:
    """Stock decoder layers, read in order from a checkpoint's safetensors files.

    Only one layer has weights at a time: it loses them when the next one is read.

    Raises:
        ShortVError: a tensor of a layer is missing or has another shape.
    """

    def __init__(
        self, files: Sequence[Path], config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.checkpoint = CheckpointLayers(config, dtype)
        self.layers = self.checkpoint.layers
        # For each layer, {file: names of the layer's tensors in it}.
        self.places: list[dict[Path, list[str]]] = [{} for _ in self.layers]
        for file, name, _ in stored_tensors(files):
            if (number := self.checkpoint.layer_of(name)) is not None:
                self.places[number].setdefault(file, []).append(name)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[nn.Module]:
        from safetensors import safe_open

        for number, (layer, places) in enumerate(zip(self.layers, self.places, strict=True)):
            weights: dict[str, torch.Tensor] = {}
            for file, names in places.items():
                with safe_open(file, framework="pt", device=str(self.device)) as tensors:
                    weights.update((name, tensors.get_tensor(name)) for name in names)
            self._load(number, layer, weights)
            weights.clear()
            yield layer
            layer.to("meta")

    def _load(self, number: int, layer: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        how = LoadStateDictConfig(
            weight_mapping=self.checkpoint.mapping, device_map={"": self.device}, dtype=self.dtype
        )
        with _quiet():
            loaded, _ = convert_and_load_state_dict_in_model(self.checkpoint.model, dict(weights), how)
        wrong = [f"{name} has another shape" for name, *_ in sorted(loaded.mismatched_keys)]
        wrong += [f"{name} is missing" for name, value in layer.state_dict().items() if value.is_meta]
        if wrong:
            raise ShortVError(f"decoder layer {number} cannot be read: {wrong[0]}; download it again.")


def load_streamed(
    folder: Path, files: Sequence[Path], *, dtype: str = "auto", device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, StreamedLayers]:
    """Loads a checkpoint's stock model without its decoder layers, and prepares the layers to be streamed.

    Raises:
        ShortVError: the checkpoint lacks a tensor.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    num_layers = config.get_text_config().num_hidden_layers
    config.get_text_config().num_hidden_layers = 0
    with _quiet():  # transformers warns about every decoder tensor, as the model has no layer for it
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ShortVError(f"the checkpoint lacks the tensors {missing}; download it again.")
    model.config.get_text_config().num_hidden_layers = num_layers
    layers = StreamedLayers(files, model.config, model.dtype, torch.device(device))
    # Some decoders keep lists with one entry per layer, or numbers of layers. Take those of the full model.
    empty = text_decoder(model)
    for name, value in vars(text_decoder(layers.checkpoint.model)).items():
        if not name.startswith("_") and isinstance(value, int | list | tuple | dict | set):
            setattr(empty, name, value)
    return model.to(device).eval(), layers


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from warning about missing tensors and from showing progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

"""A stock model whose decoder layers are read from disk one at a time, for models that are larger than memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import ShortVError
from .oracle import text_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


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
                    if (match := DECODER_TENSOR.search(name)) and int(match["layer"]) < len(self.places):
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
DECODER_TENSOR = re.compile(r"(^|\.)language_model\.(model\.)?layers\.(?P<layer>\d+)\.(?P<parameter>.+)$")


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

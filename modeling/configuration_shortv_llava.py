"""Configuration of ShortV for LLaVA-1.5: the stock configuration with a list of frozen layers."""

from transformers import LlavaConfig


class ShortVLlavaConfig(LlavaConfig):
    """Adds `frozen_layers`: sorted numbers of the decoder layers that freeze visual tokens."""

    model_type = "shortv_llava"
    frozen_layers: list | None = None

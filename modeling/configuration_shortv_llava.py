"""Configurations of ShortV LLaVA models: the stock ones, and which layers are frozen."""

from transformers import LlavaConfig, LlavaNextConfig


class ShortVLlavaConfig(LlavaConfig):
    """LLaVA-1.5 with `frozen_layers`, the sorted numbers of the decoder layers that freeze visual tokens."""

    model_type = "shortv_llava"
    frozen_layers: list | None = None


class ShortVLlavaNextConfig(LlavaNextConfig):
    """LLaVA-NeXT with `frozen_layers`, the sorted numbers of the decoder layers that freeze visual tokens."""

    model_type = "shortv_llava_next"
    frozen_layers: list | None = None

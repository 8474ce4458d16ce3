"""Configuration of ShortV for LLaVA-1.5: the stock one, and which layers are frozen."""

from transformers import LlavaConfig


class ShortVLlavaConfig(LlavaConfig):
    """LLaVA-1.5 with `frozen_layers`, the sorted numbers of the decoder layers that freeze visual tokens."""

    model_type = "shortv_llava"
    frozen_layers: list | None = None

"""Configuration of ShortV for LLaVA-1.5: the stock configuration with lists of what is frozen."""

import sys
from typing import TYPE_CHECKING

from transformers import LlavaConfig

# transformers tells folders of the same name apart by this file and the files that it names; these are not imported.
if TYPE_CHECKING:
    from .modeling_shortv_llava import ShortVLlavaForConditionalGeneration
    from .shortv_layers import ShortVMixin
    from .shortv_weights import ShortVWeights

# Before 5.8, transformers kept the files of the folder that was loaded first.
for name in ("shortv_layers", "shortv_weights"):
    sys.modules.pop(f"{__package__}.{name}", None)


class ShortVLlavaConfig(LlavaConfig):
    """Adds sorted numbers of the decoder layers that freeze visual tokens.

    `frozen_layers` freeze both operators, `frozen_attention` attention alone, `frozen_ffn` the feed-forward network.
    """

    model_type = "shortv_llava"
    frozen_layers: list | None = None
    # Without annotations these are not saved unless they are set.
    frozen_attention = None
    frozen_ffn = None

"""Configuration classes: the stock ones with the lists of what is frozen.

They are found by name in this module, because the engine's process unpickles them before it loads plugins.
"""

from typing import Any

import transformers

from ..engines import VLLM_FAMILIES, VLLM_MISSING


def _shortv_config(model_type: str, stock: Any) -> Any:
    class ShortVConfig(stock):
        frozen_layers: list | None = None
        frozen_attention: list | None = None
        frozen_ffn: list | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # What vLLM and transformers look up by an instance's model type is as for the base.
            self.model_type = model_type

    ShortVConfig.model_type = f"shortv_{model_type}"
    ShortVConfig.__name__ = ShortVConfig.__qualname__ = f"ShortV{stock.__name__}"
    return ShortVConfig


CONFIGS = {
    model_type: _shortv_config(model_type, getattr(transformers, f"{name}Config"))
    for model_type, name in VLLM_FAMILIES.items()
    if hasattr(transformers, f"{name}Config")
}
"""Model type of the base -> configuration class, for those that the installed transformers has."""


def refused_config(model_type: str, reason: str) -> Any:
    """A configuration class that cannot be made: the error is `reason`."""

    class Refused(transformers.PretrainedConfig):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError(reason)

    Refused.model_type = f"shortv_{model_type}"
    return Refused


REFUSED = {
    model_type: refused_config(
        model_type, f"The plugin cannot serve packages of {model_type} in vLLM; use transformers."
    )
    for model_type in VLLM_MISSING
}
"""Model type of the base -> a configuration that says that it cannot be served."""

globals().update({config.__name__: config for config in CONFIGS.values()})

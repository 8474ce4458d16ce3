"""`ShortV<Base>ForConditionalGeneration`: vLLM's class of the base behind `ShortVMixin`, made when asked for."""

from typing import Any

from vllm.model_executor.models.registry import ModelRegistry

from .model import ShortVMixin


def __getattr__(name: str) -> Any:
    if not name.startswith("ShortV"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    stock = ModelRegistry.models[name.removeprefix("ShortV")].load_model_cls()
    globals()[name] = made = type(name, (ShortVMixin, stock), {"__module__": __name__})
    return made

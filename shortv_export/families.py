"""The base architectures that can be converted: one row each.

A new family is one row here, one ``modeling_shortv_<family>.py`` in ``modeling/`` and one test module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ShortVError

# Text models whose attention is q/k/v/o projections and one rotary embedding: what `shortv_layers.py` computes.
TEXT_MODELS = ("llama", "mistral", "qwen2")

# The auto classes that people load vision-language models with. AutoModel gives the *generative* class, as
# remote-code VLMs on the Hub do; every class left out would be an error for somebody.
_AUTO_MODEL_CLASSES = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
)


@dataclass(frozen=True)
class Family:
    """How a base architecture becomes a ShortV one.

    Attributes:
        model_type: the base's ``config.json`` model type.
        base_class: its generative class in transformers.
        config_class, model_class: the remote-code classes of the package.
        code: the files of ``modeling/`` that a package carries: configuration and model first.
        tiles: into how many tiles a picture is cut in the paper's cost model (an overview and 2 x 2 details).
    """

    model_type: str
    base_class: str
    config_class: str
    model_class: str
    code: tuple[str, ...]
    tiles: int = 1

    @property
    def shortv_model_type(self) -> str:
        """The package's own model type: loading without ``trust_remote_code`` fails; it never gives a dense model."""
        return f"shortv_{self.model_type}"

    @property
    def auto_map(self) -> dict[str, str]:
        """``config.json``'s ``auto_map``: which class of which file each auto class loads."""
        configuration, modeling = (name.removesuffix(".py") for name in self.code[:2])
        models = dict.fromkeys(_AUTO_MODEL_CLASSES, f"{modeling}.{self.model_class}")
        return {"AutoConfig": f"{configuration}.{self.config_class}", **models}


_LLAVA_CODE = (
    "configuration_shortv_llava.py",
    "modeling_shortv_llava.py",
    "shortv_layers.py",
    "shortv_weights.py",
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llava",
            "LlavaForConditionalGeneration",
            "ShortVLlavaConfig",
            "ShortVLlavaForConditionalGeneration",
            _LLAVA_CODE,
        ),
        Family(
            "llava_next",
            "LlavaNextForConditionalGeneration",
            "ShortVLlavaNextConfig",
            "ShortVLlavaNextForConditionalGeneration",
            _LLAVA_CODE,
            tiles=5,
        ),
    )
}


def family_of(config: Mapping[str, Any], name: str) -> Family:
    """The family of a base's ``config.json``.

    Args:
        config: the parsed ``config.json``.
        name: the base as the user wrote it, for messages.

    Raises:
        ShortVError: not a supported architecture, or its text model is not one.
    """
    model_type = config.get("model_type")
    if model_type in [family.shortv_model_type for family in FAMILIES.values()]:
        raise ShortVError(f"{name} is a ShortV model already; convert the base it was made from.")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise ShortVError(f"{name} has model_type {model_type!r:.60}, which is not supported; supported: {supported}.")
    text_config = config.get("text_config")
    # llava-hf configs leave out what equals the default, and the default text model is a Llama.
    text_type = text_config.get("model_type", "llama") if isinstance(text_config, Mapping) else "llama"
    if text_type not in TEXT_MODELS:
        supported = ", ".join(TEXT_MODELS)
        raise ShortVError(f"{name} has a {text_type!r:.60} text model, not a supported one; supported: {supported}.")
    return FAMILIES[model_type]


def modeling_dir() -> Path:
    """The folder of the remote-code files: inside the installed package, or beside it in a checkout."""
    return _data_dir("modeling")


def model_cards_dir() -> Path:
    """The folder of the card templates: inside the installed package, or beside it in a checkout."""
    return _data_dir("model_cards")


def _data_dir(name: str) -> Path:
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name

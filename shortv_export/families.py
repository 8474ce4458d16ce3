"""The base architectures that can be converted: one row each.

A new family is one row here and one tiny model in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from .errors import ShortVError

# Text models whose keys and values `shortv_layers.py` computes; its own list.
TEXT_MODELS = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"),
    *("gemma", "gemma3_text", "cohere", "cohere2", "glm4v_text", "aria_text"),
)

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
        name: what the names of its classes in transformers begin with.
        title: what people call it.
        note: what frozen visual tokens mean in this family beside what they mean everywhere; for its code and card.
        tiles: into how many tiles a picture is cut in the paper's cost model (an overview and 2 x 2 details).
        prompt: what a picture and a question become where the processor has no chat template.
    """

    model_type: str
    name: str
    title: str
    note: str = ""
    tiles: int = 1
    prompt: str = "USER: <image>\n{question} ASSISTANT:"

    @property
    def base_class(self) -> str:
        """Its generative class in transformers."""
        return f"{self.name}ForConditionalGeneration"

    @property
    def model_class(self) -> str:
        """The generative class of the remote code."""
        return f"ShortV{self.base_class}"

    @property
    def config_class(self) -> str:
        """The configuration class of the remote code."""
        return f"ShortV{self.name}Config"

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

    @property
    def code(self) -> tuple[str, ...]:
        """The names of the files of remote code that a package carries: configuration and model first."""
        own = (f"configuration_shortv_{self.model_type}.py", f"modeling_shortv_{self.model_type}.py")
        return (*own, "shortv_layers.py", "shortv_weights.py")

    def source(self, name: str) -> str:
        """The text of a file of remote code.

        Configuration and model are those of LLaVA in ``modeling/``, with this family's names in the place of LLaVA's:
        as everything that matters is in the layers, nothing else differs.
        """
        text = (modeling_dir() / name.replace(f"_{self.model_type}.py", f"_{_PATTERN.model_type}.py")).read_text(
            "utf-8"
        )
        if name not in self.code[:2]:
            return text
        if self.note:
            text = text.replace("visual tokens.\n\n", f"visual tokens.\n\n{fill(self.note, 119)}\n\n", 1)
        for field in ("title", "name", "model_type"):
            text = text.replace(getattr(_PATTERN, field), getattr(self, field))
        return text


_PATTERN = Family("llava", "Llava", "LLaVA-1.5")

_BIDIRECTIONAL = (
    "The stock model lets the tokens of an image see each other in both directions. Text tokens keep their rows of "
    "that mask: a frozen layer computes them from the same keys and values as the stock layer does."
)
_DEEPSTACK = (
    "The vision tower's deepstack features are added to the visual tokens after each of the first decoder layers, as "
    "in the stock model: where such a layer is frozen, they are all that changes visual tokens there."
)
_EXPERTS = "The experts of a frozen layer see text tokens only; which experts a text token goes to does not change."
_WHOLE_PROMPT = (
    "The stock model lets all tokens of the prompt see each other in both directions. Text tokens keep their rows of "
    "that mask: a frozen layer computes them from the same keys and values as the stock layer does."
)

_ROWS = (
    _PATTERN,
    Family("llava_next", "LlavaNext", "LLaVA-NeXT", tiles=5),
    Family("qwen2_5_vl", "Qwen2_5_VL", "Qwen2.5-VL"),
    Family(
        "qwen3_vl",
        "Qwen3VL",
        "Qwen3-VL",
        _DEEPSTACK,
    ),
    Family("qwen3_vl_moe", "Qwen3VLMoe", "Qwen3-VL-MoE", f"{_DEEPSTACK} {_EXPERTS}"),
    Family("qwen2_vl", "Qwen2VL", "Qwen2-VL"),
    Family("llava_onevision", "LlavaOnevision", "LLaVA-OneVision"),
    Family("internvl", "InternVL", "InternVL"),
    Family("smolvlm", "SmolVLM", "SmolVLM"),
    Family("idefics3", "Idefics3", "Idefics3"),
    Family("gemma3", "Gemma3", "Gemma 3", _BIDIRECTIONAL),
    Family("mistral3", "Mistral3", "Mistral 3"),
    Family("paligemma", "PaliGemma", "PaliGemma", _WHOLE_PROMPT, prompt="<image>{question}"),
    Family("glm4v", "Glm4v", "GLM-4V"),
    Family("aya_vision", "AyaVision", "Aya Vision"),
    Family("cohere2_vision", "Cohere2Vision", "Command A Vision"),
    Family("llava_next_video", "LlavaNextVideo", "LLaVA-NeXT-Video"),
    Family("video_llava", "VideoLlava", "Video-LLaVA"),
    Family("vipllava", "VipLlava", "ViP-LLaVA"),
    Family("idefics2", "Idefics2", "Idefics2"),
    Family(
        "aria",
        "Aria",
        "Aria",
        _EXPERTS,
    ),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _ROWS}


REFUSED: dict[str, str] = {
    "mllama": "its images enter by cross-attention, so there are no visual tokens to freeze",
    "llama4": "its queries are scaled by their place among the rows that are computed, which freezing changes",
    "gemma3n": "its layers share keys and values, and take inputs per layer that freezing does not reach",
    "gemma4": "its layers share keys and values, and take inputs per layer that freezing does not reach",
    "qwen3_5": "its linear attention passes each token's state on to the next, so no token can be left out",
    "qwen3_5_moe": "its linear attention passes each token's state on to the next, so no token can be left out",
    "lfm2_vl": "its convolutions mix neighbouring tokens, so none of them can be left out",
    "ernie4_5_vl_moe": "its experts are told row by row which ones are visual, which is not cut down to text rows yet",
    "molmo2": "the norms of its queries and keys span all heads, which frozen layers do not compute",
    "phi4_multimodal": "its attention makes queries, keys and values in one projection, which freezing cannot split",
}
"""Architectures that people ask for and that cannot be converted, and why."""


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
        if reason := REFUSED.get(str(model_type)):
            raise ShortVError(f"{name} is a {model_type} model, which cannot be converted: {reason}.")
        supported = ", ".join(FAMILIES)
        raise ShortVError(
            f"{name} has model_type {model_type!r:.60}, which is not supported; supported: {supported}. "
            "CONTRIBUTING.md says how to add one."
        )
    text_config = config.get("text_config")
    # llava-hf configs leave out what equals the default, and the default text model is a Llama.
    text_type = text_config.get("model_type", "llama") if isinstance(text_config, Mapping) else "llama"
    if text_type not in TEXT_MODELS:
        supported = ", ".join(TEXT_MODELS)
        raise ShortVError(f"{name} has a {text_type!r:.60} text model, not a supported one; supported: {supported}.")
    return FAMILIES[model_type]


def plain_prompt(processor: object) -> str:
    """`Family.prompt` for a processor without chat template: that of its own family, or else LLaVA's."""
    name = type(processor).__name__
    return next((family for family in _ROWS if name == f"{family.name}Processor"), _PATTERN).prompt


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

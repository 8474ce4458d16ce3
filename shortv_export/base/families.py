"""The base architectures that can be converted, one row each.

To add a family, add a row here and a tiny model in the tests.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from textwrap import fill
from typing import Any

from packaging.version import Version

from ..errors import ShortVError
from ..files import modeling_dir


def _published(name: str) -> Any:
    """A constant of the published code, which is not imported here, since that takes torch."""
    tree = ast.parse((modeling_dir() / "shortv_layers.py").read_text("utf-8"))
    assignments = (node for node in tree.body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(node.value) for node in assignments if ast.unparse(node.targets[0]) == name)


TEXT_MODELS: tuple[str, ...] = _published("TEXT_MODELS")
"""Text models whose attention the common frozen layer computes."""

# All auto classes that people load vision-language models with, so that each of them works. AutoModel gives the
# *generative* class, as other remote-code models on the Hub do.
_AUTO_MODEL_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")


@dataclass(frozen=True)
class Family:
    """How a base architecture becomes a ShortV one.

    Attributes:
        model_type: the ``model_type`` in the base's ``config.json``.
        name: how the names of its transformers classes begin.
        title: the name that people use.
        note: what is particular about frozen visual tokens in this family; shown in its code and on its cards.
        tiles: number of tiles per picture in the paper's cost model (an overview and 2 x 2 details).
        prompt: the prompt for a picture and a question if the processor has no chat template.
        text_models: model types of its language model that can be frozen; the first is the default.
        like: the family whose remote code it shares, with its own names filled in, if it has no files of its own.
        embeds_placeholders: whether the stock model looks up the embedding of its image token, which it then replaces.
        unless: text config fields that rule out conversion if they are set -> the reason.
        since: the first transformers release that runs its published code.
        broken: later releases in which the stock model itself fails.
    """

    model_type: str
    name: str
    title: str
    note: str = ""
    tiles: int = 1
    prompt: str = "USER: <image>\n{question} ASSISTANT:"
    text_models: tuple[str, ...] = TEXT_MODELS
    like: str = "llava"
    embeds_placeholders: bool = True
    unless: Mapping[str, str] = field(default_factory=dict)
    since: str = "5.0"
    broken: tuple[str, ...] = ()

    def check(self, text_config: Mapping[str, Any], name: str) -> None:
        """Refuses a text model with a feature that this family's frozen layers do not compute (see `unless`).

        Args:
            text_config: the text model's config, with the defaults of its class filled in.
            name: the base as the user wrote it, for messages.

        Raises:
            ShortVError: it has such a feature.
        """
        for what, why in self.unless.items():
            if text_config.get(what):
                raise ShortVError(f"{name} is a {self.title} model that cannot be converted ({what}): {why}.")

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
        """The package's own model type, so that loading without ``trust_remote_code`` fails and never runs dense."""
        return f"shortv_{self.model_type}"

    @property
    def auto_map(self) -> dict[str, str]:
        """``config.json``'s ``auto_map``: the class, and its file, that each auto class loads."""
        configuration, modeling = (name.removesuffix(".py") for name in self.code[:2])
        models = dict.fromkeys(_AUTO_MODEL_CLASSES, f"{modeling}.{self.model_class}")
        return {"AutoConfig": f"{configuration}.{self.config_class}", **models}

    @property
    def code(self) -> tuple[str, ...]:
        """Names of the remote-code files in a package; the first two are configuration and model."""
        own = (f"configuration_shortv_{self.model_type}.py", f"modeling_shortv_{self.model_type}.py")
        return (*own, "shortv_layers.py", "shortv_weights.py")

    def source(self, name: str) -> str:
        """The text of a remote-code file.

        The files are in ``modeling/``. A family without its own configuration or model file uses that of the family
        it is like, or LLaVA's, with its own names filled in.
        """
        if name not in self.code[:2]:
            return (modeling_dir() / name).read_text("utf-8")
        for pattern in (self, FAMILIES[self.like], _LLAVA):
            path = modeling_dir() / name.replace(f"_{self.model_type}.py", f"_{pattern.model_type}.py")
            if path.exists():
                break
        text = path.read_text("utf-8")
        for what in ("title", "name", "model_type"):
            text = text.replace(getattr(pattern, what), getattr(self, what))
        if self.note:
            text = text.replace("visual tokens.\n\n", f"visual tokens.\n\n{fill(self.note, 119)}\n\n", 1)
        return text


_LLAVA = Family("llava", "Llava", "LLaVA-1.5")

_SAME_MASK = "A frozen layer uses the same attention mask, keys and values for its text tokens as the stock layer."
_BIDIRECTIONAL = f"In the stock model, the tokens of an image attend to each other in both directions. {_SAME_MASK}"
_WHOLE_PROMPT = f"In the stock model, all tokens of the prompt attend to each other in both directions. {_SAME_MASK}"
_DEEPSTACK = (
    "As in the stock model, DeepStack features of the vision tower are added to the visual tokens after each of the "
    "first decoder layers. If such a layer is frozen, its visual tokens change by this addition only."
)
_EXPERTS = "In a frozen layer, only text tokens are sent to experts; each text token is routed as in the stock layer."
_LINEAR = (
    "Some layers have linear attention or a convolution in place of attention. It passes a state from token to token, "
    "so a frozen layer still runs it for every token; its visual tokens skip the feed-forward network only."
)

_ROWS = (
    _LLAVA,
    Family("llava_next", "LlavaNext", "LLaVA-NeXT", tiles=5),
    Family("qwen2_5_vl", "Qwen2_5_VL", "Qwen2.5-VL", since="5.5"),  # earlier layers return tuples
    Family("qwen3_vl", "Qwen3VL", "Qwen3-VL", _DEEPSTACK),
    Family("qwen3_vl_moe", "Qwen3VLMoe", "Qwen3-VL-MoE", f"{_DEEPSTACK} {_EXPERTS}", since="5.19"),
    Family("qwen3_5", "Qwen3_5", "Qwen3.5", _LINEAR, text_models=("qwen3_5_text",), since="5.14"),
    Family(
        "qwen3_5_moe",
        "Qwen3_5Moe",
        "Qwen3.5-MoE",
        f"{_LINEAR} {_EXPERTS}",
        text_models=("qwen3_5_moe_text",),
        like="qwen3_5",
        since="5.14",
    ),
    Family("qwen2_vl", "Qwen2VL", "Qwen2-VL", since="5.5"),
    Family("llava_onevision", "LlavaOnevision", "LLaVA-OneVision"),
    Family("internvl", "InternVL", "InternVL"),
    Family("smolvlm", "SmolVLM", "SmolVLM"),
    Family("idefics3", "Idefics3", "Idefics3"),
    Family("gemma3", "Gemma3", "Gemma 3", _BIDIRECTIONAL, embeds_placeholders=False),
    Family(
        "gemma4",
        "Gemma4",
        "Gemma 4",
        f"{_BIDIRECTIONAL} Only sliding-window layers do this, and only in some sizes. Audio counts as text.",
        text_models=("gemma4_text",),
        embeds_placeholders=False,
        unless={
            "num_kv_shared_layers": "its last layers reuse the keys and values of earlier layers",
            "hidden_size_per_layer_input": "its layers take an additional input for each token",
        },
        since="5.18",
    ),
    Family("mistral3", "Mistral3", "Mistral 3"),
    Family(
        "paligemma", "PaliGemma", "PaliGemma", _WHOLE_PROMPT, prompt="<image>{question}", embeds_placeholders=False
    ),
    Family("glm4v", "Glm4v", "GLM-4V"),
    Family("glm4v_moe", "Glm4vMoe", "GLM-4.5V", _EXPERTS, since="5.18"),
    Family("glm46v", "Glm46V", "GLM-4.6V", since="5.18"),
    Family("aya_vision", "AyaVision", "Aya Vision"),
    Family("cohere2_vision", "Cohere2Vision", "Command A Vision"),
    Family("llava_next_video", "LlavaNextVideo", "LLaVA-NeXT-Video"),
    Family("video_llava", "VideoLlava", "Video-LLaVA"),
    Family("vipllava", "VipLlava", "ViP-LLaVA"),
    Family("idefics2", "Idefics2", "Idefics2"),
    Family("aria", "Aria", "Aria", _EXPERTS),
    Family("llama4", "Llama4", "Llama 4", _EXPERTS, text_models=("llama4_text",), since="5.20", broken=("5.24.0",)),
    Family(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoe",
        "ERNIE 4.5 VL",
        f"{_EXPERTS} Visual experts then see only the start and end tokens of pictures, which are not frozen.",
        text_models=("ernie4_5_vl_moe_text",),
        since="5.12",
    ),
    Family("molmo2", "Molmo2", "Molmo 2", _BIDIRECTIONAL, text_models=("molmo2_text",), since="5.20"),
    Family("video_llama_3", "VideoLlama3", "VideoLLaMA3", since="5.18"),
    Family("lighton_ocr", "LightOnOcr", "LightOnOCR", since="5.18"),
    Family("paddleocr_vl", "PaddleOCRVL", "PaddleOCR-VL", since="5.18"),
    Family("deepseek_vl", "DeepseekVL", "DeepSeek-VL", since="5.18"),
    Family("exaone4_5", "Exaone4_5_", "EXAONE 4.5", text_models=("exaone4",), since="5.18"),
    Family("janus", "Janus", "Janus", since="5.18"),
    Family("lfm2_vl", "Lfm2Vl", "LFM2-VL", _LINEAR, text_models=("lfm2",), since="5.22"),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _ROWS}

REFUSED: dict[str, str] = {
    "mllama": "its images enter by cross-attention, so there are no visual tokens to freeze",
    "gemma3n": "its layers share keys and values, and take an additional input for each token",
    "phi4_multimodal": "its attention computes queries, keys and values in one projection, which cannot be split",
}
"""Architectures that cannot be converted, and why."""


def family_of(config: Mapping[str, Any], name: str) -> Family:
    """The family of a base's ``config.json``.

    Args:
        config: the parsed ``config.json``.
        name: the base as the user wrote it, for messages.

    Raises:
        ShortVError: the architecture, its text model or the installed transformers is not supported.
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
    family, text_config = FAMILIES[model_type], config.get("text_config")
    # Configs leave out default values.
    default = family.text_models[0]
    text_type = text_config.get("model_type", default) if isinstance(text_config, Mapping) else default
    if text_type not in family.text_models:
        supported = ", ".join(family.text_models)
        raise ShortVError(f"{name} has a {text_type!r:.60} text model, not a supported one; supported: {supported}.")
    if Version(installed := version("transformers")) < Version(family.since):
        raise ShortVError(
            f"{name} needs transformers {family.since} or newer, not {installed}: pip install -U transformers."
        )
    if installed in family.broken:
        raise ShortVError(f"{name}: {family.title} itself fails in transformers {installed}; install another release.")
    return family


def plain_prompt(processor: object) -> str:
    """The `Family.prompt` of a processor's family; LLaVA's if the processor belongs to none."""
    name = type(processor).__name__
    return next((family for family in _ROWS if name == f"{family.name}Processor"), _LLAVA).prompt

"""A tiny base of every family as a folder: the stock model, the family's processor, a tokenizer of a few words.

Image processors make pictures of the sizes that the tiny vision towers take. Special tokens have the ids in the tiny
configs. Chat templates put placeholders where those of the family's repositories put them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from shortv_export.base.families import FAMILIES
from tests.support.tiny_families import (
    IMAGE,
    PATCHES,
    PINPOINTS,
    TINY,
    VIDEO,
    VIDEO_END,
    VIDEO_START,
    VISION_END,
    VISION_START,
    VOCABULARY,
    broken,
    tiny_model,
)
from tests.support.tiny_llava import VOCABULARY_TEXT, word_tokenizer

SIZE = 28  # pixels of the tiny CLIP and SigLIP towers
SQUARE = {"height": SIZE, "width": SIZE}
FIRST_EXTRA = 90  # first id of the special tokens that no config names


@dataclass(frozen=True)
class TinyProcessor:
    """How to make a family's processor.

    Attributes:
        make: tokenizer and chat template -> processor.
        image: a picture in the chat template.
        video: a clip in the chat template; empty if the family takes none.
        tokens: special tokens and their ids.
        extra: special tokens with any id.
        named: attributes of the tokenizer that name special tokens.
        template: the chat template, with ``IMAGE`` and ``VIDEO`` for `image` and `video`; None for a family without.
        needs: packages that it needs besides transformers and Pillow.
        videos: clips per prompt.
    """

    make: Callable[[Any, str | None], Any]
    image: str = "<image>"
    video: str = ""
    tokens: dict[str, int] = field(default_factory=lambda: {"<image>": IMAGE})
    extra: tuple[str, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    template: str | None = (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for content in message['content'] %}"
        "{% if content['type'] == 'image' %}{{ 'IMAGE' }}{% elif content['type'] == 'video' %}{{ 'VIDEO' }}"
        "{% else %}{{ content['text'] + ' ' }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    needs: tuple[str, ...] = ()
    videos: int = 2


_CROP = {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE}
_CLASS_TOKEN = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_PIXTRAL = {"size": {"longest_edge": SIZE}, "patch_size": 7}
_TILES = {"size": SQUARE, "max_patches": 2}
_IDEFICS3 = {"size": {"longest_edge": 2 * SIZE}, "max_image_size": {"longest_edge": SIZE}}
_MOLMO2 = {"size": {"height": 16, "width": 16}, "patch_size": 4}
# Pictures keep their proportions: at most 32 patches of 4 x 4 pixels, of which most families make 8 tokens.
_GRID = {"patch_size": 4, "size": {"shortest_edge": 16 * 16, "longest_edge": 16 * 32}}


def _make(
    name: str, images: str, image_options: Any, videos: str = "", video_options: Any = None, **options: Any
) -> Callable[[Any, str | None], Any]:
    """`TinyProcessor.make` for these classes of transformers; video options default to the image options."""

    def make(tokenizer: Any, template: str | None) -> Any:
        import transformers

        parts = {"image_processor": getattr(transformers, images)(**image_options)}
        if videos:
            parts["video_processor"] = getattr(transformers, videos)(**(video_options or image_options))
        return getattr(transformers, name)(tokenizer=tokenizer, chat_template=template, **parts, **options)

    return make


def _gemma4(tokenizer: Any, template: str | None) -> Any:
    from transformers import Gemma4AudioFeatureExtractor

    size = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    audio = Gemma4AudioFeatureExtractor()
    classes = ("Gemma4Processor", "Gemma4ImageProcessor", size, "Gemma4VideoProcessor")
    return _make(*classes, feature_extractor=audio)(tokenizer, template)


_QWEN = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "tokens": {
        **{"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO},
        **{"<|vision_start|>": VISION_START, "<|vision_end|>": VISION_END},
    },
    "needs": ("torchvision",),
}
_DIGITS = tuple("0123456789")  # prompts contain the time of each frame
_BOTH = {"video": "<video>\n", "tokens": {"<image>": IMAGE, "<video>": VIDEO}, "needs": ("torchvision",)}
_IDEFICS3_TOKENS = (
    *("<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)
_LLAVA = TinyProcessor(_make("LlavaProcessor", "CLIPImageProcessor", _CROP, **_CLASS_TOKEN), "<image>\n")
_QWEN3 = TinyProcessor(
    _make("Qwen3VLProcessor", "Qwen2VLImageProcessor", _GRID, "Qwen3VLVideoProcessor"), extra=_DIGITS, **_QWEN
)


def _glm(name: str) -> TinyProcessor:
    return TinyProcessor(
        _make(f"{name}Processor", f"{name}ImageProcessor", _GRID, f"{name}VideoProcessor"),
        "<|begin_of_image|><|image|><|end_of_image|>",
        "<|begin_of_video|><|video|><|end_of_video|>",
        {
            **{"<|image|>": IMAGE, "<|video|>": VIDEO},
            **{"<|begin_of_image|>": VISION_START, "<|end_of_image|>": VISION_END},
            **{"<|begin_of_video|>": VIDEO_START, "<|end_of_video|>": VIDEO_END},
        },
        extra=_DIGITS,
        needs=("torchvision",),
    )


PROCESSORS: dict[str, TinyProcessor] = {
    "llava": _LLAVA,
    "llava_next": TinyProcessor(
        _make("LlavaNextProcessor", "LlavaNextImageProcessor", {**_CROP, **PINPOINTS}, **_CLASS_TOKEN), "<image>\n"
    ),
    "qwen2_5_vl": TinyProcessor(
        _make("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", _GRID, "Qwen2VLVideoProcessor"), **_QWEN
    ),
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "qwen2_vl": TinyProcessor(
        _make("Qwen2VLProcessor", "Qwen2VLImageProcessor", _GRID, "Qwen2VLVideoProcessor"), **_QWEN
    ),
    "llava_onevision": TinyProcessor(
        _make(
            *("LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor", {"size": SQUARE, **PINPOINTS}),
            *("LlavaOnevisionVideoProcessor", {"size": SQUARE}),
            num_image_tokens=PATCHES,
            vision_feature_select_strategy="full",
        ),
        "<image>\n",
        **_BOTH,
    ),
    "internvl": TinyProcessor(
        _make(
            *("InternVLProcessor", "GotOcr2ImageProcessor", _TILES, "InternVLVideoProcessor", {"size": SQUARE}),
            image_seq_length=PATCHES // 4,
        ),
        "<IMG_CONTEXT>\n",
        "<video>\n",
        {"<IMG_CONTEXT>": IMAGE},
        extra=("<img>", "</img>", "<video>"),
        named={
            **{"start_image_token": "<img>", "end_image_token": "</img>"},
            **{"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"},
        },
        needs=("torchvision",),
    ),
    "smolvlm": TinyProcessor(
        _make("SmolVLMProcessor", "SmolVLMImageProcessor", _IDEFICS3, "SmolVLMVideoProcessor", image_seq_len=4),
        video="<video>",
        extra=_IDEFICS3_TOKENS + _DIGITS,
        needs=("torchvision", "num2words"),
    ),
    "idefics3": TinyProcessor(
        _make("Idefics3Processor", "Idefics3ImageProcessor", _IDEFICS3, image_seq_len=4), extra=_IDEFICS3_TOKENS
    ),
    "gemma3": TinyProcessor(
        _make("Gemma3Processor", "Gemma3ImageProcessor", {"size": SQUARE}, image_seq_length=4),
        "<start_of_image>",
        tokens={"<image_soft_token>": IMAGE, "<start_of_image>": VISION_START, "<end_of_image>": VISION_END},
        named={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        template=(
            "{{ bos_token }}{% for message in messages %}{{ message['role'] + '\n' }}"
            "{% for content in message['content'] %}"
            "{% if content['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ content['text'] | trim }}{% endif %}"
            "{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'model\n' }}{% endif %}"
        ),
    ),
    "gemma4": TinyProcessor(
        _gemma4,
        "<|image|>",
        "<|video|>",
        {
            **{"<|image|>": IMAGE, "<|video|>": VIDEO, "<|audio|>": 126},
            **{"<|image>": VISION_START, "<image|>": VISION_END},
        },
        extra=("<|audio>", "<audio|>", *_DIGITS),
        named={
            **{"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
            **{"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
        },
        needs=("torchvision",),
    ),
    "mistral3": TinyProcessor(
        _make("PixtralProcessor", "PixtralImageProcessor", _PIXTRAL, patch_size=7, spatial_merge_size=2),
        "[IMG]",
        tokens={"[IMG]": IMAGE},
        extra=("[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"),
        needs=("torchvision",),
        template=(
            "{{ bos_token }}{% for message in messages %}{{ '[INST]' }}{% for content in message['content'] %}"
            "{% if content['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ content['text'] }}{% endif %}"
            "{% endfor %}{{ '[/INST]' }}{% endfor %}"
        ),
    ),
    "paligemma": TinyProcessor(
        _make("PaliGemmaProcessor", "SiglipImageProcessor", {"size": SQUARE, "image_seq_length": PATCHES}),
        template=None,
    ),
    "glm4v": _glm("Glm4v"),
    "glm4v_moe": _glm("Glm4v"),
    "glm46v": _glm("Glm46V"),
    "aya_vision": TinyProcessor(
        _make(
            *("AyaVisionProcessor", "GotOcr2ImageProcessor", _TILES),
            **{"patch_size": 7, "img_size": SIZE, "downsample_factor": 2},
        ),
        tokens={"<|IMG_PATCH|>": IMAGE},
        extra=("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", "TILE_1", "TILE_2", "TILE"),
    ),
    "cohere2_vision": TinyProcessor(
        _make("Cohere2VisionProcessor", "Cohere2VisionImageProcessor", {**_TILES, "patch_size": 2}),
        "<|IMG_PATCH|>",
        tokens={"<|IMG_PATCH|>": IMAGE},
        extra=("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"),
        named={
            **{"image_token": "<|IMG_PATCH|>", "img_line_break_token": "<|IMG_LINE_BREAK|>"},
            **{"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"},
        },
        needs=("torchvision",),
    ),
    "llava_next_video": TinyProcessor(
        _make(
            *("LlavaNextVideoProcessor", "LlavaNextImageProcessor", {**_CROP, **PINPOINTS}),
            *("LlavaNextVideoVideoProcessor", _CROP),
            **_CLASS_TOKEN,
        ),
        "<image>\n",
        **_BOTH,
    ),
    "video_llava": TinyProcessor(
        _make(*("VideoLlavaProcessor", "VideoLlavaImageProcessor", _CROP, "VideoLlavaVideoProcessor"), **_CLASS_TOKEN),
        "<image>\n",
        **_BOTH,
    ),
    "vipllava": _LLAVA,
    "idefics2": TinyProcessor(
        _make(
            *("Idefics2Processor", "Idefics2ImageProcessor", {"size": {"shortest_edge": 14, "longest_edge": SIZE}}),
            image_seq_len=4,
        ),
        extra=("<fake_token_around_image>", "<end_of_utterance>"),
    ),
    "llama4": TinyProcessor(
        _make("Llama4Processor", "Llama4ImageProcessor", _TILES, patch_size=7),
        "<|image|>",
        tokens={"<|patch|>": IMAGE},
        extra=(
            *("<|image|>", "<|image_start|>", "<|image_end|>"),
            *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        ),
        needs=("torchvision",),
    ),
    "ernie4_5_vl_moe": TinyProcessor(
        _make(
            *("Ernie4_5_VLMoeProcessor", "Ernie4_5_VLMoeImageProcessor", _GRID),
            *("Ernie4_5_VLMoeVideoProcessor", {**_GRID, "draw_on_frames": False}),
        ),
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>",
        {
            **{"<|IMAGE_PLACEHOLDER|>": IMAGE, "<|VIDEO_PLACEHOLDER|>": VIDEO},
            **{"<|IMAGE_START|>": VISION_START, "<|IMAGE_END|>": VISION_END},
            **{"<|VIDEO_START|>": VIDEO_START, "<|VIDEO_END|>": VIDEO_END},
        },
        named={
            **{"image_token": "<|IMAGE_PLACEHOLDER|>", "video_token": "<|VIDEO_PLACEHOLDER|>"},
            **{"image_start_token": "<|IMAGE_START|>", "image_end_token": "<|IMAGE_END|>"},
            **{"video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>"},
        },
        needs=("torchvision",),
    ),
    "molmo2": TinyProcessor(
        _make(
            *("Molmo2Processor", "Molmo2ImageProcessor", {**_MOLMO2, "max_crops": 1, "overlap_margins": [1, 1]}),
            *("Molmo2VideoProcessor", _MOLMO2),
        ),
        "<|image|>",
        "<|video|>",
        {"<im_patch>": IMAGE, "<im_start>": VISION_START, "<im_end>": VISION_END},
        extra=(
            *("<|image|>", "<|video|>", "<im_col>", "<low_res_im_start>", "<im_low>"),
            *("<frame_start>", "<frame_end>", *_DIGITS),
        ),
        needs=("torchvision",),
        videos=1,
    ),
    "video_llama_3": TinyProcessor(
        _make("VideoLlama3Processor", "VideoLlama3ImageProcessor", _GRID, "VideoLlama3VideoProcessor"),
        "<image>\n",
        **_BOTH,
        extra=_DIGITS,
        named={"image_token": "<image>", "video_token": "<video>"},
    ),
    "lighton_ocr": TinyProcessor(
        _make("LightOnOcrProcessor", "PixtralImageProcessor", _PIXTRAL, patch_size=7, spatial_merge_size=2),
        "<|image_pad|>",
        tokens={"<|image_pad|>": IMAGE},
        extra=("<|vision_pad|>", "<|vision_end|>"),
        named={
            **{"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>"},
            "image_end_token": "<|vision_end|>",
        },
        needs=("torchvision",),
    ),
    "paddleocr_vl": TinyProcessor(
        _make("PaddleOCRVLProcessor", "PaddleOCRVLImageProcessor", _GRID),
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        tokens={"<|IMAGE_PLACEHOLDER|>": IMAGE, "<|IMAGE_START|>": VISION_START, "<|IMAGE_END|>": VISION_END},
        named={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        needs=("torchvision",),
    ),
    "deepseek_vl": TinyProcessor(
        _make("DeepseekVLProcessor", "DeepseekVLImageProcessor", {"size": SQUARE}, num_image_tokens=PATCHES),
        "<image_placeholder>\n",
        tokens={"<image_placeholder>": IMAGE},
        named={"image_token": "<image_placeholder>"},
        needs=("torchvision",),
    ),
    "exaone4_5": TinyProcessor(
        _make("Exaone4_5_Processor", "Qwen2VLImageProcessor", _GRID, "Qwen2VLVideoProcessor"),
        "<vision><|image_pad|></vision>",
        "<vision><|video_pad|></vision>",
        {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<vision>": VISION_START, "</vision>": VISION_END},
        needs=("torchvision",),
    ),
    "janus": TinyProcessor(
        _make("JanusProcessor", "JanusImageProcessor", {"size": SQUARE}, num_image_tokens=PATCHES),
        "<image_placeholder>\n",
        tokens={"<image_placeholder>": IMAGE, "<begin_of_image>": VISION_START, "<end_of_image>": VISION_END},
        named={"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        needs=("torchvision",),
    ),
    "lfm2_vl": TinyProcessor(
        _make(
            *("Lfm2VlProcessor", "Lfm2VlImageProcessor"),
            {
                **{"encoder_patch_size": 4, "tile_size": 16, "min_tiles": 2, "max_tiles": 2},
                **{"min_image_tokens": 4, "max_image_tokens": 4},
            },
        ),
        extra=(
            *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
            *("<|img_row_1_col_1|>", "<|img_row_1_col_2|>", "<|img_row_2_col_1|>"),
        ),
        needs=("torchvision",),
    ),
    "aria": TinyProcessor(
        _make("AriaProcessor", "AriaImageProcessor", {"min_image_size": SIZE}, size_conversion={980: 4}),
        "<|img|>",
        tokens={"<|img|>": IMAGE},
        named={"image_token": "<|img|>"},
    ),
}


def missing(model_type: str) -> list[str]:
    """The packages that the family needs and that are not installed."""
    lacks = [name for name in PROCESSORS[model_type].needs if importlib.util.find_spec(name) is None]
    too_old = Version(version("transformers")) < Version(FAMILIES[model_type].since)
    return [*lacks, "another release of transformers"] if too_old or broken(model_type) else lacks


def tiny_tokenizer(tiny: TinyProcessor) -> Any:
    """A tokenizer of words and the family's special tokens, with the ids in its config."""
    from tokenizers import models

    ids = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    ids |= {word: 4 + index for index, word in enumerate(sorted({*VOCABULARY_TEXT.split(), ":"}))}
    assert max(ids.values()) < FIRST_EXTRA
    special = {**tiny.tokens, **{token: FIRST_EXTRA + index for index, token in enumerate(tiny.extra)}}
    ids |= special
    used = set(ids.values())
    ids |= {f"unused{index}": index for index in range(VOCABULARY) if index not in used}
    model = models.WordLevel(ids, unk_token="<unk>")
    tokenizer = word_tokenizer(model, model_max_length=512, special=special, **tiny.named)
    assert all(tokenizer.convert_tokens_to_ids(token) == number for token, number in special.items())
    return tokenizer


def tiny_processor(model_type: str) -> Any:
    tiny = PROCESSORS[model_type]
    template = tiny.template
    for kind in ("image", "video") if template else ():
        template = template.replace(kind.upper(), getattr(tiny, kind).replace("\n", "\\n"))
    return tiny.make(tiny_tokenizer(tiny), template)


def build_tiny_base(folder: Path, model_type: str) -> Path:
    """Writes the files of a base's repository: config, weights, processor, tokenizer, card. Returns `folder`."""
    model = tiny_model(model_type)
    model.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tiny_processor(model_type).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n", encoding="utf-8")
    return folder


def older_layout(folder: Path) -> None:
    """Rewrites a base's files in the layout before transformers 5; the configs of Qwen2-VL and 2.5-VL become flat."""
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    images = {**processor.pop("image_processor"), "processor_class": processor["processor_class"]}
    processor.pop("video_processor", None)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"].startswith("qwen2"):
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", **rope, "rope_type": "mrope"}}
        config = {name: value for name, value in text.items() if name != "model_type"} | config
    files = {
        "processor_config.json": processor,
        "preprocessor_config.json": images,
        "chat_template.json": {"chat_template": template},
        "config.json": config,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "chat_template.jinja").unlink()


assert set(PROCESSORS) == set(TINY)

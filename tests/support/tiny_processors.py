"""A tiny base of every family as a folder: its stock model, and its own processor around a tokenizer of a few words.

The image processors make pictures of the sizes that the tiny vision towers take; special tokens have the ids that the
tiny configs name. Chat templates put each picture's placeholder where those of the family's repositories put it.
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
    TINY,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCABULARY,
    broken,
    tiny_model,
)
from tests.support.tiny_llava import VOCABULARY_TEXT

SIZE = 28  # pixels of the tiny CLIP and SigLIP towers
SQUARE = {"height": SIZE, "width": SIZE}
PINPOINTS = [[28, 56], [56, 28]]
FIRST_EXTRA = 90  # of the special tokens that no config names


@dataclass(frozen=True)
class TinyProcessor:
    """How to make a family's processor.

    Attributes:
        make: the processor, given its tokenizer and chat template.
        image: what the chat template writes for a picture.
        video: what it writes for a clip; empty if the family takes none.
        tokens: special tokens with an id of their own.
        extra: special tokens with any id.
        named: attributes of the tokenizer that name special tokens.
        template: the chat template with ``IMAGE`` and ``VIDEO`` in the place of `image` and `video`; None for a
            family without one.
        needs: what has to be installed for it, besides transformers and Pillow.
        videos: how many clips a prompt takes.
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


def _clip() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE)


def _video(name: str, **options: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**options)


def _llava(tokenizer: Any, template: str | None) -> Any:
    from transformers import LlavaProcessor

    return LlavaProcessor(
        image_processor=_clip(), tokenizer=tokenizer, patch_size=7, chat_template=template, **_CLASS_TOKEN
    )


_CLASS_TOKEN = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def _llava_next(tokenizer: Any, template: str | None) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    images = LlavaNextImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)
    return LlavaNextProcessor(images, tokenizer, patch_size=7, chat_template=template, **_CLASS_TOKEN)


def _llava_next_video(tokenizer: Any, template: str | None) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor

    return LlavaNextVideoProcessor(
        video_processor=_video("LlavaNextVideoVideoProcessor", size={"shortest_edge": SIZE}, crop_size=SQUARE),
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": SIZE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        patch_size=7,
        chat_template=template,
        **_CLASS_TOKEN,
    )


def _video_llava(tokenizer: Any, template: str | None) -> Any:
    from transformers import VideoLlavaImageProcessor, VideoLlavaProcessor

    size = {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE}
    return VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**size),
        video_processor=_video("VideoLlavaVideoProcessor", **size),
        tokenizer=tokenizer,
        patch_size=7,
        chat_template=template,
        **_CLASS_TOKEN,
    )


def _llava_onevision(tokenizer: Any, template: str | None) -> Any:
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor

    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        _video("LlavaOnevisionVideoProcessor", size=SQUARE),
        num_image_tokens=PATCHES,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def _grid(name: str, images: str, videos: str, **video_options: Any) -> Callable[[Any, str | None], Any]:
    """Processors whose pictures keep their proportions: of at most 8 tokens, of 2 x 2 patches of 4 x 4 pixels each.

    Those of VideoLLaMA3 have a token for each patch.
    """

    def make(tokenizer: Any, template: str | None) -> Any:
        import transformers

        options = {"patch_size": 4, "size": {"shortest_edge": 16 * 16, "longest_edge": 16 * 32}}
        return getattr(transformers, name)(
            getattr(transformers, images)(**options),
            tokenizer,
            _video(videos, **options, **video_options),
            chat_template=template,
        )

    return make


def _internvl(tokenizer: Any, template: str | None) -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor

    images = GotOcr2ImageProcessor(size=SQUARE, max_patches=2)
    videos = _video("InternVLVideoProcessor", size=SQUARE)
    return InternVLProcessor(images, tokenizer, videos, image_seq_length=PATCHES // 4, chat_template=template)


def _idefics3(name: str, *video: str) -> Callable[[Any, str | None], Any]:
    def make(tokenizer: Any, template: str | None) -> Any:
        import transformers

        size = {"size": {"longest_edge": 2 * SIZE}, "max_image_size": {"longest_edge": SIZE}}
        images = getattr(transformers, f"{name}ImageProcessor")(**size)
        videos = [_video(each, **size) for each in video]
        return getattr(transformers, f"{name}Processor")(
            images, tokenizer, *videos, image_seq_len=4, chat_template=template
        )

    return make


def _idefics2(tokenizer: Any, template: str | None) -> Any:
    from transformers import Idefics2ImageProcessor, Idefics2Processor

    images = Idefics2ImageProcessor(size={"shortest_edge": 14, "longest_edge": SIZE})
    return Idefics2Processor(images, tokenizer, image_seq_len=4, chat_template=template)


def _gemma3(tokenizer: Any, template: str | None) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    return Gemma3Processor(Gemma3ImageProcessor(size=SQUARE), tokenizer, template, image_seq_length=4)


def _mistral3(tokenizer: Any, template: str | None) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    images = PixtralImageProcessor(size={"longest_edge": SIZE}, patch_size=7)
    return PixtralProcessor(images, tokenizer, patch_size=7, spatial_merge_size=2, chat_template=template)


def _lighton_ocr(tokenizer: Any, template: str | None) -> Any:
    from transformers import LightOnOcrProcessor, PixtralImageProcessor

    images = PixtralImageProcessor(size={"longest_edge": SIZE}, patch_size=7)
    return LightOnOcrProcessor(images, tokenizer, patch_size=7, spatial_merge_size=2, chat_template=template)


def _paddleocr_vl(tokenizer: Any, template: str | None) -> Any:
    from transformers import PaddleOCRVLImageProcessor, PaddleOCRVLProcessor

    images = PaddleOCRVLImageProcessor(patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 16 * 32})
    return PaddleOCRVLProcessor(images, tokenizer, template)


def _deepseek_vl(tokenizer: Any, template: str | None) -> Any:
    from transformers import DeepseekVLImageProcessor, DeepseekVLProcessor

    return DeepseekVLProcessor(DeepseekVLImageProcessor(size=SQUARE), tokenizer, template, num_image_tokens=PATCHES)


def _janus(tokenizer: Any, template: str | None) -> Any:
    from transformers import JanusImageProcessor, JanusProcessor

    return JanusProcessor(JanusImageProcessor(size=SQUARE), tokenizer, template, num_image_tokens=PATCHES)


def _paligemma(tokenizer: Any, template: str | None) -> Any:
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images = SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = PATCHES
    return PaliGemmaProcessor(images, tokenizer, template)


def _aya_vision(tokenizer: Any, template: str | None) -> Any:
    from transformers import AyaVisionProcessor, GotOcr2ImageProcessor

    images = GotOcr2ImageProcessor(size=SQUARE, max_patches=2)
    return AyaVisionProcessor(
        images, tokenizer, patch_size=7, img_size=SIZE, downsample_factor=2, chat_template=template
    )


def _cohere2_vision(tokenizer: Any, template: str | None) -> Any:
    from transformers import Cohere2VisionImageProcessor, Cohere2VisionProcessor

    images = Cohere2VisionImageProcessor(size=SQUARE, max_patches=2, patch_size=2)
    return Cohere2VisionProcessor(images, tokenizer, template)


def _aria(tokenizer: Any, template: str | None) -> Any:
    from transformers import AriaImageProcessor, AriaProcessor

    images = AriaImageProcessor(min_image_size=SIZE)
    return AriaProcessor(images, tokenizer, template, size_conversion={980: 4})


def _gemma4(tokenizer: Any, template: str | None) -> Any:
    from transformers import Gemma4AudioFeatureExtractor, Gemma4ImageProcessor, Gemma4Processor

    size = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    videos = _video("Gemma4VideoProcessor", **size)
    return Gemma4Processor(
        Gemma4AudioFeatureExtractor(), Gemma4ImageProcessor(**size), tokenizer, videos, chat_template=template
    )


def _llama4(tokenizer: Any, template: str | None) -> Any:
    from transformers import Llama4ImageProcessor, Llama4Processor

    images = Llama4ImageProcessor(size=SQUARE, max_patches=2)
    return Llama4Processor(images, tokenizer, patch_size=7, chat_template=template)


def _molmo2(tokenizer: Any, template: str | None) -> Any:
    from transformers import Molmo2ImageProcessor, Molmo2Processor

    size = {"size": {"height": 16, "width": 16}, "patch_size": 4}
    images = Molmo2ImageProcessor(**size, max_crops=1, overlap_margins=[1, 1])
    return Molmo2Processor(images, _video("Molmo2VideoProcessor", **size), tokenizer, template)


def _lfm2_vl(tokenizer: Any, template: str | None) -> Any:
    from transformers import Lfm2VlImageProcessor, Lfm2VlProcessor

    images = Lfm2VlImageProcessor(
        encoder_patch_size=4, tile_size=16, min_tiles=2, max_tiles=2, min_image_tokens=4, max_image_tokens=4
    )
    return Lfm2VlProcessor(images, tokenizer, template)


_QWEN = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "tokens": {
        **{"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO},
        **{"<|vision_start|>": VISION_START, "<|vision_end|>": VISION_END},
    },
    "needs": ("torchvision",),
}
_DIGITS = tuple("0123456789")  # of the time at which a frame was seen
_BOTH = {"video": "<video>\n", "tokens": {"<image>": IMAGE, "<video>": VIDEO}, "needs": ("torchvision",)}
_IDEFICS = {
    "extra": (
        *("<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
        *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
    ),
}
_QWEN3 = TinyProcessor(
    _grid("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"), extra=_DIGITS, **_QWEN
)


def _glm(name: str) -> TinyProcessor:
    return TinyProcessor(
        _grid(f"{name}Processor", f"{name}ImageProcessor", f"{name}VideoProcessor"),
        "<|begin_of_image|><|image|><|end_of_image|>",
        "<|begin_of_video|><|video|><|end_of_video|>",
        {
            **{"<|image|>": IMAGE, "<|video|>": VIDEO},
            **{"<|begin_of_image|>": VISION_START, "<|end_of_image|>": VISION_END},
            **{"<|begin_of_video|>": 124, "<|end_of_video|>": 125},
        },
        extra=_DIGITS,
        needs=("torchvision",),
    )


PROCESSORS: dict[str, TinyProcessor] = {
    "llava": TinyProcessor(_llava, "<image>\n"),
    "llava_next": TinyProcessor(_llava_next, "<image>\n"),
    "qwen2_5_vl": TinyProcessor(
        _grid("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"), **_QWEN
    ),
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "qwen2_vl": TinyProcessor(_grid("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"), **_QWEN),
    "llava_onevision": TinyProcessor(_llava_onevision, "<image>\n", **_BOTH),
    "internvl": TinyProcessor(
        _internvl,
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
        _idefics3("SmolVLM", "SmolVLMVideoProcessor"),
        video="<video>",
        extra=_IDEFICS["extra"] + _DIGITS,
        needs=("torchvision", "num2words"),
    ),
    "idefics3": TinyProcessor(_idefics3("Idefics3"), **_IDEFICS),
    "gemma3": TinyProcessor(
        _gemma3,
        "<start_of_image>",
        tokens={"<image_soft_token>": IMAGE, "<start_of_image>": VISION_START, "<end_of_image>": VISION_END},
        named={
            **{"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
        },
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
        _mistral3,
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
    "paligemma": TinyProcessor(_paligemma, template=None),
    "glm4v": _glm("Glm4v"),
    "glm4v_moe": _glm("Glm4v"),
    "glm46v": _glm("Glm46V"),
    "aya_vision": TinyProcessor(
        _aya_vision,
        tokens={"<|IMG_PATCH|>": IMAGE},
        extra=("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", "TILE_1", "TILE_2", "TILE"),
    ),
    "cohere2_vision": TinyProcessor(
        _cohere2_vision,
        "<|IMG_PATCH|>",
        tokens={"<|IMG_PATCH|>": IMAGE},
        extra=("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"),
        named={
            **{"image_token": "<|IMG_PATCH|>", "img_line_break_token": "<|IMG_LINE_BREAK|>"},
            **{"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"},
        },
        needs=("torchvision",),
    ),
    "llava_next_video": TinyProcessor(_llava_next_video, "<image>\n", **_BOTH),
    "video_llava": TinyProcessor(_video_llava, "<image>\n", **_BOTH),
    "vipllava": TinyProcessor(_llava, "<image>\n"),
    "idefics2": TinyProcessor(_idefics2, extra=("<fake_token_around_image>", "<end_of_utterance>")),
    "llama4": TinyProcessor(
        _llama4,
        "<|image|>",
        tokens={"<|patch|>": IMAGE},
        extra=(
            *("<|image|>", "<|image_start|>", "<|image_end|>"),
            *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        ),
        needs=("torchvision",),
    ),
    "ernie4_5_vl_moe": TinyProcessor(
        _grid(
            *("Ernie4_5_VLMoeProcessor", "Ernie4_5_VLMoeImageProcessor", "Ernie4_5_VLMoeVideoProcessor"),
            draw_on_frames=False,
        ),
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>",
        {
            **{"<|IMAGE_PLACEHOLDER|>": IMAGE, "<|VIDEO_PLACEHOLDER|>": VIDEO},
            **{"<|IMAGE_START|>": VISION_START, "<|IMAGE_END|>": VISION_END},
            **{"<|VIDEO_START|>": 124, "<|VIDEO_END|>": 125},
        },
        named={
            **{"image_token": "<|IMAGE_PLACEHOLDER|>", "video_token": "<|VIDEO_PLACEHOLDER|>"},
            **{"image_start_token": "<|IMAGE_START|>", "image_end_token": "<|IMAGE_END|>"},
            **{"video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>"},
        },
        needs=("torchvision",),
    ),
    "molmo2": TinyProcessor(
        _molmo2,
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
        _grid("VideoLlama3Processor", "VideoLlama3ImageProcessor", "VideoLlama3VideoProcessor"),
        "<image>\n",
        **_BOTH,
        extra=_DIGITS,
        named={"image_token": "<image>", "video_token": "<video>"},
    ),
    "lighton_ocr": TinyProcessor(
        _lighton_ocr,
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
        _paddleocr_vl,
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        tokens={
            **{"<|IMAGE_PLACEHOLDER|>": IMAGE, "<|IMAGE_START|>": VISION_START, "<|IMAGE_END|>": VISION_END},
        },
        named={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        needs=("torchvision",),
    ),
    "deepseek_vl": TinyProcessor(
        _deepseek_vl,
        "<image_placeholder>\n",
        tokens={"<image_placeholder>": IMAGE},
        named={"image_token": "<image_placeholder>"},
        needs=("torchvision",),
    ),
    "exaone4_5": TinyProcessor(
        _grid("Exaone4_5_Processor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
        "<vision><|image_pad|></vision>",
        "<vision><|video_pad|></vision>",
        {
            **{"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO},
            **{"<vision>": VISION_START, "</vision>": VISION_END},
        },
        needs=("torchvision",),
    ),
    "janus": TinyProcessor(
        _janus,
        "<image_placeholder>\n",
        tokens={
            **{"<image_placeholder>": IMAGE, "<begin_of_image>": VISION_START, "<end_of_image>": VISION_END},
        },
        named={
            **{"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"},
        },
        needs=("torchvision",),
    ),
    "lfm2_vl": TinyProcessor(
        _lfm2_vl,
        extra=(
            *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
            *("<|img_row_1_col_1|>", "<|img_row_1_col_2|>", "<|img_row_2_col_1|>"),
        ),
        needs=("torchvision",),
    ),
    "aria": TinyProcessor(_aria, "<|img|>", tokens={"<|img|>": IMAGE}, named={"image_token": "<|img|>"}),
}


def missing(model_type: str) -> list[str]:
    """What the family needs that is not installed."""
    lacks = [name for name in PROCESSORS[model_type].needs if importlib.util.find_spec(name) is None]
    too_old = Version(version("transformers")) < Version(FAMILIES[model_type].since)
    return [*lacks, "another release of transformers"] if too_old or broken(model_type) else lacks


def tiny_tokenizer(tiny: TinyProcessor) -> Any:
    """Words, and the family's special tokens at the ids of its config."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    ids |= {word: 4 + index for index, word in enumerate(sorted({*VOCABULARY_TEXT.split(), ":"}))}
    assert max(ids.values()) < FIRST_EXTRA
    special = {**tiny.tokens, **{token: FIRST_EXTRA + index for index, token in enumerate(tiny.extra)}}
    ids |= special
    used = set(ids.values())
    ids |= {f"unused{index}": index for index in range(VOCABULARY) if index not in used}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        additional_special_tokens=[*special],
        padding_side="left",
        model_max_length=512,
        **tiny.named,
    )
    assert all(tokenizer.convert_tokens_to_ids(token) == number for token, number in special.items())
    return tokenizer


def tiny_processor(model_type: str) -> Any:
    """The family's processor."""
    tiny = PROCESSORS[model_type]
    template = tiny.template
    for kind in ("image", "video") if template else ():
        template = template.replace(kind.upper(), getattr(tiny, kind).replace("\n", "\\n"))
    return tiny.make(tiny_tokenizer(tiny), template)


def build_tiny_base(folder: Path, model_type: str) -> Path:
    """Writes a base as it would lie in its repository: config, weights, processor, tokenizer, card.

    Args:
        folder: where to; made if missing.
        model_type: of the family.

    Returns:
        `folder`.
    """
    model = tiny_model(model_type)
    model.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tiny_processor(model_type).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n", encoding="utf-8")
    return folder


def older_layout(folder: Path) -> None:
    """Makes a base's files those of repositories from before transformers 5, some with flat configs."""
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

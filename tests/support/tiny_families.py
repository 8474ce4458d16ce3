"""A tiny model of every family, with random weights, and inputs as its processor would make them.

Pixels are random numbers of the shapes that the vision towers take, and `input_ids` have one placeholder for each
visual feature. No processor is needed, so every family can be tested here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from shortv_export.base.families import FAMILIES

VOCABULARY = 130
IMAGE, VIDEO, VISION_START, VISION_END, VIDEO_START, VIDEO_END = range(120, 126)
PATCHES = 16


@dataclass(frozen=True)
class Features:
    """Pictures or clips as a model takes them, and the placeholders that stand for one of them in the prompt.

    Attributes:
        inputs: number of pictures or clips -> the model's inputs besides `input_ids`.
        tokens: placeholders in a row.
        token_id: of the placeholder.
        before, after: token ids around each row of placeholders.
        frames: rows of placeholders for one picture or clip.
        kind: the value in ``mm_token_type_ids``: 1 for images, 2 for videos.
    """

    inputs: Callable[[int], dict[str, Any]]
    tokens: int
    token_id: int = IMAGE
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    frames: int = 1
    kind: int = 1

    @property
    def placeholders(self) -> list[int]:
        return [*self.before, *[self.token_id] * self.tokens, *self.after] * self.frames


@dataclass(frozen=True)
class Tiny:
    """A tiny config and its visual inputs.

    Attributes:
        text, vision, fields: of the config.
        images, videos: its visual inputs; None if the family takes no videos.
        types: name of the input that marks visual tokens, if there is one.
        marked_types: name of the input that also marks the tokens around them, if there is one.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    images: Features
    fields: dict[str, Any] = field(default_factory=dict)
    videos: Features | None = None
    types: str = ""
    marked_types: str = ""


def noise(*shape: int) -> Any:
    import torch

    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def tensor(values: Any) -> Any:
    import torch

    return torch.tensor(values)


# Visual inputs. Where they are flattened, patches have 4 x 4 pixels, and 2 x 2 of them become one token.

AROUND: dict[str, Any] = {"before": (VISION_START,), "after": (VISION_END,)}
AS_VIDEO: dict[str, Any] = {"token_id": VIDEO, "kind": 2}


def plain(tokens: int = PATCHES, size: int = 28, **options: Any) -> Features:
    return Features(lambda count: {"pixel_values": noise(count, 3, size, size)}, tokens, **options)


def clips(frames: int, tokens: int) -> Features:
    return Features(lambda count: {"pixel_values_videos": noise(count, frames, 3, 28, 28)}, tokens, **AS_VIDEO)


def grid_images(*patch: int) -> Features:
    """4 rows of 8 patches, which have this shape."""
    return Features(
        lambda count: {"pixel_values": noise(count * 32, *patch), "image_grid_thw": tensor([[1, 4, 8]] * count)},
        8,
        **AROUND,
    )


def grid_videos(*patch: int, **options: Any) -> Features:
    """As `grid_images`, at two points in time."""
    return Features(
        lambda count: {
            "pixel_values_videos": noise(count * 64, *patch),
            "video_grid_thw": tensor([[2, 4, 8]] * count),
        },
        **{"tokens": 16, **AS_VIDEO, **AROUND, **options},
    )


FLAT = 3 * 2 * 4 * 4  # numbers in a patch that spans two frames
GRID_IMAGES, GRID_VIDEOS = grid_images(FLAT), grid_videos(FLAT)
GRID_FRAMES = grid_videos(FLAT, tokens=8, frames=2)  # a row of placeholders for each point in time
# Pictures are stacked by batch entry.
STACKED_IMAGES = Features(lambda count: {"pixel_values": noise(1, count, 3, 28, 28)}, 4)
SIZED_IMAGES = Features(
    lambda count: {"pixel_values": noise(count, 3, 28, 28), "image_sizes": tensor([[28, 28]] * count)}, 4
)
# An overview and two tiles side by side, whose rows end in a token for the line break.
TILED_IMAGES = Features(
    lambda count: {"pixel_values": noise(count, 3, 3, 28, 28), "image_sizes": tensor([[28, 56]] * count)},
    PATCHES + 4 * (8 + 1),
)
PLACES = [[column, row] for row in range(4) for column in range(8)]
POSITIONED_IMAGES = Features(
    lambda count: {"pixel_values": noise(count, 32, 3 * 16), "image_position_ids": tensor([PLACES] * count)},
    8,
    **AROUND,
)
POSITIONED_VIDEOS = Features(
    lambda count: {
        "pixel_values_videos": noise(2 * count, 32, 3 * 16),
        "video_position_ids": tensor([PLACES] * 2 * count),
        "num_frames_per_video": tensor([2] * count),
    },
    8,
    frames=2,
    **AS_VIDEO,
    **AROUND,
)


def pooled(squares: int) -> Any:
    """The patches of each token, for squares of 4 x 4 patches."""
    corners = [16 * square + 8 * row + 2 * column for square in range(squares) for row in (0, 1) for column in (0, 1)]
    return tensor([[corner + step for step in (0, 1, 4, 5)] for corner in corners])


# An overview and one crop.
POOLED_IMAGES = Features(
    lambda count: {
        "pixel_values": noise(2 * count, 16, 3 * 16),
        "image_token_pooling": pooled(2 * count),
        "image_grids": tensor([[2, 2, 2, 2]] * count),
        "image_num_crops": tensor([2] * count),
    },
    8,
    **AROUND,
)
# Two frames, with the placeholders of pictures.
POOLED_VIDEOS = Features(
    lambda count: {
        "pixel_values_videos": noise(2 * count, 16, 3 * 16),
        "video_token_pooling": pooled(2 * count),
        "video_grids": tensor([[2, 2, 2]] * count),
    },
    4,
    before=(VIDEO_START,),
    after=(VIDEO_END,),
    frames=2,
)
SHAPED_IMAGES = Features(
    lambda count: {
        "pixel_values": noise(count, 16, 3 * 16),
        "spatial_shapes": tensor([[4, 4]] * count),
        "pixel_attention_mask": tensor([[1] * 16] * count),
    },
    4,
)
MERGED_IMAGES = Features(
    lambda count: {**grid_images(3 * 16).inputs(count), "image_merge_sizes": tensor([2] * count)}, 8
)
MERGED_VIDEOS = Features(
    lambda count: {**grid_videos(3 * 16).inputs(count), "video_merge_sizes": tensor([2] * count)},
    8,
    frames=2,
    **AS_VIDEO,
)

# Parts of the configs

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA = {"model_type": "llama", **TEXT}
QWEN2 = {"model_type": "qwen2", **TEXT}
MISTRAL = {"model_type": "mistral", **TEXT, "sliding_window": None}
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
PARTIAL_MROPE = {**MROPE, "partial_rotary_factor": 0.5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
WINDOWS = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2}
QWEN2_VL_TEXT = {**TEXT, "rope_parameters": MROPE, "layer_types": ["full_attention"] * 4}
QWEN3_TEXT = {**TEXT, "head_dim": 16, "rope_parameters": {**MROPE, "mrope_section": [4, 2, 2]}}
QWEN35_TEXT = {
    **{**TEXT, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"] * 2},
    "rope_parameters": {**PARTIAL_MROPE, "mrope_section": [2, 1, 1]},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 8},
}
GLM_TEXT = {**TEXT, "rope_parameters": {**PARTIAL_MROPE, "mrope_section": [1, 1, 2]}}
COHERE2 = {"model_type": "cohere2", **TEXT, **WINDOWS, "logit_scale": 1.0}

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP = {**TOWER, "image_size": 28, "patch_size": 7}
CLIP = {**SIGLIP, "projection_dim": 32}
SIGLIP_TOWER = {"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False}
PIXTRAL = {"model_type": "pixtral", **SIGLIP, "head_dim": 16}
GROUPED_TOWER = {**TOWER, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4}
QWEN2_VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
DEEP = {
    **{"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48},
    "patch_size": 4,
}
EXAONE_VISION = {**DEEP, "window_size": 16, "fullatt_block_indexes": [1]}
QWEN35_VISION = {**DEEP, "depth": 3, "num_position_embeddings": 64}
QWEN3_VISION = {**QWEN35_VISION, "deepstack_visual_indexes": [0, 1]}
GLM_VISION = {**DEEP, "image_size": 32}

TOKEN_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN_FIELDS = {**TOKEN_IDS, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
START_END = {
    **{"image_start_token_id": VISION_START, "image_end_token_id": VISION_END},
    **{"video_start_token_id": VIDEO_START, "video_end_token_id": VIDEO_END},
}
LLAVA_FIELDS = {"image_token_index": IMAGE, "image_seq_length": PATCHES}
PINPOINTS = {"image_grid_pinpoints": [[28, 56], [56, 28]]}

QWEN2_VL = Tiny(QWEN2_VL_TEXT, QWEN2_VISION, GRID_IMAGES, QWEN_FIELDS, GRID_VIDEOS, types="mm_token_type_ids")
QWEN3_VL = Tiny(QWEN3_TEXT, QWEN3_VISION, GRID_IMAGES, QWEN_FIELDS, GRID_FRAMES, types="mm_token_type_ids")
QWEN35 = replace(QWEN3_VL, text=QWEN35_TEXT, vision=QWEN35_VISION)
GLM = Tiny(
    GLM_TEXT,
    GLM_VISION,
    GRID_IMAGES,
    {**QWEN_FIELDS, **START_END},
    replace(GRID_FRAMES, token_id=IMAGE, before=(VIDEO_START, VISION_START), after=(VISION_END, VIDEO_END)),
    types="mm_token_type_ids",
)
IDEFICS3 = Tiny(LLAMA, SIGLIP, STACKED_IMAGES, {"image_token_id": IMAGE, "scale_factor": 2})

TINY: dict[str, Tiny] = {
    "llava": Tiny(LLAMA, CLIP, plain(), LLAVA_FIELDS),
    "llava_next": Tiny(LLAMA, CLIP, TILED_IMAGES, {**LLAVA_FIELDS, **PINPOINTS}),
    "qwen2_5_vl": replace(QWEN2_VL, vision={**EXAONE_VISION, "tokens_per_second": 2}),
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": replace(QWEN3_VL, text={**QWEN3_TEXT, **EXPERTS}),
    "qwen3_5": QWEN35,
    "qwen3_5_moe": replace(QWEN35, text={**QWEN35_TEXT, **EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen2_vl": QWEN2_VL,
    "llava_onevision": Tiny(
        QWEN2,
        SIGLIP_TOWER,
        TILED_IMAGES,
        {
            **{"image_token_index": IMAGE, "video_token_index": VIDEO, "vision_feature_layer": -1},
            **{**PINPOINTS, "vision_feature_select_strategy": "full"},
        },
        clips(2, 2 * 4 + 1),  # a quarter of the patches of each frame, and one end
    ),
    "internvl": Tiny(
        QWEN2,
        {**TOWER, "image_size": [28, 28], "patch_size": [7, 7]},
        plain(PATCHES // 4),
        {"image_token_id": IMAGE, "image_seq_length": 4},
    ),
    "smolvlm": IDEFICS3,
    "idefics3": IDEFICS3,
    "gemma3": Tiny(
        {**TEXT, **WINDOWS, "head_dim": 16, "query_pre_attn_scalar": 16},
        SIGLIP_TOWER,
        plain(4),
        {
            **{"image_token_index": IMAGE, "boi_token_index": VISION_START, "eoi_token_index": VISION_END},
            "mm_tokens_per_image": 4,
        },
        types="token_type_ids",
    ),
    "gemma4": Tiny(
        {
            **{**TEXT, **WINDOWS, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1},
            **{"attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision"},
            **{"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48},
        },
        {**GROUPED_TOWER, "pooling_kernel_size": 2, "position_embedding_size": 64},
        POSITIONED_IMAGES,
        {
            **{**TOKEN_IDS, "audio_token_id": 126, "audio_config": None},
            **{"boi_token_id": VISION_START, "eoi_token_id": VISION_END},
        },
        POSITIONED_VIDEOS,
        types="mm_token_type_ids",
    ),
    "mistral3": Tiny(
        {**MISTRAL, "head_dim": 16},
        PIXTRAL,
        SIZED_IMAGES,
        {"image_token_index": IMAGE, "spatial_merge_size": 2, "vision_feature_layer": -1},
    ),
    "paligemma": Tiny(
        {"model_type": "gemma", **TEXT, "head_dim": 16},
        {**SIGLIP_TOWER, "projection_dim": 64},
        plain(),
        {"image_token_index": IMAGE, "projection_dim": 64},
        types="token_type_ids",
    ),
    "glm4v": GLM,
    "glm4v_moe": replace(
        GLM,
        text={
            **GLM_TEXT,
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 48},
        },
    ),
    "glm46v": GLM,
    "aya_vision": Tiny(
        COHERE2,
        SIGLIP_TOWER,
        plain(4),
        {
            **{"image_token_index": IMAGE, "downsample_factor": 2, "vision_feature_layer": -1},
            "adapter_layer_norm_eps": 1e-6,
        },
    ),
    "cohere2_vision": Tiny(
        COHERE2,
        SIGLIP_TOWER,
        plain(4),
        {"image_token_id": IMAGE, "downsample_factor": 2, "alignment_intermediate_size": 64},
    ),
    "llava_next_video": Tiny(
        LLAMA, CLIP, TILED_IMAGES, {**LLAVA_FIELDS, "video_token_index": VIDEO, **PINPOINTS}, clips(2, 2 * 4)
    ),
    "video_llava": Tiny(
        LLAMA,
        CLIP,
        Features(lambda count: {"pixel_values_images": noise(count, 3, 28, 28)}, PATCHES),
        {**LLAVA_FIELDS, "video_token_index": VIDEO},
        clips(8, 8 * (PATCHES + 1)),
    ),
    "vipllava": Tiny(LLAMA, CLIP, plain(), {**LLAVA_FIELDS, "vision_feature_layers": [-1, -2]}),
    "idefics2": Tiny(
        MISTRAL,
        SIGLIP,
        STACKED_IMAGES,
        {
            "image_token_id": IMAGE,
            "perceiver_config": {
                **{"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4, "resampler_head_dim": 16},
                **{"num_key_value_heads": 2, "hidden_size": 64},
            },
        },
    ),
    "aria": Tiny(
        {
            **{**TEXT, "model_type": "aria_text", "intermediate_size": 32},
            **{"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        },
        {"model_type": "idefics3_vision", **SIGLIP, "image_size": 980, "patch_size": 140},  # its processor's size
        plain(4, size=980),
        {"image_token_index": IMAGE, "projector_patch_to_query_dict": {49: 4}},
    ),
    "llama4": Tiny(
        {
            **{**TEXT, "head_dim": 16, "intermediate_size": 48, "intermediate_size_mlp": 96},
            **{"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2},
            **{"no_rope_layer_interval": 2, "attention_chunk_size": 32, "floor_scale": 4},
        },
        {
            **{**SIGLIP, "intermediate_size": 128, "vision_output_dim": 32},
            **{"projector_input_dim": 32, "projector_output_dim": 32},
        },
        plain(PATCHES // 4),
        {"image_token_index": IMAGE},
    ),
    "ernie4_5_vl_moe": Tiny(
        {
            **{**TEXT, "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]}},
            **{"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": [48, 32]},
        },
        {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "patch_size": 4},
        grid_images(3 * 16),
        {**TOKEN_IDS, **START_END},
        grid_videos(3 * 16, tokens=8, before=(VIDEO_START,), after=(VIDEO_END,)),
        types="mm_token_type_ids",
        marked_types="moe_mm_token_type_ids",
    ),
    "molmo2": Tiny(
        {**TEXT, "head_dim": 16, "qk_norm_type": "olmo", "norm_after": True, "additional_vocab_size": 0},
        {**GROUPED_TOWER, "image_size": [16, 16]},
        POOLED_IMAGES,
        {
            "image_patch_id": IMAGE,
            "adapter_config": {
                **{"vision_feature_layer": [-1, 0], "hidden_size": 32, "num_attention_heads": 2, "head_dim": 16},
                **{"num_key_value_heads": 2, "intermediate_size": 64, "text_hidden_size": 64},
            },
        },
        POOLED_VIDEOS,
        types="mm_token_type_ids",
    ),
    "video_llama_3": Tiny(QWEN2, {**TOWER, "patch_size": 4}, MERGED_IMAGES, TOKEN_IDS, MERGED_VIDEOS),
    "lighton_ocr": Tiny(
        {"model_type": "qwen3", **TEXT, "head_dim": 16},
        PIXTRAL,
        SIZED_IMAGES,
        {"image_token_id": IMAGE, "spatial_merge_size": 2},
    ),
    "paddleocr_vl": Tiny(
        {**TEXT, "head_dim": 16, "rope_parameters": MROPE},
        {**SIGLIP, "patch_size": 4},
        grid_images(3, 4, 4),
        QWEN_FIELDS,
        types="mm_token_type_ids",
    ),
    "deepseek_vl": Tiny(LLAMA, SIGLIP_TOWER, plain(), {"image_token_id": IMAGE}),
    "exaone4_5": Tiny(
        {"model_type": "exaone4", **TEXT, **WINDOWS, "head_dim": 16, "sliding_window_pattern": 2},
        {**EXAONE_VISION, "num_key_value_heads": 1},
        GRID_IMAGES,
        TOKEN_IDS,
        GRID_VIDEOS,
    ),
    "janus": Tiny(
        LLAMA,
        {
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7},
            **{"mlp_ratio": 2, "projection_dim": 64, "num_image_tokens": PATCHES},
        },
        plain(**AROUND),
        {
            "image_token_id": IMAGE,
            "vq_config": {
                **{"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32},
                **{"channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 64},
                "image_token_embed_dim": 64,
            },
        },
    ),
    "lfm2_vl": Tiny(
        {
            **{"model_type": "lfm2", **TEXT, "layer_types": ["conv", "full_attention"] * 2},
            **{"block_auto_adjust_ff_dim": False, "block_ff_dim": 96},
        },
        {"model_type": "siglip2_vision_model", **SIGLIP, "patch_size": 4, "num_patches": 16, "vision_use_head": False},
        SHAPED_IMAGES,
        {"image_token_id": IMAGE, "projector_hidden_size": 64, "downsample_factor": 2},
    ),
}


def broken(model_type: str) -> bool:
    """Whether the stock model of this family fails on every input with the installed transformers."""
    return version("transformers") in FAMILIES[model_type].broken


def tiny_config(model_type: str) -> Any:
    from transformers import AutoConfig

    tiny = TINY[model_type]
    return AutoConfig.for_model(
        model_type,
        text_config=copy.deepcopy(tiny.text),
        vision_config=copy.deepcopy(tiny.vision),
        tie_word_embeddings=False,
        **copy.deepcopy(tiny.fields),
    )


def base_class(model_type: str) -> Any:
    import transformers

    return getattr(transformers, FAMILIES[model_type].base_class)


def tiny_model(model_type: str) -> Any:
    """The stock model in evaluation mode, with weights so large that each layer changes the result."""
    import torch

    torch.manual_seed(0)
    model = base_class(model_type)._from_config(tiny_config(model_type))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):  # Gemma 4; 1 if nobody trained it
            buffer.fill_(0.8)
    return model.eval()


def batch(model_type: str, *rows: tuple[Any, ...], kind: str = "images") -> dict[str, Any]:
    """Model inputs, padded on the left.

    Args:
        rows: token ids of each entry, with ``...`` in the place of a picture or a clip.
        kind: "images" or "videos".
    """
    tiny = TINY[model_type]
    features = getattr(tiny, kind)
    filled = [[part for item in row for part in (features.placeholders if item is ... else [item])] for row in rows]
    width = max(map(len, filled))
    ids = tensor([[0] * (width - len(row)) + row for row in filled])
    mask = tensor([[0] * (width - len(row)) + [1] * len(row) for row in filled])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if pictures := sum(row.count(...) for row in rows):
        inputs |= features.inputs(pictures)
    if tiny.types in inspect.signature(base_class(model_type).forward).parameters:
        inputs[tiny.types] = (ids == features.token_id) * features.kind
    if tiny.marked_types:
        marks = tensor([features.token_id, *features.before, *features.after])
        inputs[tiny.marked_types] = (ids[..., None] == marks).any(-1) * features.kind
    return inputs

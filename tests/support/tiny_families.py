"""A tiny model of every family, with random weights, and inputs for it as its processor would make them.

Pixels are random numbers in the shapes that the vision towers take; the placeholders in `input_ids` are as many as
features come out. So every family is tried here, whatever its processor needs to be installed.
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
IMAGE, VIDEO, VISION_START, VISION_END = 120, 121, 122, 123
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
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 32,
}
PATCHES = 16
FLAT = 3 * 2 * 4 * 4  # numbers in a patch of 4 x 4 pixels, 2 steps of time deep
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}


@dataclass(frozen=True)
class Features:
    """Visual input of a kind for some pictures or clips: what the model takes, and what stands for it in the prompt.

    Attributes:
        inputs: number of pictures or clips -> what the model takes beside `input_ids`.
        tokens: placeholders in a row.
        token_id: of the placeholder.
        before, after: token ids around each row of placeholders.
        frames: number of such rows for a picture or clip.
        kind: 1 for images, 2 for videos: what ``mm_token_type_ids`` has there.
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
        images, videos: its kinds of visual input; None if this family has no such kind.
        types: the input that tells visual tokens from text, if there is one.
        marked_types: the input that counts the tokens around them as visual, too, if there is one.
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


def squares(count: int, size: int = CLIP["image_size"]) -> Any:
    return noise(count, 3, size, size)


def plain(tokens: int = PATCHES, size: int = CLIP["image_size"], **options: Any) -> Features:
    return Features(lambda count: {"pixel_values": squares(count, size)}, tokens, **options)


def grid_images() -> Features:
    """Flattened patches of 4 x 4 pixels, 4 rows of 8; four of them become one token."""

    def inputs(count: int) -> dict[str, Any]:
        return {"pixel_values": noise(count * 32, FLAT), "image_grid_thw": tensor([[1, 4, 8]] * count)}

    return Features(inputs, 8, before=(VISION_START,), after=(VISION_END,))


def grid_videos(frames: int = 1, token_id: int = VIDEO) -> Features:
    """As `grid_images`, twice in time; the placeholders stand in one row, or in one for each step of time."""

    def inputs(count: int) -> dict[str, Any]:
        return {"pixel_values_videos": noise(count * 64, FLAT), "video_grid_thw": tensor([[2, 4, 8]] * count)}

    return Features(inputs, 16 // frames, token_id, (VISION_START,), (VISION_END,), frames, kind=2)


def stacked_images() -> Features:
    """Pictures stacked by batch entry: ``(1, pictures, 3, height, width)``."""
    return Features(lambda count: {"pixel_values": noise(1, count, 3, 28, 28)}, 4)


def tiled_images() -> Features:
    """An overview and two tiles side by side, with an end of line after each of their rows."""

    def inputs(count: int) -> dict[str, Any]:
        return {"pixel_values": noise(count, 3, 3, 28, 28), "image_sizes": tensor([[28, 56]] * count)}

    return Features(inputs, PATCHES + 4 * (8 + 1))


PLACES = [[column, row] for row in range(4) for column in range(8)]


def positioned_images() -> Features:
    """Flattened patches of 4 x 4 pixels, 4 rows of 8, and where they stand; four of them become one token."""

    def inputs(count: int) -> dict[str, Any]:
        return {"pixel_values": noise(count, 32, 3 * 16), "image_position_ids": tensor([PLACES] * count)}

    return Features(inputs, 8, before=(VISION_START,), after=(VISION_END,))


def positioned_videos() -> Features:
    """Two frames, each as a picture of `positioned_images`."""

    def inputs(count: int) -> dict[str, Any]:
        return {
            "pixel_values_videos": noise(2 * count, 32, 3 * 16),
            "video_position_ids": tensor([PLACES] * 2 * count),
            "num_frames_per_video": tensor([2] * count),
        }

    return Features(inputs, 8, VIDEO, (VISION_START,), (VISION_END,), frames=2, kind=2)


def pooled(squares: int) -> Any:
    """Which patches become a token, for squares of 4 x 4 patches: each 2 x 2 of them."""
    corners = [16 * square + 8 * row + 2 * column for square in range(squares) for row in (0, 1) for column in (0, 1)]
    return tensor([[corner + step for step in (0, 1, 4, 5)] for corner in corners])


def pooled_images() -> Features:
    """An overview and one crop of 4 x 4 patches each; four of them become one token."""

    def inputs(count: int) -> dict[str, Any]:
        return {
            "pixel_values": noise(2 * count, 16, 3 * 16),
            "image_token_pooling": pooled(2 * count),
            "image_grids": tensor([[2, 2, 2, 2]] * count),
            "image_num_crops": tensor([2] * count),
        }

    return Features(inputs, 8, before=(VISION_START,), after=(VISION_END,))


def pooled_videos() -> Features:
    """Two frames of 4 x 4 patches each, at the placeholders of pictures."""

    def inputs(count: int) -> dict[str, Any]:
        return {
            "pixel_values_videos": noise(2 * count, 16, 3 * 16),
            "video_token_pooling": pooled(2 * count),
            "video_grids": tensor([[2, 2, 2]] * count),
        }

    return Features(inputs, 4, before=(124,), after=(125,), frames=2)


def shaped_images() -> Features:
    """Flattened patches of 4 x 4 pixels, 4 rows of 4; four of them become one token."""

    def inputs(count: int) -> dict[str, Any]:
        return {
            "pixel_values": noise(count, 16, 3 * 16),
            "spatial_shapes": tensor([[4, 4]] * count),
            "pixel_attention_mask": tensor([[1] * 16] * count),
        }

    return Features(inputs, 4)


def merged_images() -> Features:
    """As `grid_images`, one step of time deep, with the number of patches in a token beside them."""

    def inputs(count: int) -> dict[str, Any]:
        return {
            "pixel_values": noise(count * 32, 3 * 16),
            "image_grid_thw": tensor([[1, 4, 8]] * count),
            "image_merge_sizes": tensor([2] * count),
        }

    return Features(inputs, 8)


def merged_videos() -> Features:
    """Two frames, each as a picture of `merged_images`."""

    def inputs(count: int) -> dict[str, Any]:
        return {
            "pixel_values_videos": noise(count * 64, 3 * 16),
            "video_grid_thw": tensor([[2, 4, 8]] * count),
            "video_merge_sizes": tensor([2] * count),
        }

    return Features(inputs, 8, VIDEO, frames=2, kind=2)


def sized(count: int, size: int = CLIP["image_size"]) -> Any:
    return tensor([[size, size]] * count)


QWEN2_VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
QWEN25_VISION = {
    **{"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48},
    **{"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2},
}
QWEN3_VISION = {
    **{"depth": 3, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48},
    **{"patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
}
QWEN35_VISION = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
QWEN35_TEXT = {
    **{**TEXT, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"] * 2},
    "rope_parameters": {**MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 8},
}
GLM_VISION = {
    **{"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48},
    **{"patch_size": 4, "image_size": 32},
}
QWEN_FIELDS = {
    **{"image_token_id": IMAGE, "video_token_id": VIDEO},
    **{"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END},
}
GLM_TEXT = {**TEXT, "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}}
GLM_FIELDS = {
    **QWEN_FIELDS,
    **{"image_start_token_id": VISION_START, "image_end_token_id": VISION_END},
    **{"video_start_token_id": 124, "video_end_token_id": 125},
}
GLM_VIDEOS = replace(grid_videos(frames=2, token_id=IMAGE), before=(124, VISION_START), after=(VISION_END, 125))
SIGLIP = {name: value for name, value in CLIP.items() if name != "projection_dim"}

PIXTRAL = {
    **{"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "head_dim": 16, "image_size": 28, "patch_size": 7},
}
SIGLIP_TOWER = {"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False}
COHERE2 = {
    "model_type": "cohere2",
    **TEXT,
    "sliding_window": 12,
    "logit_scale": 1.0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

TINY: dict[str, Tiny] = {
    "llava": Tiny(
        {"model_type": "llama", **TEXT}, CLIP, plain(), {"image_token_index": IMAGE, "image_seq_length": PATCHES}
    ),
    "llava_next": Tiny(
        {"model_type": "llama", **TEXT},
        CLIP,
        tiled_images(),
        {"image_token_index": IMAGE, "image_seq_length": PATCHES, "image_grid_pinpoints": [[28, 56], [56, 28]]},
    ),
    "qwen2_5_vl": Tiny(
        {**TEXT, "rope_parameters": MROPE, "layer_types": ["full_attention"] * 4},
        QWEN25_VISION,
        grid_images(),
        QWEN_FIELDS,
        grid_videos(),
        types="mm_token_type_ids",
    ),
    "qwen3_vl": Tiny(
        {**TEXT, "head_dim": 16, "rope_parameters": {**MROPE, "mrope_section": [4, 2, 2]}},
        QWEN3_VISION,
        grid_images(),
        QWEN_FIELDS,
        grid_videos(frames=2),
        types="mm_token_type_ids",
    ),
    "qwen3_vl_moe": Tiny(
        {
            **TEXT,
            "head_dim": 16,
            "rope_parameters": {**MROPE, "mrope_section": [4, 2, 2]},
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
        },
        QWEN3_VISION,
        grid_images(),
        QWEN_FIELDS,
        grid_videos(frames=2),
        types="mm_token_type_ids",
    ),
    "qwen3_5": Tiny(
        {**QWEN35_TEXT},
        QWEN35_VISION,
        grid_images(),
        QWEN_FIELDS,
        grid_videos(frames=2),
        types="mm_token_type_ids",
    ),
    "qwen3_5_moe": Tiny(
        {
            **QWEN35_TEXT,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 32,
        },
        QWEN35_VISION,
        grid_images(),
        QWEN_FIELDS,
        grid_videos(frames=2),
        types="mm_token_type_ids",
    ),
    "qwen2_vl": Tiny(
        {**TEXT, "rope_parameters": MROPE, "layer_types": ["full_attention"] * 4},
        QWEN2_VISION,
        grid_images(),
        QWEN_FIELDS,
        grid_videos(),
        types="mm_token_type_ids",
    ),
    "llava_onevision": Tiny(
        {"model_type": "qwen2", **TEXT},
        SIGLIP_TOWER,
        tiled_images(),
        {
            **{"image_token_index": IMAGE, "video_token_index": VIDEO, "vision_feature_layer": -1},
            **{"image_grid_pinpoints": [[28, 56], [56, 28]], "vision_feature_select_strategy": "full"},
        },
        # Two frames, each a quarter of the patches, and one end.
        Features(lambda count: {"pixel_values_videos": noise(count, 2, 3, 28, 28)}, 2 * 4 + 1, VIDEO, kind=2),
    ),
    "internvl": Tiny(
        {"model_type": "qwen2", **TEXT},
        {
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": [28, 28], "patch_size": [7, 7]},
        },
        plain(PATCHES // 4),
        {"image_token_id": IMAGE, "image_seq_length": 4},
    ),
    "smolvlm": Tiny(
        {"model_type": "llama", **TEXT},
        SIGLIP,
        stacked_images(),
        {"image_token_id": IMAGE, "scale_factor": 2},
    ),
    "idefics3": Tiny(
        {"model_type": "llama", **TEXT},
        SIGLIP,
        stacked_images(),
        {"image_token_id": IMAGE, "scale_factor": 2},
    ),
    "gemma3": Tiny(
        {
            **{**TEXT, "head_dim": 16, "sliding_window": 12, "query_pre_attn_scalar": 16},
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        SIGLIP_TOWER,
        plain(4),
        {
            "image_token_index": IMAGE,
            "boi_token_index": VISION_START,
            "eoi_token_index": VISION_END,
            "mm_tokens_per_image": 4,
        },
        types="token_type_ids",
    ),
    "gemma4": Tiny(
        {
            **{**TEXT, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "sliding_window": 12},
            **{"layer_types": ["sliding_attention", "full_attention"] * 2, "attention_k_eq_v": True},
            **{"hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision"},
            **{"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48},
        },
        {
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2},
            "position_embedding_size": 64,
        },
        positioned_images(),
        {
            **{"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": 126, "audio_config": None},
            **{"boi_token_id": VISION_START, "eoi_token_id": VISION_END},
        },
        positioned_videos(),
        types="mm_token_type_ids",
    ),
    "mistral3": Tiny(
        {"model_type": "mistral", **TEXT, "head_dim": 16, "sliding_window": None},
        PIXTRAL,
        Features(lambda count: {"pixel_values": squares(count), "image_sizes": sized(count)}, 4),
        {"image_token_index": IMAGE, "spatial_merge_size": 2, "vision_feature_layer": -1},
    ),
    "paligemma": Tiny(
        {"model_type": "gemma", **TEXT, "head_dim": 16},
        {"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False, "projection_dim": 64},
        plain(),
        {"image_token_index": IMAGE, "projection_dim": 64},
        types="token_type_ids",
    ),
    "glm4v": Tiny(GLM_TEXT, GLM_VISION, grid_images(), GLM_FIELDS, GLM_VIDEOS, types="mm_token_type_ids"),
    "glm4v_moe": Tiny(
        {
            **GLM_TEXT,
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 48},
        },
        GLM_VISION,
        grid_images(),
        GLM_FIELDS,
        GLM_VIDEOS,
        types="mm_token_type_ids",
    ),
    "glm46v": Tiny(GLM_TEXT, GLM_VISION, grid_images(), GLM_FIELDS, GLM_VIDEOS, types="mm_token_type_ids"),
    "aya_vision": Tiny(
        COHERE2,
        SIGLIP_TOWER,
        plain(4),
        {
            "image_token_index": IMAGE,
            "downsample_factor": 2,
            "vision_feature_layer": -1,
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
        {"model_type": "llama", **TEXT},
        CLIP,
        tiled_images(),
        {
            "image_token_index": IMAGE,
            "image_seq_length": PATCHES,
            "video_token_index": VIDEO,
            "image_grid_pinpoints": [[28, 56], [56, 28]],
        },
        Features(lambda count: {"pixel_values_videos": noise(count, 2, 3, 28, 28)}, 2 * 4, VIDEO, kind=2),
    ),
    "video_llava": Tiny(
        {"model_type": "llama", **TEXT},
        CLIP,
        Features(lambda count: {"pixel_values_images": squares(count)}, PATCHES),
        {"image_token_index": IMAGE, "image_seq_length": PATCHES, "video_token_index": VIDEO},
        Features(lambda count: {"pixel_values_videos": noise(count, 8, 3, 28, 28)}, 8 * (PATCHES + 1), VIDEO, kind=2),
    ),
    "vipllava": Tiny(
        {"model_type": "llama", **TEXT},
        CLIP,
        plain(),
        {"image_token_index": IMAGE, "image_seq_length": PATCHES, "vision_feature_layers": [-1, -2]},
    ),
    "idefics2": Tiny(
        {"model_type": "mistral", **TEXT, "sliding_window": None},
        SIGLIP,
        stacked_images(),
        {
            "image_token_id": IMAGE,
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 16,
                "num_key_value_heads": 2,
                "hidden_size": 64,
            },
        },
    ),
    "aria": Tiny(
        {
            **TEXT,
            "model_type": "aria_text",
            "moe_num_experts": 4,
            "moe_topk": 2,
            "moe_num_shared_experts": 1,
            "intermediate_size": 32,
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
            **{"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": 28, "patch_size": 7, "vision_output_dim": 32},
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
        Features(
            lambda count: {"pixel_values": noise(count * 32, 3 * 16), "image_grid_thw": tensor([[1, 4, 8]] * count)},
            8,
            before=(VISION_START,),
            after=(VISION_END,),
        ),
        {
            **{"image_token_id": IMAGE, "video_token_id": VIDEO},
            **{"image_start_token_id": VISION_START, "image_end_token_id": VISION_END},
            **{"video_start_token_id": 124, "video_end_token_id": 125},
        },
        Features(
            lambda count: {
                "pixel_values_videos": noise(count * 64, 3 * 16),
                "video_grid_thw": tensor([[2, 4, 8]] * count),
            },
            8,
            VIDEO,
            before=(124,),
            after=(125,),
            kind=2,
        ),
        types="mm_token_type_ids",
        marked_types="moe_mm_token_type_ids",
    ),
    "molmo2": Tiny(
        {**TEXT, "head_dim": 16, "qk_norm_type": "olmo", "norm_after": True, "additional_vocab_size": 0},
        {
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"num_key_value_heads": 2, "head_dim": 16, "image_size": [16, 16], "patch_size": 4},
        },
        pooled_images(),
        {
            "image_patch_id": IMAGE,
            "adapter_config": {
                **{"vision_feature_layer": [-1, 0], "hidden_size": 32, "num_attention_heads": 2, "head_dim": 16},
                **{"num_key_value_heads": 2, "intermediate_size": 64, "text_hidden_size": 64},
            },
        },
        pooled_videos(),
        types="mm_token_type_ids",
    ),
    "video_llama_3": Tiny(
        {"model_type": "qwen2", **TEXT},
        {
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
            "patch_size": 4,
        },
        merged_images(),
        {"image_token_id": IMAGE, "video_token_id": VIDEO},
        merged_videos(),
    ),
    "lighton_ocr": Tiny(
        {"model_type": "qwen3", **TEXT, "head_dim": 16},
        PIXTRAL,
        Features(lambda count: {"pixel_values": squares(count), "image_sizes": sized(count)}, 4),
        {"image_token_id": IMAGE, "spatial_merge_size": 2},
    ),
    "paddleocr_vl": Tiny(
        {**TEXT, "head_dim": 16, "rope_parameters": MROPE},
        {**SIGLIP, "patch_size": 4},
        Features(
            lambda count: {"pixel_values": noise(count * 32, 3, 4, 4), "image_grid_thw": tensor([[1, 4, 8]] * count)},
            8,
            before=(VISION_START,),
            after=(VISION_END,),
        ),
        QWEN_FIELDS,
        types="mm_token_type_ids",
    ),
    "deepseek_vl": Tiny({"model_type": "llama", **TEXT}, SIGLIP_TOWER, plain(), {"image_token_id": IMAGE}),
    "exaone4_5": Tiny(
        {
            **{"model_type": "exaone4", **TEXT, "head_dim": 16, "sliding_window": 12, "sliding_window_pattern": 2},
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        {
            **{name: QWEN25_VISION[name] for name in QWEN25_VISION if name != "tokens_per_second"},
            "num_key_value_heads": 1,
        },
        grid_images(),
        {"image_token_id": IMAGE, "video_token_id": VIDEO},
        grid_videos(),
    ),
    "janus": Tiny(
        {"model_type": "llama", **TEXT},
        {
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7},
            **{"mlp_ratio": 2, "projection_dim": 64, "num_image_tokens": PATCHES},
        },
        plain(before=(VISION_START,), after=(VISION_END,)),
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
        shaped_images(),
        {"image_token_id": IMAGE, "projector_hidden_size": 64, "downsample_factor": 2},
    ),
}


def broken(model_type: str) -> bool:
    """Whether the stock model of this family fails on every input in the transformers that is installed."""
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
    """The stock model, in evaluation mode, so initialised that its layers do something."""
    import torch

    torch.manual_seed(0)
    model = base_class(model_type)._from_config(tiny_config(model_type))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    return model.eval()


def batch(model_type: str, *rows: tuple[Any, ...], kind: str = "images") -> dict[str, Any]:
    """Model inputs, padded on the left.

    Args:
        rows: token ids of each entry, with ``...`` where a picture or a clip goes.
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

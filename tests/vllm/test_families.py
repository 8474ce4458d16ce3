"""Every family in vLLM, against the definition inside vLLM: layers, attention and FFNs; whole and in chunks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer

from shortv_export.base import families
from shortv_export.engines import VLLM_FAMILIES
from tests.support import tiny_families, tiny_processors
from tests.support.tiny_families import TINY
from tests.vllm.engines import Answer, ask, by_definition, difference, engine, model_of, picture

POLICY = {"frozen": (1,), "attention": (2,), "ffn": (3,)}
MIXED_POLICY = {"frozen": (1, 2), "attention": (3,), "ffn": (0,)}  # layers 0 and 2 have no attention to freeze
MIXED = {"qwen3_5", "qwen3_5_moe", "lfm2_vl"}
NOISE = 1e-5
OWN_STREAM = {"cohere2_vision", "exaone4_5"}  # without a residual between layers
BFLOAT16 = {"qwen3_5", "qwen3_5_moe"}  # the only precision of vLLM's linear attention on CPUs
CLIPS = {"llava_next_video", "qwen2_5_vl", "qwen3_vl"}
OLDER_NAMES = {
    *(
        "llava",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "cohere2_vision",
        "lfm2_vl",
        "gemma3",
        "paligemma",
    ),
}
PREFIX = {"gemma3"}  # without attention within pictures, in both directions, which vLLM lacks on CPUs
LINE_ENDS = {"gemma3": 4, "paligemma": 1}  # vLLM asks for tokens of up to so many line ends
ONE_PICTURE = {"paligemma"}  # a prompt, in vLLM
LINEAR_HEADS = {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
TEXT_FIELDS: dict[str, dict[str, Any]] = {
    "qwen3_5": LINEAR_HEADS,
    "qwen3_5_moe": LINEAR_HEADS,
    **{model_type: {"vocab_size": 1300} for model_type in LINE_ENDS},  # room for them
    # These are in the configs on the Hub. Transformers has no names for them, and writes what it is given.
    "qwen3_vl_moe": {"norm_topk_prob": True},
    "glm4v_moe": {"head_dim": 32, "use_qk_norm": False},
    "lfm2_vl": {"architectures": ["Lfm2ForCausalLM"], "block_dim": 64, "conv_dim": 64},
}


def text_config(model_type: str) -> dict[str, Any]:
    """The tiny one with heads of 32, the smallest that vLLM's attention on CPUs takes."""
    text = {**TINY[model_type].text, "num_attention_heads": 2, "num_key_value_heads": 1}
    if "head_dim" in text:
        text["head_dim"] = 32
    if sections := text.get("rope_parameters", {}).get("mrope_section"):
        text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [2 * size for size in sections]}
    return text | TEXT_FIELDS.get(model_type, {})


def as_on_the_hub(weights: Path, model_type: str) -> None:
    """Gives tensors the names and shapes in the Hub's repositories, which are those that vLLM reads."""
    tensors = load_file(weights)
    if model_type in OLDER_NAMES:
        tower = re.compile(r"(^|\.)vision_tower\.(?=embeddings|encoder|pre_layrnorm|post_layernorm)")
        tensors = {tower.sub(r"\1vision_tower.vision_model.", name): tensor for name, tensor in tensors.items()}
    if model_type == "cohere2_vision":
        tensors.pop("lm_head.weight")  # the embeddings serve as such
    if model_type == "qwen3_vl_moe":
        tensors = {
            name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor
            for name, tensor in tensors.items()
        }
    save_file(tensors, weights, metadata={"format": "pt"})


def prompts_of(base: Path, model_type: str) -> list[dict[str, Any]]:
    """One picture, two, none, and a clip, in the family's chat template."""
    processor, tiny = AutoProcessor.from_pretrained(base), tiny_processors.PROCESSORS[model_type]
    data: list[dict[str, Any]] = [{"image": [picture(1, 28)]}, {"image": [picture(2, 28), picture(3, 28)]}, {}]
    if model_type in ONE_PICTURE:
        data = [found for found in data if len(found.get("image", [])) < 2]
    if model_type in CLIPS:
        data = [{"video": [clip()]}, *data]
    if model_type == "llava_next_video":  # in vLLM, it takes no pictures
        data = [found for found in data if "image" not in found]
    prompts = []
    for found in data:
        text = {"type": "text", "text": "what is in this picture ? describe the image in one sentence"}
        if tiny.template:
            content = [*[{"type": kind} for kind, items in found.items() for _ in items], text]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        else:
            prompt = tiny.image * len(found.get("image", [])) + text["text"]
        prompts.append({"prompt": prompt, **({"multi_modal_data": found} if found else {})})
    return prompts


def clip() -> tuple[np.ndarray, dict[str, Any]]:
    """Four frames, and what a reader of a file would tell of them."""
    frames = np.stack([np.asarray(picture(seed, 28)) for seed in (4, 5, 6, 7)])
    told = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    return frames, {**told, "video_backend": "opencv", "do_sample_frames": False}


@pytest.mark.parametrize("model_type", VLLM_FAMILIES)
def test_family(
    model_type: str, package_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = {**TINY[model_type].vision, **({"image_size": 56} if model_type == "llava_next_video" else {})}
    tiny = replace(TINY[model_type], text=text_config(model_type), vision=vision)
    monkeypatch.setitem(tiny_families.TINY, model_type, tiny)
    # Packages of some are made with a newer transformers than vLLM runs with.
    monkeypatch.setitem(families.FAMILIES, model_type, replace(families.FAMILIES[model_type], since="5.0", broken=()))
    base = tiny_processors.build_tiny_base(tmp_path / "base", model_type)
    if model_type == "llava_next_video":  # vLLM's pooling takes no smaller pictures
        processor = base / "processor_config.json"
        processor.write_text(re.sub(r"\b28\b", "56", processor.read_text()))
    if model_type in LINE_ENDS:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(["\n" * (number + 1) for number in range(LINE_ENDS[model_type])])
        tokenizer.save_pretrained(base)
    as_on_the_hub(base / "model.safetensors", model_type)
    policy = MIXED_POLICY if model_type in MIXED else POLICY
    package, prompts = package_of(base, **policy), prompts_of(base, model_type)
    options: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 4}
    if model_type in CLIPS:
        options["limit_mm_per_prompt"] = {"video": 1} if model_type == "llava_next_video" else {"image": 2, "video": 1}
    if model_type in ONE_PICTURE:
        options["limit_mm_per_prompt"] = {"image": 1}
    if model_type in PREFIX:
        options["hf_overrides"] = {"is_mm_prefix_lm": False}
    if model_type in BFLOAT16:
        options["dtype"] = "bfloat16"
    if model_type == "llama4":
        options["block_size"] = 32  # of which its chunks of attention are a multiple
    # 9 rows cut pictures in two. Those of LFM2-VL have 12, and vLLM's room for them is no larger than the chunk.
    for chunk in (512, 13 if model_type == "lfm2_vl" else 9):
        with engine(package, max_num_batched_tokens=chunk, **options) as llm:
            model = model_of(llm)
            if model_type == "llama4":  # on CPUs, vLLM's vision tower fails at patches that do not lie in a row
                model.vision_model.patch_embedding.linear.register_forward_pre_hook(
                    lambda module, args: tuple(states.contiguous() for states in args)
                )
            found = ask(llm, prompts, max_tokens=6)
            steps = model.shortv_counter.steps
            with by_definition(model, **policy, sums_residual=model_type not in OWN_STREAM) as step:
                expected = ask(llm, prompts, max_tokens=6)
            with by_definition(model, []):
                dense = ask(llm, prompts, max_tokens=6)
            assert steps == step.count > 0
        assert difference(found, expected) <= NOISE
        assert largest(dense, expected) > 100 * NOISE  # else the comparison above would say nothing


def largest(one: list[Answer], other: list[Answer]) -> float:
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) for x, y in pairs for a, b in zip(x.logprobs, y.logprobs, strict=True))

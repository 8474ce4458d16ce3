"""Every family in vLLM, against the definition inside vLLM: layers, attention and FFNs; whole and in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from shortv_export.base import families
from shortv_export.engines import VLLM_FAMILIES
from tests.support import tiny_families, tiny_processors
from tests.support.tiny_families import TINY
from tests.vllm.engines import Answer, ask, by_definition, difference, engine, model_of, picture

POLICY = {"frozen": (1,), "attention": (2,), "ffn": (3,)}
NOISE = 1e-5
OWN_STREAM = {"exaone4_5"}  # without a residual between layers
OLDER_NAMES = {"llava", "llava_next", "llava_onevision"}  # of the tensors of their vision towers, which vLLM reads
ELSEWHERE = {
    "gemma3": "on CPUs, vLLM has no bidirectional attention within pictures",
    "paligemma": "on CPUs, vLLM has no bidirectional attention within pictures",
    "llava_next_video": "vLLM takes clips only, and this test has pictures",
    "qwen3_vl_moe": "vLLM does not load the tiny base",
    "qwen3_5": "vLLM's linear attention on CPUs takes no tiny heads",
    "qwen3_5_moe": "vLLM's linear attention on CPUs takes no tiny heads",
    "glm4v_moe": "vLLM asks its config for fields that the tiny base does not have",
    "cohere2_vision": "vLLM does not load the tiny base",
    "llama4": "vLLM's chunks of attention are larger than those of the tiny base",
    "lfm2_vl": "vLLM asks its config for a field that this release of transformers does not have",
}


def text_config(model_type: str) -> dict[str, Any]:
    """The tiny one with heads of 32, the smallest that vLLM's attention on CPUs takes."""
    text = {**TINY[model_type].text, "num_attention_heads": 2, "num_key_value_heads": 1}
    if "head_dim" in text:
        text["head_dim"] = 32
    if sections := text.get("rope_parameters", {}).get("mrope_section"):
        text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [2 * size for size in sections]}
    return text


def rename(weights: Path) -> None:
    """Gives the tensors of vision towers the names in the Hub's repositories, which are those that vLLM reads."""
    tensors = load_file(weights)
    save_file({hub_name(name): tensor for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})


def hub_name(name: str) -> str:
    if name.startswith("vision_tower.") and name.split(".")[1] in (
        "embeddings",
        "encoder",
        "pre_layrnorm",
        "post_layernorm",
    ):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def prompts_of(base: Path, model_type: str) -> list[dict[str, Any]]:
    """One picture, two, and none, in the family's chat template."""
    from transformers import AutoProcessor

    processor, tiny = AutoProcessor.from_pretrained(base), tiny_processors.PROCESSORS[model_type]
    prompts = []
    for seeds in ([1], [2, 3], []):
        text = {"type": "text", "text": "what is in this picture ? describe the image in one sentence"}
        if tiny.template:
            content = [*[{"type": "image"}] * len(seeds), text]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        else:
            prompt = tiny.image * len(seeds) + text["text"]
        images = {"multi_modal_data": {"image": [picture(seed, 28) for seed in seeds]}} if seeds else {}
        prompts.append({"prompt": prompt, **images})
    return prompts


@pytest.mark.parametrize("model_type", VLLM_FAMILIES)
def test_family(
    model_type: str, package_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model_type in ELSEWHERE:
        pytest.skip(ELSEWHERE[model_type])
    monkeypatch.setitem(tiny_families.TINY, model_type, replace(TINY[model_type], text=text_config(model_type)))
    # Packages of some are made with a newer transformers than vLLM runs with.
    monkeypatch.setitem(families.FAMILIES, model_type, replace(families.FAMILIES[model_type], since="5.0", broken=()))
    base = tiny_processors.build_tiny_base(tmp_path / "base", model_type)
    if model_type in OLDER_NAMES:
        rename(base / "model.safetensors")
    package, prompts = package_of(base, **POLICY), prompts_of(base, model_type)
    for chunk in (512, 9):
        options = {"max_model_len": 256, "max_num_batched_tokens": chunk, "max_num_seqs": 4}
        with engine(package, **options) as llm:
            model = model_of(llm)
            found = ask(llm, prompts, max_tokens=6)
            steps = model.shortv_counter.steps
            with by_definition(model, **POLICY, sums_residual=model_type not in OWN_STREAM) as step:
                expected = ask(llm, prompts, max_tokens=6)
            with by_definition(model, []):
                dense = ask(llm, prompts, max_tokens=6)
            assert steps == step.count > 0
        assert difference(found, expected) <= NOISE
        assert largest(dense, expected) > 100 * NOISE  # else the comparison above would say nothing


def largest(one: list[Answer], other: list[Answer]) -> float:
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) for x, y in pairs for a, b in zip(x.logprobs, y.logprobs, strict=True))

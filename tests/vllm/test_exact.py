"""Frozen layers in vLLM compute what the definition says, in every way that vLLM runs a request.

The definition is computed inside vLLM: the stock model on all rows, whose visual rows are put back. The transformers
package is a second oracle, independent of vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vllm.conftest import FROZEN
from tests.vllm.engines import (
    NEW_TOKENS,
    PROMPTS,
    Answer,
    answer_of,
    ask,
    by_definition,
    difference,
    engine,
    model_of,
    picture,
    requests,
)

NOISE = 2e-5
"""Of log-probabilities in fp32: vLLM's kernels against those of transformers."""

OPERATORS: dict[str, Any] = {"frozen": (0,), "attention": (1,), "ffn": (2, 3)}
"""A whole layer, one's attention, and the feed-forward networks of two."""

POLICIES = [pytest.param({"frozen": FROZEN}, id="layers"), pytest.param(OPERATORS, id="operators")]

MODELS = {"heads": {}, "grouped heads": {"num_key_value_heads": 2, "text_model": "mistral"}}


def by_transformers(package: Path) -> list[Answer]:
    """What the package itself answers to all prompts."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(package, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(package, trust_remote_code=True, dtype=torch.float32).eval()
    answers = []
    for prompt, seeds in PROMPTS.values():
        images = {"images": [picture(seed) for seed in seeds]} if seeds else {}
        inputs = processor(text=prompt, return_tensors="pt", **images)
        ids = inputs["input_ids"]
        with torch.inference_mode():
            scores = model(**inputs).logits[0, :-1].log_softmax(-1)
            new = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=3)
        logprobs = scores.gather(1, ids[0, 1:, None])[:, 0].tolist()
        answers.append(Answer(ids[0].tolist(), new[0, ids.shape[1] :].tolist(), logprobs))
    return answers


@pytest.fixture(scope="module", params=MODELS)
def package(request: pytest.FixtureRequest, llava: Callable[..., Path]) -> Path:
    return llava(**MODELS[request.param])


@pytest.fixture(scope="module")
def expected(package: Path) -> list[Answer]:
    return by_transformers(package)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_num_batched_tokens": 23, "max_num_seqs": 8}, {"max_num_batched_tokens": 7, "max_num_seqs": 4}],
    ids=["whole prompts", "chunks of 23", "chunks of 7"],
)
def test_one_by_one_and_in_one_batch(package: Path, expected: list[Answer], options: dict[str, Any]) -> None:
    """Chunks cut pictures in two; some hold nothing but visual tokens."""
    with engine(package, **options) as llm:
        counter = model_of(llm).shortv_counter
        alone, batch = ask(llm, alone=True), ask(llm)
        visual = sum(16 * len(seeds) for _, seeds in PROMPTS.values())
        assert counter.attention == counter.ffn == 2 * visual * len(FROZEN)  # each token once, in both calls
        with by_definition(model_of(llm), FROZEN) as step:
            definition = ask(llm)
        assert step.count > 0
    assert difference(batch, definition) <= 1e-6
    assert difference(alone, expected) <= NOISE
    assert difference(batch, expected) <= NOISE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 23, "max_num_seqs": 8},
        {"max_num_batched_tokens": 7, "max_num_seqs": 4},
        {"enable_prefix_caching": True, "block_size": 32},
    ],
    ids=["whole prompts", "chunks of 23", "chunks of 7", "prefix caching"],
)
def test_single_operators(llava: Callable[..., Path], options: dict[str, Any]) -> None:
    package = llava(**OPERATORS, num_key_value_heads=2, text_model="mistral")
    with engine(package, **options) as llm:
        counter = model_of(llm).shortv_counter
        found = [ask(llm, logprobs=False), ask(llm, logprobs=False)]  # the second finds prefixes in the cache
        assert counter.attention / 2 == counter.ffn / 3 > 0
        found.append(ask(llm))
        with by_definition(model_of(llm), **OPERATORS):
            definition = ask(llm)
    assert difference(found[2], definition) <= 1e-6
    for answers in found:
        assert difference(answers, by_transformers(package)) <= NOISE


def test_a_dense_model_answers_otherwise(package: Path, expected: list[Answer]) -> None:
    """The comparisons above would find a model that freezes nothing."""
    with engine(package) as llm, by_definition(model_of(llm), []):
        dense = ask(llm)
    for number, (one, other) in enumerate(zip(dense, expected, strict=True)):
        worst = max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))
        # Nothing comes after the picture of "image last", and nothing is visual in "text only".
        name = list(PROMPTS)[number]
        assert (worst > 1e-2) == (name != "text only"), name


@pytest.mark.parametrize("chunk", [2048, 23])
def test_prefix_caching(llava: Callable[..., Path], chunk: int) -> None:
    """Whole blocks of a prompt are found in the cache: some end within a picture, some after it."""
    package = llava()
    options = {"enable_prefix_caching": True, "block_size": 32, "max_num_batched_tokens": chunk, "max_num_seqs": 8}
    with engine(package, **options) as llm:
        first = ask(llm, logprobs=False)
        computed = model_of(llm).shortv_counter.ffn
        second = ask(llm, logprobs=False)
        assert model_of(llm).shortv_counter.ffn < 2 * computed  # some visual tokens were in the cache
    assert difference(second, first) == 0
    assert difference(first, by_transformers(package)) <= NOISE


def test_preemption(llava: Callable[..., Path]) -> None:
    """A cache too small for all requests: some are thrown out, and computed again."""
    from vllm import SamplingParams

    package = llava()
    prompts = requests(["one image"]) * 6
    params = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
    with engine(package, num_gpu_blocks_override=16, block_size=32, max_model_len=256) as llm:
        crowded = [answer_of(output) for output in llm.generate(prompts, params, use_tqdm=False)]
        updates = model_of(llm).shortv_counter.ffn
    assert updates > len(prompts) * 16 * len(FROZEN)  # some were computed twice
    with engine(package, max_model_len=256) as llm:
        roomy = ask(llm, prompts, logprobs=False, max_tokens=150)
    assert difference(crowded, roomy) == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_sampling(llava: Callable[..., Path], policy: dict[str, Any]) -> None:
    """Several answers, beams, and a grammar: as by the definition."""
    from vllm import SamplingParams
    from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

    prompts = requests(["one image", "text only", "image late"])
    sampled = SamplingParams(n=3, temperature=1.0, seed=7, max_tokens=8, ignore_eos=True)
    grammar = SamplingParams(
        temperature=0, max_tokens=4, structured_outputs=StructuredOutputsParams(choice=["yes", "no", "cat"])
    )

    def answers(llm: Any) -> list[Any]:
        found: list[Any] = []
        for params in (sampled, grammar):
            for output in llm.generate(prompts, params, use_tqdm=False):
                found.append([list(answer.token_ids) for answer in output.outputs])
        for output in llm.beam_search(prompts, BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True)):
            found.append([list(sequence.tokens) for sequence in output.sequences])
        return found

    with engine(llava(**policy)) as llm:
        found = answers(llm)
        with by_definition(model_of(llm), **policy):
            expected = answers(llm)
        with by_definition(model_of(llm), []):
            dense = answers(llm)
    assert found == expected
    assert found != dense


@pytest.mark.parametrize("policy", POLICIES)
def test_speculative_decoding(llava: Callable[..., Path], policy: dict[str, Any]) -> None:
    """Drafts from the prompt's own words change nothing."""
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    package = llava(**policy)
    with engine(package, speculative_config=speculative) as llm:
        drafted = ask(llm, logprobs=False, max_tokens=24)
    with engine(package) as llm:
        plain = ask(llm, logprobs=False, max_tokens=24)
    assert difference(drafted, plain) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(llava: Callable[..., Path], dtype: str) -> None:
    """Against the definition in the same precision."""
    with engine(llava(), dtype=dtype) as llm:
        found = ask(llm, max_tokens=1)
        with by_definition(model_of(llm), FROZEN):
            expected = ask(llm, max_tokens=1)
        with by_definition(model_of(llm), []):
            dense = ask(llm, max_tokens=1)

    def worst(answers: list[Answer]) -> float:
        return max(
            abs(a - b)
            for one, other in zip(answers, expected, strict=True)
            for a, b in zip(one.logprobs, other.logprobs, strict=True)
        )

    assert worst(found) < worst(dense) / 10

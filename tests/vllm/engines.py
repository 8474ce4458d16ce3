"""vLLM engines in this process, their answers, and the definition of frozen layers inside them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

SIZE = 56  # pixels of a picture: 16 visual tokens
LONG = (
    "describe the image in one sentence . answer question using single word or phrase . how many cups are there ? " * 3
)
PROMPTS: dict[str, tuple[str, list[int]]] = {
    "one image": ("USER : <image>\nwhat is in this picture ? ASSISTANT :", [1]),
    "image first": ("<image>how many cups are there ? ASSISTANT :", [2]),
    "two images": (
        "USER : <image>\nwhat is in this picture ? USER : and <image>\nhow many cups are there ? ASSISTANT :",
        [1, 3],
    ),
    "adjacent images": ("USER : <image><image>describe the image . ASSISTANT :", [4, 5]),
    "image late": ("USER : " + LONG + "<image>\nwhat is in this picture ? ASSISTANT :", [6]),
    "image last": ("USER : what is in this picture ? <image>", [7]),
    "text only": ("USER : how many cups are there ? answer question using single word . ASSISTANT :", []),
    "long text, two images": (
        "USER : " + LONG + "<image>\n" + LONG + "and <image>\ndescribe the image . ASSISTANT :",
        [8, 1],
    ),
}
NEW_TOKENS = 12


def picture(seed: int, size: int = SIZE) -> Image.Image:
    """A picture of coloured boxes."""
    draw = random.Random(seed)
    image = Image.new("RGB", (size, size), tuple(draw.randrange(256) for _ in range(3)))
    for _ in range(6):
        x, y, width = draw.randrange(size), draw.randrange(size), draw.randrange(size // 6, size // 2)
        image.paste(tuple(draw.randrange(256) for _ in range(3)), (x, y, x + width, y + width))
    return image


@dataclass
class Answer:
    """Prompt and answer as token ids, and the log-probability of each prompt token but the first."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


@contextmanager
def engine(folder: Path | str, **options: Any) -> Iterator[Any]:
    """A vLLM engine for a model folder. It runs in this process, eagerly and without prefix caching if not told."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    defaults: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_model_len": 1024,
        "limit_mm_per_prompt": {"image": 2},
        "disable_log_stats": True,
    }
    llm = LLM(str(folder), **{**defaults, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


def model_of(llm: Any) -> Any:
    """The model inside an engine of this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model


def requests(names: Sequence[str] = tuple(PROMPTS)) -> list[dict[str, Any]]:
    found = []
    for name in names:
        prompt, seeds = PROMPTS[name]
        found.append({"prompt": prompt, **({"multi_modal_data": {"image": [*map(picture, seeds)]}} if seeds else {})})
    return found


def ask(
    llm: Any, prompts: Sequence[Any] | None = None, *, alone: bool = False, logprobs: bool = True, **sampling: Any
) -> list[Answer]:
    """The engine's greedy answers, to all prompts at once or to each alone."""
    from vllm import SamplingParams

    prompts = requests() if prompts is None else prompts
    params = SamplingParams(
        **{"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True, "prompt_logprobs": 0 if logprobs else None}
        | sampling
    )
    batches = [[prompt] for prompt in prompts] if alone else [list(prompts)]
    outputs = [output for batch in batches for output in llm.generate(batch, params, use_tqdm=False)]
    return [answer_of(output) for output in outputs]


def answer_of(output: Any) -> Answer:
    scored = zip(output.prompt_token_ids, output.prompt_logprobs or [], strict=False)
    return Answer(
        list(output.prompt_token_ids),
        list(output.outputs[0].token_ids),
        [found[token].logprob for token, found in scored if found],
    )


def difference(found: Sequence[Answer], expected: Sequence[Answer]) -> float:
    """The largest difference of prompt log-probabilities. Prompts and answers must be equal."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one.prompt == other.prompt
        assert one.tokens == other.tokens
        if one.logprobs and other.logprobs:
            worst = max([worst, *(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))])
    return worst


@contextmanager
def by_definition(
    model: Any,
    frozen: Sequence[int],
    *,
    attention: Sequence[int] = (),
    ffn: Sequence[int] = (),
    sums_residual: bool = True,
) -> Iterator[SimpleNamespace]:
    """Runs the stock model on all rows, and puts the visual rows back after each frozen layer.

    Args:
        model: of an engine that runs eagerly.
        frozen: numbers of the layers.
        attention, ffn: numbers of the layers in which a single operator adds nothing to visual rows.
        sums_residual: whether the stream between layers is the sum of the hidden states and the residual.
    """
    from shortv_export.base.definition import ATTENTION, FFN, operator_modules
    from shortv_export.vllm.model import ShortVMixin

    step = SimpleNamespace(visual=None, count=0)

    def remember(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Before the layer runs, because kernels change the residual in place.
        if step.visual is not None:
            named = dict(zip(("positions", "hidden_states", "residual"), args, strict=False)) | kwargs
            stream, residual = named["hidden_states"], named["residual"]
            step.before = (stream + residual if sums_residual and residual is not None else stream)[
                step.visual
            ].clone()

    def put_back(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if step.visual is None:
            return output
        hidden, residual = output[0].clone(), output[1]
        if sums_residual:
            residual = residual.clone()
            hidden[step.visual], residual[step.visual] = 0, step.before
        else:
            hidden[step.visual] = step.before
        return hidden, residual

    def add_nothing(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if step.visual is None:
            return output
        update = output.clone()
        update[step.visual] = 0
        return update

    def forward(*args: Any, **kwargs: Any) -> Any:
        visual, model._visual = model._visual, None
        step.visual = visual.nonzero().flatten() if visual is not None and visual.any() else None
        step.count += step.visual is not None
        return super(ShortVMixin, model).forward(*args, **kwargs)

    layers = [model.decoder_layers()[index] for index in frozen]
    hooks = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(put_back, with_kwargs=True) for layer in layers]
    for names, numbers in ((ATTENTION, attention), (FFN, ffn)):
        for index in numbers:
            modules = operator_modules(model.decoder_layers()[index], names)
            assert modules, (index, names)
            hooks += [module.register_forward_hook(add_nothing) for module in modules]
    model.forward = forward
    try:
        yield step
    finally:
        del model.forward
        for hook in hooks:
            hook.remove()

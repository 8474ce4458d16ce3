"""A base's processor. It lives in a worker, as do its tokenizer and its chat template."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ShortVError, one_line
from .confined import entering
from .families import plain_prompt
from .prompt import chat_template, render_prompt
from .worker import Worker

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from .model import BaseModel

T = TypeVar("T", bound="Processor")

logger = logging.getLogger(__name__)

# A processor must take a plain picture of this size, LLaVA-1.5's input. If it does and fails on another, that is odd.
_REFERENCE_PICTURE = (336, 336)
_PLACEHOLDERS = ("image_token_id", "image_token_index", "image_patch_id", "video_token_id", "video_token_index")


@dataclass(frozen=True)
class Reference:
    """What a processor makes of a plain picture and a question.

    Attributes:
        visual_tokens: how many tokens of the prompt are the picture's.
        plain_prompt: the form of its prompts if the base has no chat template, else None.
    """

    visual_tokens: int
    plain_prompt: str | None


class Processor:
    """The processor of a base, in a process of its own.

    Args:
        base: a base; or a package, as a base.
        remote_code: whether it is a package, whose config is a class of its own.
    """

    def __init__(self, base: BaseModel, *, remote_code: bool = False) -> None:
        self.base = base
        self._worker = Worker(base.name, load_processor, base.path, remote_code)

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; it starts again if it is needed again."""
        self._worker.close()

    @cached_property
    def reference(self) -> Reference:
        """What it makes of a plain picture.

        Raises:
            ShortVError: the processor cannot be loaded, cannot be used, or gives no visual tokens.
        """
        import transformers

        with suppress(Exception):  # imported here, a fork has it
            getattr(transformers, f"{self.base.family.name}Processor")
        ids, plain = self._worker.run(_refer)
        self.check_ids(ids)
        found = Reference(int((ids == self.base.image_token_id).sum()), plain)
        if not found.visual_tokens:
            raise ShortVError(
                f"{self.base.name}: its processor puts no image token into a prompt with a picture; its chat template "
                "may be for text only. Complete its files or use another base."
            )
        if plain is not None:
            logger.info("%s has no chat template; its prompts are %r", self.base.name, plain)
        return found

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls ``function(processor, *args)`` in the process (see `Worker.run`), once `reference` is known."""
        _ = self.reference
        return self._worker.run(function, *args)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer's token ids, without special tokens."""
        return str(self.run(_decode, list(tokens)))

    def check_ids(self, ids: Any) -> None:
        """Refuses token ids that the model does not know; `ids` are an array.

        Raises:
            ShortVError: one is beyond the model's embeddings.
        """
        for field in _PLACEHOLDERS:  # some models put features there without looking the token up
            ids = ids[ids != self.base.config.get(field)]
        known = self.base.skeleton.embeddings
        if ids.size and ids.max() >= known:
            raise ShortVError(
                f"{self.base.name}: its tokenizer gives the token id {ids.max()}, but its model has {known} "
                "embeddings; use the tokenizer that belongs to the model."
            )


# In the worker.


def load_processor(folder: Path, remote_code: bool = False) -> ProcessorMixin:
    """Loads a processor in this process, which is to be a worker: of a base, or with `remote_code` of a package."""
    from transformers import AutoProcessor

    entering("processor", "cannot be loaded")
    processor: ProcessorMixin = AutoProcessor.from_pretrained(
        folder, trust_remote_code=remote_code, local_files_only=True
    )
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        # Without a processor's class, transformers gives a tokenizer.
        raise ValueError("transformers knows no class for it; name processor_class in its processor_config.json")
    return processor


def _refer(processor: Any) -> tuple[Any, str | None]:
    """The token ids of a plain picture with a question, and the form of the prompt if there is no chat template."""
    from PIL import Image

    prompt = render_prompt(processor, ["image"], "?")
    entering("tokenizer")
    processor.tokenizer(prompt)
    entering("processor", "cannot be used")
    picture = Image.new("RGB", _REFERENCE_PICTURE)
    try:
        inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
    except Exception as error:
        if not any(token and token in prompt for token in _placeholders(processor)):
            raise ValueError(f"{one_line(error)}; its chat template may be for text only") from error
        unset = [name for name, value in vars(processor).items() if value is None and name.endswith("_size")]
        raise (ValueError(f"{unset[0]} is not set in its files") if unset else error) from error
    plain = plain_prompt(processor) if chat_template(processor) is None else None
    return inputs["input_ids"].numpy(), plain


def _placeholders(processor: Any) -> list[str | None]:
    """What stands for a picture in a prompt, before the processor puts visual tokens there."""
    return [getattr(processor, name, None) for name in ("image_token", "boi_token", "fake_image_token")]


def _decode(processor: Any, tokens: list[int]) -> str:
    entering("tokenizer")
    return str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

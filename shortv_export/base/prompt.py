"""The prompts of a base: by its own chat template, wherever that lies, or plain ones for a base without."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .confined import entering
from .families import plain_prompt


def chat_template(processor: Any) -> str | None:
    """The chat template of a processor or of its tokenizer; of several named ones, the one named "default".

    Files of both are read: chat_template.jinja and chat_template.json, processor_config.json, tokenizer_config.json.

    Raises:
        ValueError: there are named templates, but none named "default"; or it is no text.
    """
    for owner in (processor, processor.tokenizer):
        template = owner.chat_template
        if isinstance(template, Mapping):
            if "default" not in template:
                names = ", ".join(map(str, template))
                raise ValueError(f"there are several ({names}), and none is named default")
            template = template["default"]
        if template:
            if not isinstance(template, str):
                raise ValueError(f"it is a {type(template).__name__}, not text")
            return template
    return None


def render_prompt(processor: Any, media: Sequence[str], question: str) -> str:
    """The prompt for pictures and clips with a question, up to where the answer begins.

    Args:
        processor: of a base.
        media: ``"image"`` or ``"video"`` for each, in the order shown.
        question: the user's text.
    """
    entering("chat template")
    template = chat_template(processor)
    if template is None:
        shown = [getattr(processor, f"{kind}_token", f"<{kind}>") for kind in media]
        plain = re.sub(
            r"<image>(\n?)", lambda found: "".join(f"{each}{found[1]}" for each in shown), plain_prompt(processor)
        )
        return plain.format(question=question)
    content: list[Any] = [*({"type": kind} for kind in media), {"type": "text", "text": question}]
    conversation: Any = [{"role": "user", "content": content}]
    return str(
        processor.apply_chat_template(conversation, chat_template=template, add_generation_prompt=True, tokenize=False)
    )

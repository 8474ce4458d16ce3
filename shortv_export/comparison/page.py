"""A page that asks a ShortV model and its base the same question about the same picture, side by side.

This file stands alone (torch, transformers and gradio), because a Space runs it, too. There is one model in memory:
with nothing frozen, a ShortV model is its base, bit for bit. So the base answers first, then the layers are frozen and
ShortV answers. Both decode greedily.
"""

from __future__ import annotations

import difflib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch
from transformers import StoppingCriteria, TextIteratorStreamer

Words = list[tuple[str, str | None]]
"""Words of an answer, each with a label, as `gradio.HighlightedText` takes them."""

LISTS = ("frozen_layers", "frozen_attention", "frozen_ffn")
NOTHING: dict[str, list[int]] = {name: [] for name in LISTS}
DIFFERS = "differs"
NOTE = (
    "The base answers first, then ShortV, with the same weights and on the same machine. A question is one run of "
    "each, so its times are an impression; measured figures stand on the model's card."
)


@dataclass(frozen=True)
class Answer:
    """An answer so far, what is known of it in Markdown, and the seconds until its first token."""

    text: str = ""
    facts: str = ""
    first: float | None = None


class Asked:
    """A model and its base, which share their weights.

    Args:
        model: a loaded ShortV model, with the layers frozen that its config lists.
        processor: its processor.
        plain_prompt: the prompt for a model without a chat template, with ``<image>`` and ``{question}``.
    """

    def __init__(self, model: Any, processor: Any, plain_prompt: str) -> None:
        self.model, self.processor, self.plain_prompt = model, processor, plain_prompt
        report = model.shortv_report()
        self.frozen = {name: report[name] for name in LISTS}
        self._warm = False

    def ask(self, picture: Any, question: str, max_new_tokens: int) -> Iterator[tuple[Words, str, Words, str, str]]:
        """Answers as the base and as ShortV, word by word.

        Args:
            picture: a PIL image, or None for a question without one.
            question: the user's text.
            max_new_tokens: the most tokens of an answer.

        Yields:
            The base's answer so far and what is known of it; the same of ShortV; and in the end what differs.
        """
        if not question or not question.strip():
            raise gr.Error("Type a question.")
        inputs = self.encode(picture, question.strip())
        if not self._warm:  # the first run of a process is slower than all others
            for lists in (NOTHING, self.frozen):
                self.model.freeze_layers(**lists)
                self.model.generate(**inputs, max_new_tokens=1, do_sample=False)
            self._warm = True
        base, shortv = Answer(), Answer()
        for base in self._answer(inputs, NOTHING, max_new_tokens):
            yield _plain(base.text), base.facts, [], "", ""
        for shortv in self._answer(inputs, self.frozen, max_new_tokens, base.first):
            yield _plain(base.text), base.facts, _plain(shortv.text), shortv.facts, ""
        one, other, verdict = compare_words(base.text, shortv.text)
        yield one, base.facts, other, shortv.facts, verdict

    def encode(self, picture: Any, question: str) -> Any:
        """The inputs of the model for a picture and a question."""
        pictures = [] if picture is None else [picture]
        prompt = self._prompt(question, len(pictures))
        bos = self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=[prompt],
            images=[pictures] if pictures else None,
            # If the template writes the first token, the tokenizer must not add it again.
            **({"add_special_tokens": False} if bos and prompt.startswith(bos) else {}),
            return_tensors="pt",
        )
        inputs.pop("labels", None)  # some processors make labels of every prompt
        return inputs.to(self.model.device, self.model.dtype)

    def _prompt(self, question: str, pictures: int) -> str:
        template = self.processor.chat_template or self.processor.tokenizer.chat_template
        if not template:
            shown = getattr(self.processor, "image_token", "<image>") * pictures
            return re.sub(r"<image>(\n?)", rf"{shown}\1" if shown else "", self.plain_prompt).format(question=question)
        if isinstance(template, dict):
            template = template["default"]
        content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, add_generation_prompt=True, tokenize=False
        )

    def _answer(
        self, inputs: Any, lists: dict[str, list[int]], max_new_tokens: int, base_first: float | None = None
    ) -> Iterator[Answer]:
        """Generates in a thread. Yields the answer so far, with the facts in the end."""
        self.model.freeze_layers(**lists)
        stop, streamer = _Stop(), _Stream(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failures: list[Exception] = []

        def generate() -> None:
            try:
                self.model.generate(
                    **inputs,
                    max_new_tokens=int(max_new_tokens),
                    do_sample=False,
                    num_beams=1,
                    streamer=streamer,
                    stopping_criteria=[stop],
                )
            except Exception as error:
                failures.append(error)
                streamer.on_finalized_text("", stream_end=True)

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        text = ""
        try:
            for part in streamer:
                text += part
                yield Answer(text)
        finally:  # also where nobody waits for the answer any more
            stop.wanted = True
            thread.join()
        if failures:
            raise gr.Error(f"{type(failures[0]).__name__}: {failures[0]}") from failures[0]
        yield Answer(text, self._facts(streamer, base_first), streamer.first)

    def _facts(self, streamer: _Stream, base_first: float | None) -> str:
        report = self.model.shortv_report()
        share = f" ({streamer.first / base_first:.2f} of the base's time)" if base_first else ""
        if not any(report[name] for name in LISTS):
            skips = "skips nothing"
        elif not report["total_updates"]:
            skips = "skips nothing: there is no picture"
        else:
            skipped, total = report["skipped_updates"], report["total_updates"]
            skips = f"skips {skipped:,} of {total:,} token updates ({skipped / total:.0%})"
        return (
            f"**{streamer.first:.2f} s** to the first token{share}  \n"
            f"{streamer.tokens} tokens in {streamer.last:.2f} s  \n{skips}"
        )


class _Stream(TextIteratorStreamer):
    """Words as they come, and when the first and the last token came, in seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.began, self.first, self.last, self.tokens = time.perf_counter(), 0.0, 0.0, 0

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.last = time.perf_counter() - self.began
            self.first = self.first or self.last
            self.tokens += 1
        super().put(value)


class _Stop(StoppingCriteria):
    """Ends a generation whose answer nobody waits for."""

    wanted = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.wanted, dtype=torch.bool, device=input_ids.device)


def _plain(text: str) -> Words:
    return [(text, None)] if text else []


def compare_words(one: str, other: str) -> tuple[Words, Words, str]:
    """Both answers with the words marked that the other does not have there, and a sentence about them."""
    words = [re.findall(r"\s*\S+(?:\s+\Z)?", text) for text in (one, other)]
    bare = [[word.strip() for word in each] for each in words]
    marked: tuple[Words, Words] = ([], [])
    for kind, *spans in difflib.SequenceMatcher(None, bare[0], bare[1], autojunk=False).get_opcodes():
        for index in (0, 1):
            if text := "".join(words[index][spans[2 * index] : spans[2 * index + 1]]):
                marked[index].append((text, None if kind == "equal" else DIFFERS))
    missing, new = (sum(len(text.split()) for text, label in each if label) for each in marked)
    if not missing and not new:
        return *marked, "Both answers are the same."
    of_base, of_shortv = map(len, words)
    return *marked, (
        f"The answers differ: {missing} of the base's {of_base} words are missing from ShortV's answer, "
        f"and {new} of its {of_shortv} words are others."
    )


def build(asked: Asked, title: str, description: str) -> gr.Blocks:
    """The page.

    Args:
        asked: the models.
        title: its heading.
        description: what is frozen, in Markdown.
    """
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\n\n{description}")
        with gr.Row():
            picture = gr.Image(type="pil", label="Picture", height=320)
            with gr.Column():
                question = gr.Textbox(label="Question", lines=3, value="Describe the picture.")
                tokens = gr.Slider(8, 512, value=64, step=8, label="Tokens of an answer, at most")
                button = gr.Button("Ask both", variant="primary")
        outputs: list[gr.components.Component] = []
        with gr.Row():
            for name in ("Base", "ShortV"):
                with gr.Column(min_width=320):
                    gr.Markdown(f"## {name}")
                    outputs.append(
                        gr.HighlightedText(
                            label=f"Answer of {'the base' if name == 'Base' else name}",
                            color_map={DIFFERS: "orange"},
                            show_inline_category=False,
                            combine_adjacent=True,
                            elem_classes="answer",
                        )
                    )
                    outputs.append(gr.Markdown())
        outputs.append(gr.Markdown())
        gr.Markdown(f"*{NOTE}*")
        # One question at a time: all share the model, and its layers are frozen for one of them.
        gr.on(
            [button.click, question.submit],
            asked.ask,
            inputs=[picture, question, tokens],
            outputs=outputs,
            show_progress_on=outputs[:3:2],
            concurrency_limit=1,
            api_name="ask",
        )
    return page


LOOK: dict[str, Any] = {
    # No fonts from other servers.
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    # Lines of an answer break between words, also where words are marked.
    "css": ".answer .textfield { display: block; word-break: normal; overflow-wrap: anywhere; } "
    ".answer .token-container { display: inline; }",
}
"""For `launch`."""

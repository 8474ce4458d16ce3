"""Encodes samples as inputs of a model, with the base's own processor and chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..base import plain_prompt
from ..errors import ShortVError, one_line
from .decode import Sample

if TYPE_CHECKING:
    from transformers import BatchFeature, ProcessorMixin


def encode_samples(processor: ProcessorMixin, samples: Sequence[Sample]) -> BatchFeature:
    """Encodes a batch of samples, up to where the answer begins: the images, then the videos, then the question.

    Returns:
        ``input_ids`` and ``attention_mask``, both ``(samples, tokens)`` and padded on the left, and the other tensors
        that the model takes.

    Raises:
        ShortVError: the processor or the chat template takes no videos, or not this one.
    """
    prompts = [_prompt(processor, sample) for sample in samples]
    media: dict[str, Any] = {}
    if any(sample.images for sample in samples):
        media["images"] = [list(sample.images) for sample in samples]
    if clips := [clip for sample in samples for clip in sample.videos]:
        media["videos"] = [[list(clip.frames) for clip in sample.videos] for sample in samples]
        # The frames are already chosen, so the processor must not sample them again.
        media["do_sample_frames"] = False
        media["video_metadata"] = [
            {
                "total_num_frames": len(clip.frames),
                "fps": clip.fps,
                "duration": len(clip.frames) / clip.fps if clip.fps else None,
                "frames_indices": list(range(len(clip.frames))),
            }
            for clip in clips
        ]
    bos = processor.tokenizer.bos_token
    try:
        inputs = processor(
            **media,
            text=prompts,
            padding=len(samples) > 1,
            padding_side="left",
            # If the template writes the first token, the tokenizer must not add it again.
            **({"add_special_tokens": False} if bos and prompts[0].startswith(bos) else {}),
            return_tensors="pt",
        )
    except Exception as error:  # processors raise many kinds, such as for too few frames
        if not clips:
            raise
        frames = min(len(clip.frames) for clip in clips)
        raise ShortVError(
            f"the base's processor cannot read a video of {frames} frame{'s' * (frames > 1)}: {one_line(error)}"
        ) from error
    inputs.pop("labels", None)  # some processors make labels of every prompt
    return inputs


def _prompt(processor: Any, sample: Sample) -> str:
    """The prompt of a sample, with one placeholder per image and per video."""
    image_token, video_token = (getattr(processor, f"{kind}_token", f"<{kind}>") for kind in ("image", "video"))
    if sample.videos and getattr(processor, "video_processor", None) is None:
        raise ShortVError(
            f"the base takes no videos ({type(processor).__name__}); give images, or a list of frames as image=COLUMN."
        )
    question = sample.question
    # Some data sets put placeholders into the question, but the template adds its own.
    for token in (image_token, video_token, "<image>", "<video>"):
        question = question.replace(token, "")
    question = question.strip()
    if processor.chat_template:
        content: list[Any] = [
            *({"type": "image"} for _ in sample.images),
            *({"type": "video"} for _ in sample.videos),
            {"type": "text", "text": question},
        ]
        conversation: Any = [{"role": "user", "content": content}]
        prompt = str(processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))
    else:
        shown = [image_token] * len(sample.images) + [video_token] * len(sample.videos)
        template = re.sub(
            r"<image>(\n?)", lambda found: "".join(f"{each}{found[1]}" for each in shown), plain_prompt(processor)
        )
        prompt = template.format(question=question)
    if sample.videos and prompt.count(video_token) != len(sample.videos):
        raise ShortVError(
            f"the chat template of the base puts {prompt.count(video_token)} of {len(sample.videos)} videos into a "
            "prompt; give images, or complete its template."
        )
    return prompt

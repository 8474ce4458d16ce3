"""Encodes samples as inputs of a model, with the base's own processor and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..base import BaseModel, PartError, Processor, entering, render_prompt
from ..errors import ShortVError
from .decode import Sample
from .draw import DrawnSamples

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchFeature, ProcessorMixin


class Encoder(Processor):
    """The processor of a base, which encodes samples in a process of its own. For the arguments see `Processor`."""

    def __init__(self, base: BaseModel, *, remote_code: bool = False) -> None:
        super().__init__(base, remote_code=remote_code)
        self._lengths: dict[str, int | str] = {}  # by digest: the number of tokens, or why there are none

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """The inputs of the model for one sample (see `encode_samples`).

        Raises:
            PartError: the processor, the tokenizer or the chat template fails on this sample.
            ShortVError: it fails on any, or takes no videos.
        """
        import torch

        return {name: torch.from_numpy(array) for name, array in self._encoded(_arrays, sample).items()}

    def num_tokens(self, sample: Sample) -> int:
        """How many tokens the prompt of a sample has.

        Raises:
            ShortVError: as for its inputs.
        """
        found = self._lengths.get(sample.digest)
        if not isinstance(found, int):
            found = self._lengths[sample.digest] = self._encoded(_ids, sample)["input_ids"].shape[1]
        return found

    def refusal(self, sample: Sample) -> str | None:
        """Why the processor cannot take this sample, although it takes a plain picture; None if it can.

        Raises:
            ShortVError: the base is at fault: its processor fails on any sample, or takes no videos.
        """
        _ = self.reference  # so that a failure from here on is the sample's fault
        if sample.digest not in self._lengths:
            try:
                self.num_tokens(sample)
            except PartError as error:
                self._lengths[sample.digest] = f"the base's {error.part} {error.failure}"
        found = self._lengths[sample.digest]
        return found if isinstance(found, str) else None

    def _encoded(self, function: Callable[..., dict[str, Any]], sample: Sample) -> dict[str, Any]:
        try:
            arrays: dict[str, Any] = self.run(function, sample)
        except PartError as error:
            failure = f"{error.failure} (on {_described(sample)})"
            raise PartError(self.base.name, error.part, failure) from error
        self.check_ids(arrays["input_ids"])
        return arrays

    def recorded(self, samples: DrawnSamples) -> dict[str, Any]:
        """The record of samples, with ``"prompt": "plain"`` if the base has no chat template."""
        return {**samples.record, **({"prompt": "plain"} if self.reference.plain_prompt is not None else {})}


def _described(sample: Sample) -> str:
    """A sample in words, such as "a picture of 900 x 3 pixels"."""
    shown = [f"a picture of {image.width} x {image.height}" for image in sample.images]
    for clip in sample.videos:
        frame, count = clip.frames[0], len(clip.frames)
        shown.append(f"a video of {count} frame{'s' * (count > 1)} of {frame.width} x {frame.height}")
    more = f" and {len(shown) - 1} more" if len(shown) > 1 else ""
    return f"{shown[0]} pixels{more}"


# In the worker.


def _arrays(processor: Any, sample: Sample) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in encode_samples(processor, [sample]).items()}


def _ids(processor: Any, sample: Sample) -> dict[str, Any]:
    """Of the same, only what is small."""
    return {"input_ids": _arrays(processor, sample)["input_ids"]}


def encode_samples(processor: ProcessorMixin, samples: Sequence[Sample]) -> BatchFeature:
    """Encodes a batch of samples, up to where the answer begins: the images, then the videos, then the question.

    Returns:
        ``input_ids`` and ``attention_mask``, both ``(samples, tokens)`` and padded on the left, and the other tensors
        that the model takes.

    Raises:
        ShortVError: the processor or the chat template takes no videos.
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
    entering("processor")
    inputs = processor(
        **media,
        text=prompts,
        padding=len(samples) > 1,
        padding_side="left",
        # If the template writes the first token, the tokenizer must not add it again.
        **({"add_special_tokens": False} if bos and prompts[0].startswith(bos) else {}),
        return_tensors="pt",
    )
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
    prompt = render_prompt(
        processor, ["image"] * len(sample.images) + ["video"] * len(sample.videos), question.strip()
    )
    if sample.videos and prompt.count(video_token) != len(sample.videos):
        raise ShortVError(
            f"the chat template of the base puts {prompt.count(video_token)} of {len(sample.videos)} videos into a "
            "prompt; give images, or complete its template."
        )
    return prompt

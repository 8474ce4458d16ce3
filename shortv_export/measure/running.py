"""Turns what a stock model raises while it runs into one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..base import BaseModel
from ..errors import ShortVError, one_line
from ..files import read_json
from ..records import CONFIG_NAME
from .memory import is_out_of_memory

_MISMATCH = re.compile(r"(image|video) features and .*? do not match\D*(\d+)\D*(\d+)", re.IGNORECASE)
_PROCESSOR = "processor_config.json"


@contextmanager
def running(base: BaseModel) -> Iterator[None]:
    """Names the base in any error of its model, except one that memory ran out.

    Raises:
        ShortVError: the model failed.
    """
    try:
        yield
    except ShortVError:
        raise
    except Exception as error:  # models raise many kinds
        if is_out_of_memory(error):
            raise
        if found := _MISMATCH.search(str(error)):
            kind, tokens, features = found[1].lower(), int(found[2]), int(found[3])
            hidden = base.layer_shapes[0].hidden_size
            if features > tokens and features % hidden == 0:  # some models count the numbers in the features
                features //= hidden
            raise ShortVError(
                f"{base.name}: its processor puts {tokens} {kind} tokens into a prompt where its model makes "
                f"{features} {kind} features; {_who_is_off(base)}."
            ) from error
        raise ShortVError(
            f"{base.name}: its model fails ({type(error).__name__}: {one_line(error)}); use another base, or another "
            "release of transformers."
        ) from error


def _who_is_off(base: BaseModel) -> str:
    """Where the processor's files and the config disagree."""
    ours = {**(base.complete_config.get("vision_config") or {}), **base.complete_config}
    theirs = read_json(base.path / _PROCESSOR) if _PROCESSOR in base.files else {}
    for name in ("patch_size", "vision_feature_select_strategy", "downsample_factor", "spatial_merge_size"):
        if name in ours and name in theirs and ours[name] != theirs[name]:
            return f"{_PROCESSOR} has {name} {theirs[name]!r:.40}, {CONFIG_NAME} {ours[name]!r:.40}: make them agree"
    return f"the weights fit {CONFIG_NAME}, so correct the processor's files (such as num_additional_image_tokens)"

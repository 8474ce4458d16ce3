"""Lists of frozen layers that need no scores: the paper's, or a given one."""

from __future__ import annotations

from collections.abc import Sequence

from ..base import BaseModel
from ..errors import ShortVError
from ..records import Selection

PRESET_SOURCE = "arXiv 2504.00502v2, Table 8"
# The frozen layers of the paper's four LLaVA checkpoints, in its order: lowest Layer Contribution first. The keys are
# Hub ids of the same checkpoints in transformers' format.
# fmt: off
PRESETS: dict[str, tuple[int, ...]] = {
    "llava-hf/llava-1.5-7b-hf": (
        31, 29, 30, 28, 0, 26, 27, 25, 24, 22, 23, 21, 2, 3, 20, 18, 17, 12, 19,
    ),
    "llava-hf/llava-1.5-13b-hf": (
        39, 32, 28, 36, 27, 37, 29, 30, 1, 38, 25, 31, 2, 26, 23, 34, 0, 33, 35, 22, 24, 21, 20, 17,
    ),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (
        31, 29, 30, 28, 26, 27, 22, 24, 21, 23, 25, 20, 19, 17, 18, 15, 12, 0, 2,
    ),
    "llava-hf/llava-v1.6-vicuna-13b-hf": (
        39, 32, 29, 36, 27, 30, 37, 23, 25, 31, 26, 2, 28, 22, 33, 35, 34, 24, 38, 21, 20, 18, 1, 17,
    ),
}


def preset_selection(base: BaseModel) -> Selection:
    """Selects the paper's list for a base.

    Raises:
        ShortVError: the paper has no list for this base, or the base has too few layers.
    """
    layers = PRESETS.get(base.repo_id or "")
    if layers is None:
        raise ShortVError(
            f"the paper has no list for {base.name}; it has for {', '.join(PRESETS)}. "
            "Measure scores for it with `shortv-export score`."
        )
    if max(layers) >= base.num_layers:
        raise ShortVError(
            f"the paper's list for {base.name} goes up to layer {max(layers)}, but it has {base.num_layers}."
        )
    return Selection(
        tuple(sorted(layers)), base.num_layers, "preset", {"num_frozen": len(layers)}, source=PRESET_SOURCE
    )


def given_selection(
    frozen_layers: Sequence[int],
    num_layers: int,
    *,
    frozen_attention: Sequence[int] = (),
    frozen_ffn: Sequence[int] = (),
) -> Selection:
    """Selects what given lists name, in any order.

    Raises:
        ShortVError: the lists are empty, have a layer twice, or hold anything but numbers from 0 to
            ``num_layers - 1``.
    """
    given = [*frozen_layers, *frozen_attention, *frozen_ffn]
    if not given:
        raise ShortVError("the list of frozen layers is empty; give layer numbers such as 31,29,30.")
    for position, layer in enumerate(given):
        if type(layer) is not int:
            raise ShortVError(
                f"frozen layer {layer!r:.40} is not a whole number; give layer numbers such as 31,29,30."
            )
        if not 0 <= layer < num_layers:
            raise ShortVError(f"frozen layer {layer} is out of range; the model's layers are 0 to {num_layers - 1}.")
        if layer in given[:position]:
            raise ShortVError(
                f"frozen layer {layer} is given twice; give each layer once (in `frozen_layers` if attention and the "
                "FFN are both frozen)."
            )
    return Selection(
        tuple(sorted(frozen_layers)),
        num_layers,
        "given",
        {"num_frozen": len(frozen_layers)},
        frozen_attention=tuple(sorted(frozen_attention)),
        frozen_ffn=tuple(sorted(frozen_ffn)),
    )

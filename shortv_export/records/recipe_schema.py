"""The schema of ``shortv.json``. This module imports pydantic, so it is only imported to read a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from .file_names import CARRIED, HUB_ID, INDEX_NAME, SHARD, WEIGHTS
from .recipe import MOST_NAMES
from .scores import Scores
from .validation import STRICT


def _like(pattern: str, what: str) -> AfterValidator:
    """Accepts text that matches the whole pattern, in which ``\\w`` means ASCII only."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"should be {what}")
        return text

    return AfterValidator(check)


Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, _like(r"[0-9a-f]{64}", "a sha256")]
Commit = Annotated[str, _like(r"[0-9a-f]{40}", "a commit")]
HubId = Annotated[str, _like(HUB_ID.pattern, "a Hub id")]
ClassName = Annotated[str, _like(r"[A-Za-z_]\w*", "a class name")]
FileName = Annotated[str, _like(r"[\w-][\w.-]*", "a plain file name")]  # flat, and not hidden
BaseFile = Annotated[
    str, _like(f"{CARRIED.pattern}|{SHARD.pattern}|{re.escape(INDEX_NAME)}", "a file that packages take over")
]
DerivedFile = Annotated[
    str, _like(r"(?:tokenizer|processor|preprocessor|video_preprocessor)_config\.json", "a file that names classes")
]
DerivedField = Annotated[
    str,
    _like(
        r"tokenizer_class|processor_class|(?:image_processor\.)?image_processor_type"
        r"|(?:video_processor\.)?video_processor_type|(?:feature_extractor\.)?feature_extractor_type",
        "a field that names a class",
    ),
]
MeasuredFile = Annotated[
    str, _like(r"evaluation\.json|[\w-]+\.png|\.eval_results/[\w-][\w.-]*\.yaml", "a file of an evaluation")
]
TokenCount = Annotated[float, Field(ge=1, le=1e9)]


class _Strict(BaseModel):
    model_config = STRICT


class _File(_Strict):
    sha256: Sha256
    size: Count


class _LeftOut(_Strict):
    number: Count
    names: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=MOST_NAMES)]


class _Base(_Strict):
    repo_id: HubId | None
    revision: Commit | None
    config_sha256: Sha256
    files: dict[BaseFile, _File]
    left_out: _LeftOut | None


class _Budget(_Strict, extra="allow"):
    text_tokens: TokenCount = 1
    visual_tokens: TokenCount = 1
    __pydantic_extra__: dict[str, float]


class _Probe(_Strict):
    num_frozen: float
    kl: float
    standard_error: float


class _Joint(_Strict):
    kl: float
    standard_error: float
    flops_ratio: float


class _Operators(_Strict):
    resamples: Count
    seed: Count
    attention_frequency: tuple[float, ...]
    ffn_frequency: tuple[float, ...]


class _Evidence(_Strict):
    positions: Literal["first", "answer"] | None = None
    operators: _Operators | None = None
    joint: dict[Literal["operators", "layers"], _Joint] = {}
    boundary: dict[str, Any] = {}
    probes: tuple[_Probe, ...] = ()
    held_out: dict[str, Any] = {}


class _Selection(_Strict):
    frozen_layers: tuple[Count, ...]
    num_layers: Count
    method: str
    budget: _Budget
    source: str | None
    evidence: _Evidence
    frozen_attention: tuple[Count, ...] = ()
    frozen_ffn: tuple[Count, ...] = ()


class _Cost(_Strict):
    text_tokens: float
    visual_tokens: float
    flops_ratio: float


class _Versions(_Strict, extra="allow"):
    shortv_export: str = Field(alias="shortv-export")
    transformers: str
    __pydantic_extra__: dict[str, str]


class _Derived(_Strict):
    base: ClassName | None = None
    package: ClassName


class RecipeSchema(_Strict):
    """The fields of a `Recipe`, all of them required but the lists of single operators."""

    base: _Base
    family: str
    num_layers: Count
    frozen_layers: tuple[Count, ...]
    weights: Annotated[str, _like("|".join(WEIGHTS), " or ".join(WEIGHTS))]
    selection: _Selection
    scores: Scores | None
    cost: _Cost
    card: dict[str, Any]
    figure: Sha256 | None
    code: dict[FileName, Sha256]
    versions: _Versions
    derived: dict[DerivedFile, dict[DerivedField, _Derived]]
    measured: dict[MeasuredFile, Sha256]
    format: int
    frozen_attention: tuple[Count, ...] = ()
    frozen_ffn: tuple[Count, ...] = ()

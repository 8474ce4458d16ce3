"""Samples to measure on, and packages made and published in one call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from shortv_export.base.model import BaseModel
from shortv_export.options import Contents, Target
from shortv_export.packaging.build import Draft, build_package
from shortv_export.packaging.inspection import Check, inspect_package
from shortv_export.packaging.package import Package
from shortv_export.publish.push import Push, push_package
from shortv_export.publish.repository import inspect_repository
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection


def write_questions(
    folder: Path, photos: dict[str, Any], questions: Sequence[str], size: tuple[int, int] | None = None
) -> Path:
    """Writes a folder of samples: each question about each photograph, resized to `size`. The answer is "cat"."""
    folder.mkdir()
    for name, image in photos.items():
        (image.resize(size) if size else image).save(folder / f"{name}.png")
    rows = [
        {"file_name": f"{name}.png", "question": question, "answer": "cat", "task": name}
        for question in questions
        for name in photos
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def make_package(
    base: BaseModel,
    out: Path,
    selection: Selection,
    *,
    scores: Scores | None = None,
    license: str | None = None,
    weights: str = "copy",
) -> Path:
    """Makes a package; returns its folder."""
    return build_package(Draft.of(base, out, Contents(license, weights)), selection, scores).folder


def inspected(package: Path) -> list[Check]:
    """The checks of a folder that can be made without its base, up to and including the first that failed."""
    with TemporaryDirectory() as temporary:
        found = inspect_package(Package.open(package), Path(temporary, "copy"), look_up=False).checks
    return [check for check in found if check.passed is not None]


def publish(package: Path, repo_id: str, *, token: str | None = None, **target: Any) -> Push:
    """Publishes a folder with this or the environment's token; `target` holds fields of `options.Target`."""
    with pytest.MonkeyPatch.context() as patch:
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        return push_package(Package.open(package), inspect_repository(repo_id, Target(**target)))

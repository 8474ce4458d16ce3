"""Packages for tests, made and published in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shortv_export.base.model import BaseModel
from shortv_export.options import Contents, Target
from shortv_export.packaging.build import Draft, build_package
from shortv_export.packaging.package import Package
from shortv_export.publish.push import Push, push_package
from shortv_export.publish.repository import look_at
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection


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
    draft = Draft.of(base, out, Contents(license, weights))
    return build_package(draft, selection, scores).folder


def publish(package: Path, repo_id: str, *, token: str | None = None, **target: Any) -> Push:
    """Publishes a folder, with a token or that of the environment; `target` are the fields of `options.Target`."""
    with pytest.MonkeyPatch.context() as patch:
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        return push_package(Package.open(package), look_at(repo_id, Target(**target)))

"""The base that a recipe pins, found again."""

from __future__ import annotations

from pathlib import Path

from ..base import BaseModel, resolve_base
from ..errors import ShortVError
from ..records import CONFIG_NAME, WEIGHT_FILES, BaseRecord
from .inspection import Check
from .package import Package


def check_same_base(base: BaseModel, recorded: BaseRecord) -> None:
    """Compares a base's files with those that a recipe records.

    Raises:
        ShortVError: a file is missing or differs.
    """
    if missing := sorted(recorded.files.keys() - set(base.files)):
        raise ShortVError(f"{base.name} is not the recipe's base: it has no {missing[0]}.")
    found = base.record()
    for name, entry in recorded.files.items():
        if found.files[name] != entry:
            raise ShortVError(f"{base.name} is not the recipe's base: its {name} differs.")
    if found.config_sha256 != recorded.config_sha256:
        raise ShortVError(f"{base.name} is not the recipe's base: its {CONFIG_NAME} differs.")


def referenced_weights(package: Package) -> tuple[Path, Check]:
    """Finds the weights of a package that has none of its own, and compares them with its recipe.

    Returns:
        The snapshot in the Hub's cache, and the check. If that failed, the path means nothing.
    """
    recorded = package.recipe.base
    try:
        base = resolve_base(str(recorded.repo_id), revision=recorded.revision)
        check_same_base(base, recorded)
    except ShortVError as error:
        return Path(), Check("base", False, str(error))
    weights = [name for name in recorded.files if name.endswith(WEIGHT_FILES)]
    return base.path, Check("base", True, f"{base.name} has the recipe's {len(weights)} weight files")

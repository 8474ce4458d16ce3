"""Compares a package with what its recipe and its base make, byte for byte. Nothing of the package is run.

A package is a pure function of its recipe and its base. So its base is looked up, every file but the weights is made
again, and the weights are compared with the base's own. The package's small files are read once, into a private copy:
what was compared is what is loaded or published afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..base import BaseModel
from ..errors import ShortVError
from ..files import file_identity, scratch_folder
from .comparison import Comparison, NotMade
from .package import Package


@dataclass(frozen=True)
class Check:
    """The result of one check, with what was found. `passed` is None if it could not be made."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Inspection:
    """A package that was compared.

    Attributes:
        package: in a private folder, which holds its small files as they were read, and links to its weights.
        base: what it was compared with; None if it could not be had.
        checks: in order, up to and including the first that failed.
        weights_folder: where the weights are; None if they are not here.
        weights: the weight files, with what the file system said of them before they were hashed.
    """

    package: Package
    base: BaseModel | None
    checks: tuple[Check, ...]
    weights_folder: Path | None
    weights: dict[Path, tuple[int, ...]]

    @property
    def failed(self) -> Check | None:
        """The check that failed, if one did."""
        return next((check for check in self.checks if check.passed is False), None)

    def check_unchanged(self) -> None:
        """Raises a ShortVError if a weight file was replaced or written to since it was hashed."""
        for path, identity in self.weights.items():
            if file_identity(path) != identity:
                raise ShortVError(f"{path.name} was changed while it was compared; run it again.")


def inspect_package(
    package: Package,
    folder: Path,
    *,
    base: BaseModel | None = None,
    look_up: bool = True,
    weights: bool = True,
    fetch: bool = False,
) -> Inspection:
    """Compares a package with what its recipe and its base make.

    Args:
        package: to inspect.
        folder: where the private copy goes; it is made.
        base: what the package should have been made of; None looks up the recipe's base at its commit.
        look_up: whether to do that. If not, the base is not compared.
        weights: hash the weight files, too. A hash is remembered until the file changes.
        fetch: download the weights that a package refers to, for its use.

    Raises:
        ShortVError: the disk is full. A failed check is not raised.
    """
    looks = Comparison(package, folder, base, look_up, weights, fetch)
    steps: dict[str, Callable[[], str]] = {
        "recipe": looks.recipe,
        "files": looks.files,
        "hashes": looks.hashes,
        "base": looks.base,
        "remote code": looks.remote_code,
        "made again": looks.made_again,
        "figures": looks.figures,
        "weights": looks.weights,
        "card": looks.card,
    }
    checks: list[Check] = []
    for name, look in steps.items():
        try:
            checks.append(Check(name, True, look()))
        except NotMade as reason:
            checks.append(Check(name, None, str(reason)))
        except ShortVError as error:
            # The private copy has the names of the package.
            checks.append(Check(name, False, str(error).replace(f"{folder}{os.sep}", "")))
            break
    return Inspection(looks.package, looks.found, tuple(checks), looks.weights_folder, looks.seen)


def require_intact(package: Package, failure: str, *, weights: bool = True, fetch: bool = False) -> None:
    """Refuses a package whose files are not those that its recipe makes.

    Args:
        package: to inspect.
        failure: what the error says of it, such as ``"is not a complete package"``.
        weights: hash the weight files, too.
        fetch: if the package refers to the weights of its base, download and compare them.

    Raises:
        ShortVError: a file is missing, foreign or changed; or the weights cannot be had.
    """
    with scratch_folder("shortv-inspect") as temporary:
        inspection = inspect_package(
            package, temporary / "package", look_up=fetch and _refers(package), weights=weights, fetch=fetch
        )
    missing = [check for check in inspection.checks if fetch and check.name == "weights" and check.passed is None]
    for check in (*filter(None, [inspection.failed]), *missing):
        raise ShortVError(f"{package.name} {failure}: {check.name}: {check.detail}")


def _refers(package: Package) -> bool:
    try:
        return package.recipe.weights == "reference"
    except ShortVError:  # the inspection says what is wrong
        return False

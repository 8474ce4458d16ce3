"""A package's files as they are published: each is read once, compared with the recipe, and sent as it was read."""

from __future__ import annotations

import hashlib

from ..errors import ShortVError
from ..files import read_regular
from ..hub import LocalFile
from ..packaging import Package, carried_files, expected_files
from ..records import CARD_NAME, FIGURE_NAME, Recipe
from .card import card_to_publish, check_card
from .repository import Repository

_WEIGHTS = ".safetensors"  # not held in memory, but hashed while they are sent
_LARGEST = 64 << 20  # bytes; other files are far smaller


def read_content(package: Package, repository: Repository) -> dict[str, LocalFile]:
    """The files to publish, by name.

    Raises:
        ShortVError: a file is not the recipe's, is no regular file or lies outside the package; or a card was edited,
            here or on the Hub.
    """
    content, carried, hashes = {}, carried_files(package.recipe), _recorded(package.recipe)
    for name in sorted(expected_files(package.recipe) - {CARD_NAME}):
        path = package.folder / name
        if name.endswith(_WEIGHTS):
            content[name] = LocalFile(path, carried[name]["size"], carried[name]["sha256"])
            continue
        content[name] = _in_memory(read_regular(path, folder=package.folder, most=_LARGEST))
        if hashes.get(name, content[name].sha256) != content[name].sha256:
            raise ShortVError(f"{name} is damaged: its sha256 is not the recipe's; package the base again.")
    content[CARD_NAME] = _in_memory(card_to_publish(package, repository))
    if not content[CARD_NAME].is_at(repository.files.get(CARD_NAME)):
        check_card(repository)
    return content


def _in_memory(data: bytes) -> LocalFile:
    return LocalFile(data, len(data), hashlib.sha256(data).hexdigest())


def _recorded(recipe: Recipe) -> dict[str, str]:
    """The hashes that a recipe records, by name."""
    carried = {name: entry["sha256"] for name, entry in carried_files(recipe).items()}
    figure = {FIGURE_NAME: recipe.figure} if recipe.figure else {}
    return {**carried, **recipe.code, **recipe.measured, **figure}

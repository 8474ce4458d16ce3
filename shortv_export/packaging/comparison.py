"""The comparisons of a package with what its recipe and its base make (see `inspection`)."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from ..base import FAMILIES, BaseModel, check_code, fetch_weights, resolve_pinned
from ..errors import ShortVError, UnavailableError
from ..files import file_identity, file_sha256, open_regular, read_json, read_regular
from ..hub import LocalFile, hub_error
from ..records import CARD_NAME, CONFIG_NAME, FOREIGN_FILES, RECIPE_NAME, BaseRecord, Recipe, library_versions
from .card import template_sha256
from .card_metadata import inherited_metadata, plain_line, recorded_metadata
from .contents import HANDLER_NAME, carried_files, code_sha256, expected_files, frozen_problem
from .derived import derive_fields
from .evaluation_files import check_evaluation
from .package import Package
from .rendering import DRAWN_WITH, MOST_BYTES, check_same_recipe, its_release, remake
from .seal import is_pinned, named_in, unpin_card

_WEIGHTS = ".safetensors"


class NotMade(Exception):
    """A comparison that could not be made; the message says why."""


class Comparison:
    """The comparisons of one package, in the order of its methods.

    Each returns what it found. It raises a ShortVError that says what is wrong, or `NotMade`.

    Attributes:
        package: in the private folder.
        found: its base, once it was found.
        weights_folder: where the weights are, once they are known to be here.
        seen: the weight files, with what the file system said of them before they were hashed.
    """

    def __init__(
        self, package: Package, folder: Path, base: BaseModel | None, look_up: bool, weights: bool, fetch: bool
    ) -> None:
        self.original = package.folder
        self.package = replace(package, folder=folder)
        self.given = base
        self.look_up = look_up
        self.hash_weights = weights
        self.fetch = fetch
        self.found: BaseModel | None = None
        self.seen: dict[Path, tuple[int, ...]] = {}
        self.weights_folder: Path | None = None
        self.drawn_here = True
        self.made: dict[str, bytes] = {}
        folder.mkdir(parents=True)

    def recipe(self) -> str:
        self._copy(RECIPE_NAME)
        return look_at_recipe(self.package.recipe)

    def files(self) -> str:
        recipe = self.package.recipe
        expected, found = expected_files(recipe), self.package.files - FOREIGN_FILES
        if missing := sorted(expected - found):
            raise ShortVError(f"missing from the package: {', '.join(missing)}.")
        if extra := sorted(found - expected):
            raise ShortVError(f"not of the package: {', '.join(extra)}.")
        for name in sorted(expected - {RECIPE_NAME}):
            if name.endswith(_WEIGHTS):
                with open_regular(self.original / name, folder=self.original) as file:
                    size, wanted = os.fstat(file.fileno()).st_size, recipe.base.files[name]["size"]
                if size != wanted:
                    raise ShortVError(f"{name} has {size} bytes, not the base's {wanted}.")
                (self.package.folder / name).symlink_to(os.path.realpath(self.original / name))
            else:
                self._copy(name)
        return f"{len(expected)} files"

    def hashes(self) -> str:
        recipe = self.package.recipe
        for name, entry in self._small().items():
            if len(content := self._content(name)) != entry["size"]:
                raise ShortVError(f"{name} has {len(content)} bytes, not the base's {entry['size']}.")
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ShortVError(f"{name} differs from the base's file: its sha256 is not the recipe's.")
        for name, sha256 in recipe.measured.items():
            if hashlib.sha256(self._content(name)).hexdigest() != sha256:
                raise ShortVError(f"{name} was changed after the package was evaluated.")
        return f"{len(self._small())} small files of the base, as the recipe says"

    def base(self) -> str:
        recorded = self.package.recipe.base
        base = self.given
        if base is None:
            if not self.look_up:
                raise NotMade("not looked up")
            if not (recorded.repo_id and recorded.revision):
                raise NotMade("the base was a folder; name it with `base` to compare with it")
            try:
                base = resolve_pinned(recorded.repo_id, recorded.revision, weights=False)
            except UnavailableError as error:
                raise NotMade(f"not compared with the base: {str(error).rstrip('.')}") from None
        check_same_base(base, recorded, weights=False)
        self.found = base
        pinned = (base.repo_id, base.revision) == (recorded.repo_id, recorded.revision)
        if pinned or self.given is None or not recorded.repo_id:  # a repository may have been renamed
            _check_left_out(base, recorded)
            return f"{len(self._small())} small files, those of {_place(base)}"
        raise NotMade(f"the files are those of {_place(base)}; whether it is {recorded.repo_id} was not looked up")

    def remote_code(self) -> str:
        recipe = self.package.recipe
        ours = code_sha256(self.package.family, handler=HANDLER_NAME in recipe.code)
        for name, sha256 in ours.items():
            found = hashlib.sha256(self._content(name)).hexdigest()
            if found != recipe.code[name]:
                raise ShortVError(f"{name} was changed after the package was made.")
            if found != sha256:
                raise ShortVError(f"{name} is not this release's; package the base again to update it.")
        return f"{len(ours)} files, identical to this release's"

    def made_again(self) -> str:
        if self.found is None:
            self._check_code()
        self._make()
        other_classes = self.found is not None and self._check_classes(self.found)
        names = [name for name in self.made if name != CARD_NAME and not name.endswith(".png")]
        self._compare(names)
        if other_classes:
            raise NotMade(f"the package names other classes than {other_classes}")
        return f"{len(names)} files, as this release makes them of the recipe and the base"

    def figures(self) -> str:
        names = [name for name in self.made if name.endswith(".png")]
        self._compare(names)
        if not self.drawn_here:
            versions = self.package.recipe.versions
            drawn = ", ".join(f"{name} {plain_line(versions.get(name))}" for name in DRAWN_WITH)
            raise NotMade(f"drawn with other libraries than are installed here; to compare them, install {drawn}")
        return f"{len(names)} figures, as they are drawn here"

    def card(self) -> str:
        pinned = is_pinned(self._text())
        if not pinned:  # it came by a pull request
            self.made[CARD_NAME] = unpin_card(self.made[CARD_NAME].decode(), self.package.tag).encode()
        self._compare([CARD_NAME])
        return f"for {self._named()}{'' if pinned else ', without a tag: push the package again to pin it'}"

    def weights(self) -> str:
        recipe = self.package.recipe
        names = [name for name in recipe.base.files if name.endswith(_WEIGHTS)]
        if recipe.weights == "copy":
            self.weights_folder = self.package.folder
        elif self.found is None:
            raise NotMade("the base's weights are not here")
        elif self.fetch:
            self._fetch(self.found)
        if self.weights_folder is not None:
            self._hash(self.weights_folder, names)
        place = "the recipe" if self.found is None else self._compare_weights(self.found, names)
        if not self.hash_weights:
            raise NotMade("not read")
        return f"{len(names)} files, those of {place}"

    def _fetch(self, base: BaseModel) -> None:
        try:
            fetch_weights(base)
        except UnavailableError as error:
            raise NotMade(str(error).rstrip(".")) from None
        self.weights_folder = base.path

    def _hash(self, folder: Path, names: list[str]) -> None:
        """Compares weight files with the recipe."""
        for name in names:
            path = Path(os.path.realpath(folder / name))
            self.seen[path] = file_identity(path)
            wanted = self.package.recipe.base.files[name]["sha256"]
            if self.hash_weights and file_sha256(path, remembered=True) != wanted:
                raise ShortVError(f"{name} differs from the base's file: its sha256 is not the recipe's.")

    def _compare_weights(self, base: BaseModel, names: list[str]) -> str:
        """Compares the recipe's hashes of weights with the base itself; returns where they were found."""
        recorded = self.package.recipe.base.files
        reason = ""
        if base.repo_id and base.revision:
            try:
                return self._compare_with_hub(base, names)
            except UnavailableError as error:
                reason = f": {str(error).rstrip('.')}"
        if not all((base.path / name).exists() for name in names):
            raise NotMade(f"not compared with the base{reason}")
        for name in names:
            if file_sha256(base.path / name, remembered=True) != recorded[name]["sha256"]:
                raise ShortVError(f"{name} differs from {_place(base)}.")
        return f"the Hub's cache of {_place(base)}" if base.repo_id else _place(base)

    def _compare_with_hub(self, base: BaseModel, names: list[str]) -> str:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, HTTPError
        from huggingface_hub.hf_api import RepoFile

        try:
            infos = HfApi().get_paths_info(str(base.repo_id), names, revision=base.revision)
        except (HTTPError, HFValidationError, OSError) as error:
            raise hub_error(error, f"model {base.repo_id}") from error
        remote = {info.path: info for info in infos if isinstance(info, RepoFile)}
        for name in names:
            entry = self.package.recipe.base.files[name]
            if not LocalFile(self.package.folder / name, entry["size"], entry["sha256"]).is_at(remote.get(name)):
                state = "differs from" if name in remote else "is not in"
                raise ShortVError(f"{name} {state} {_place(base)}.")
        return _place(base)

    def _check_code(self) -> None:
        """Refuses files that ask for code from elsewhere; those of a base that was found have been checked."""
        folder = self.package.folder
        config = read_json(folder / CONFIG_NAME)
        if not isinstance(config, dict):
            raise ShortVError(f"{CONFIG_NAME} is not a JSON object.")
        check_code(self.package.name, config)
        for name in sorted(self.package.recipe.base.files):
            if name.endswith("config.json") and '"auto_map":' in json.dumps(read_json(folder / name)):
                raise ShortVError(f"{name} names remote code of its own (auto_map), which a package does not carry.")

    def _make(self) -> None:
        """Makes the package's files again."""
        package, recipe = self.package, self.package.recipe
        base = self.found or package.base  # as far as the package's own files describe it
        inherited = recorded_metadata(recipe.card)
        if self.found is not None:
            license = inherited.license if inherited.license_given else None
            origin = None if recipe.base.repo_id else inherited.base_model
            if inherited_metadata(base, license, origin) != inherited:
                raise ShortVError(f"the recipe has another licence or other languages than the card of {base.name}.")
        if recipe.card.get("template") != template_sha256():  # its evaluation may be unreadable, too
            raise ShortVError(f"the recipe's card would be different with this release; {its_release(recipe)}.")
        if package.evaluation is not None:
            check_evaluation(package.evaluation, recipe)
        figures = {}
        installed = library_versions(*DRAWN_WITH)
        if any(recipe.versions.get(name, installed[name]) != installed[name] for name in DRAWN_WITH):
            self.drawn_here = False
            figures = {name: self._content(name) for name in expected_files(recipe) if name.endswith(".png")}
        made, self.made = remake(
            base,
            recipe,
            package.evaluation,
            inherited,
            figures=figures,
            originals=None if self.found else package.restored_files,
            repo_id=self._named(),
        )
        check_same_recipe(made, recipe)

    def _check_classes(self, base: BaseModel) -> str | None:
        """Compares the classes that the package names. They depend on transformers: returns what differs from its."""
        recipe = self.package.recipe
        if derive_fields(base) == recipe.derived:
            return None
        here, there = library_versions()["transformers"], plain_line(recipe.versions["transformers"])
        if here == there:
            raise ShortVError("the recipe names other classes than transformers gives the base.")
        return f"transformers {here} would; it was made with {there}"

    def _compare(self, names: list[str]) -> None:
        for name in names:
            if self._content(name) != self.made[name]:
                raise ShortVError(f"{name} was changed: it is not what this release makes of the recipe and the base.")

    def _named(self) -> str:
        return named_in(self._text())

    def _text(self) -> str:
        return self._content(CARD_NAME).decode("utf-8", "replace")

    def _small(self) -> dict[str, dict[str, int | str]]:
        """The files of the base that the package holds unchanged, without weights."""
        carried = carried_files(self.package.recipe)
        return {name: entry for name, entry in carried.items() if not name.endswith(_WEIGHTS)}

    def _copy(self, name: str) -> None:
        target = self.package.folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(read_regular(self.original / name, folder=self.original, most=MOST_BYTES))

    def _content(self, name: str) -> bytes:
        return (self.package.folder / name).read_bytes()


def _place(base: BaseModel) -> str:
    return f"{base.repo_id} at {base.revision[:12]}" if base.repo_id and base.revision else base.name


def _check_left_out(base: BaseModel, recorded: BaseRecord) -> None:
    found = base.record(weights=False).left_out
    if found is not None and recorded.left_out not in (None, found):
        raise ShortVError(f"the recipe says otherwise what of {base.name} was left out.")


def check_same_base(base: BaseModel, recorded: BaseRecord, *, weights: bool = True) -> None:
    """Compares a base's files with those that a recipe records.

    Raises:
        ShortVError: a file is missing or differs.
    """
    if missing := sorted(recorded.files.keys() - set(base.files)):
        raise ShortVError(f"{base.name} is not the recipe's base: it has no {missing[0]}.")
    found = base.record(weights=weights)
    for name, entry in found.files.items():
        if name not in recorded.files:
            raise ShortVError(f"{base.name} is not the recipe's base: it has {name}, too.")
        if recorded.files[name] != entry:
            raise ShortVError(f"{base.name} is not the recipe's base: its {name} differs.")
    if found.config_sha256 != recorded.config_sha256:
        raise ShortVError(f"{base.name} is not the recipe's base: its {CONFIG_NAME} differs.")


def look_at_recipe(recipe: Recipe) -> str:
    """Checks that a recipe is consistent, and that it names nothing but what a package may hold.

    Raises:
        ShortVError: it is not.
    """
    if recipe.family not in FAMILIES:
        raise ShortVError(f"{RECIPE_NAME} names the family {recipe.family!r:.40}, which this release does not know.")
    if reason := frozen_problem(recipe.frozen, recipe.num_layers):
        raise ShortVError(f"{RECIPE_NAME}: {reason}.")
    if recipe.weights == "reference" and not (recipe.base.repo_id and recipe.base.revision):
        raise ShortVError(f"{RECIPE_NAME} refers to the weights of a base without saying where they are.")
    ours = code_sha256(FAMILIES[recipe.family], handler=HANDLER_NAME in recipe.code)
    if recipe.code.keys() != ours.keys():
        theirs = ", ".join(sorted(recipe.code.keys() ^ ours.keys()))
        raise ShortVError(
            f"{RECIPE_NAME} lists other remote code than this release's ({theirs}); {its_release(recipe)}."
        )
    return recipe.frozen.describe(recipe.num_layers)

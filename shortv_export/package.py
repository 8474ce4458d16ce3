"""A base model and a selection become a package: the finished folder, ready to publish.

Weights are never re-serialised: each file of the base is carried bit for bit, weights as hard links where the
file system allows it. What the package adds is the remote code, a `config.json` that names it, the recipe and
the card.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import card
from .base_model import BaseModel, check_code, resolve_base
from .disk import check_space, same_device
from .errors import ShortVError
from .eval_results import EVALUATION_NAME, RESULTS_FOLDER, check_evaluation, evaluation_files
from .families import FAMILIES, Family
from .figures import draw_scores
from .flops import flops_ratio
from .hashing import file_sha256
from .recipe import (
    RECIPE_NAME,
    TOKENIZER_CONFIG_NAME,
    WEIGHTS,
    BaseRecord,
    Recipe,
    Scores,
    Selection,
    json_text,
    library_versions,
    read_json,
    write_text,
)
from .results import Evaluation
from .tokenizer import tokenizer_classes, with_class

CONFIG_NAME = "config.json"

_TEXT_TOKENS = 64  # what the paper counts with
WEIGHT_FILES = (".safetensors", ".safetensors.index.json")

# What git, the Hub and `hf download --local-dir` put beside a package's files.
NOT_OURS = {".gitattributes", ".cache", ".git"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it is right (None: that cannot be known), and what was seen."""

    name: str
    passed: bool | None
    detail: str


def build_package(
    base: BaseModel,
    out: Path,
    selection: Selection,
    *,
    scores: Scores | None = None,
    license: str | None = None,
    weights: str = "copy",
) -> Path:
    """Writes the package: whole or not at all.

    The same arguments give the same bytes. The folder is made beside `out`, hidden, and renamed when complete.

    Args:
        base: the base model.
        out: the folder to make; it may exist if it is empty.
        selection: which layers to freeze.
        scores: the Layer Contributions behind the selection; the recipe and the card's figure show them.
        license: the card's licence, for a base whose own card names none.
        weights: ``"copy"``, or ``"reference"`` for a package without weights, whose code takes them from the base's
            repository at its commit.

    Returns:
        The absolute path of `out`.

    Raises:
        ShortVError: `out` is a file or not empty, or cannot be written; the selection or the scores are for
            another model; the licence is unknown; a base that is not on the Hub cannot be referenced.
    """
    out = Path(os.path.abspath(out))
    check_target(out)
    _check_fit(base, selection, scores)
    if weights not in WEIGHTS:
        raise ShortVError(f"weights are {weights!r}; choose one of: {', '.join(WEIGHTS)}.")
    if weights == "reference" and not (base.repo_id and base.revision):
        raise ShortVError(f"{base.name} is a folder, which nobody else can load weights from; leave out --weights.")
    inherited = card.inherited_metadata(base, license)
    check_room(base, out, weights)
    classes = tokenizer_classes(base)
    versions = library_versions(*(("matplotlib", "pillow") if scores else ()))
    with _becoming(out) as folder:
        _fill(folder, base, base.record(), selection, scores, inherited, weights, versions, classes)
    return out


def rebuild_package(base: BaseModel, out: Path, recipe: Recipe, evaluation: Evaluation | None = None) -> Path:
    """Writes the package that a recipe describes, byte for byte; or nothing.

    Args:
        base: the recipe's base, from the Hub or as a folder with the same files.
        out: as in `build_package`.
        recipe: read from a package's ``shortv.json``.
        evaluation: of the package, if the recipe has one.

    Returns:
        The absolute path of `out`.

    Raises:
        ShortVError: as in `build_package`; the base's files are not the recipe's; this release or its libraries make
            something else of the recipe.
    """
    out = Path(os.path.abspath(out))
    check_target(out)
    _look_at_recipe(recipe)
    inherited = card.recorded_metadata(recipe.card)
    selection = Selection(**{**recipe.selection, "frozen_layers": tuple(recipe.selection["frozen_layers"])})
    scores = Scores.from_dict(recipe.scores, RECIPE_NAME) if recipe.scores else None
    _check_same_base(base, recipe.base)
    base = replace(
        base, repo_id=recipe.base.repo_id, revision=recipe.base.revision, files=tuple(sorted(recipe.base.files))
    )
    _check_fit(base, selection, scores)
    check_room(base, out, recipe.weights)
    with _becoming(out) as folder:
        made = _fill(
            folder,
            base,
            recipe.base,
            selection,
            scores,
            inherited,
            recipe.weights,
            recipe.versions,
            recipe.tokenizer_class,
            evaluation,
        )
        _check_same_recipe(made, recipe)
    return out


def expected_files(recipe: Recipe) -> set[str]:
    """The names of all files of a package, no more and no less."""
    names = {*carried_files(recipe), *recipe.code, *recipe.measured, CONFIG_NAME, RECIPE_NAME, card.CARD_NAME}
    if recipe.tokenizer_class:
        names.add(TOKENIZER_CONFIG_NAME)
    return names | {card.FIGURE_NAME} if recipe.figure else names


def carried_files(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Those of the base's files that are in the package, unchanged: name to sha256 and size."""
    carried = dict(recipe.base.files)
    if recipe.tokenizer_class:
        del carried[TOKENIZER_CONFIG_NAME]
    if recipe.weights != "copy":
        carried = {name: entry for name, entry in carried.items() if not name.endswith(WEIGHT_FILES)}
    return carried


def base_tokenizer_config(package: Path, recipe: Recipe) -> str:
    """The ``tokenizer_config.json`` of the base of a package that names another class.

    Raises:
        ShortVError: that cannot be told from the package's, or it is not the one that the recipe names.
    """
    assert recipe.tokenizer_class
    text = (package / TOKENIZER_CONFIG_NAME).read_bytes().decode("utf-8", "replace")
    text = with_class(text, recipe.tokenizer_class["package"], recipe.tokenizer_class["base"])
    if hashlib.sha256(text.encode()).hexdigest() != recipe.base.files[TOKENIZER_CONFIG_NAME]["sha256"]:
        raise ShortVError(f"{TOKENIZER_CONFIG_NAME} differs from the base's in more than its class.")
    return text


def recipe_tag(package: Path) -> str:
    """A package's tag on the Hub, named after its recipe's hash: a card cannot name its own commit."""
    return f"shortv-{file_sha256(package / RECIPE_NAME)[:12]}"


def inspect_package(package: Path, *, names: set[str] | None = None, weights: bool = True) -> list[Check]:
    """Looks at a package's files without running anything of it.

    Args:
        package: the folder.
        names: what it holds; the folder's own listing if not given. A repository's is longer than its
        download. weights: hash the weight files too, which reads all of them.

    Returns:
        The checks in order, up to and including the first that failed: later ones need earlier ones.
    """
    found = (_listing(package) if names is None else names) - NOT_OURS
    try:
        recipe = Recipe.load(package / RECIPE_NAME)
    except ShortVError as error:
        return [Check("recipe", False, str(error))]
    looks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("recipe", lambda: _look_at_recipe(recipe)),
        ("files", lambda: _look_at_files(recipe, found)),
        ("hashes", lambda: _look_at_hashes(package, recipe, weights)),
        ("remote code", lambda: _look_at_code(package, recipe)),
        ("config", lambda: _look_at_config(package, recipe)),
    )
    checks: list[Check] = []
    for name, look in looks:
        try:
            checks.append(Check(name, True, look()))
        except ShortVError as error:
            return [*checks, Check(name, False, str(error))]
    return checks


def _listing(package: Path) -> set[str]:
    """The names of what a folder holds, and of what its folder of results holds."""
    names = {entry.name for entry in package.iterdir()}
    if RESULTS_FOLDER in names and (package / RESULTS_FOLDER).is_dir():
        inside = {f"{RESULTS_FOLDER}/{entry.name}" for entry in (package / RESULTS_FOLDER).iterdir()}
        names = (names - {RESULTS_FOLDER}) | inside
    return names


def referenced_weights(recipe: Recipe, token: str | None = None) -> tuple[Path, Check]:
    """Finds the weights that a package without any refers to, and compares them with its recipe.

    Returns:
        The snapshot in the Hub's cache, and the check; if that failed, the path means nothing.
    """
    try:
        base = resolve_base(str(recipe.base.repo_id), revision=recipe.base.revision, token=token)
        _check_same_base(base, recipe.base)
    except ShortVError as error:
        return Path(), Check("base", False, str(error))
    weights = [name for name in recipe.base.files if name.endswith(WEIGHT_FILES)]
    return base.path, Check("base", True, f"{base.name} has the recipe's {len(weights)} weight files")


# Building


def _fill(
    folder: Path,
    base: BaseModel,
    record: BaseRecord,
    selection: Selection,
    scores: Scores | None,
    inherited: card.Inherited,
    weights: str,
    versions: dict[str, str],
    classes: dict[str, str | None] | None,
    evaluation: Evaluation | None = None,
) -> Recipe:
    """Writes every file of a package; returns the recipe, which everything else follows from."""
    figure = draw_scores(scores, selection.frozen_layers) if scores else None
    recipe = Recipe(
        base=record,
        family=base.family.model_type,
        num_layers=base.num_layers,
        frozen_layers=selection.frozen_layers,
        weights=weights,
        selection=asdict(selection),
        scores=asdict(scores) if scores else None,
        cost=_cost(base, selection),
        card={**asdict(inherited), "template": card.template_sha256()},
        figure=hashlib.sha256(figure).hexdigest() if figure else None,
        code={name: _source_sha256(base.family, name) for name in base.family.code},
        versions=versions,
        tokenizer_class=classes,
    )
    if evaluation is not None:
        recipe = add_measured(folder, recipe, evaluation)
    for name, entry in carried_files(recipe).items():
        _carry(base.path / name, folder / name, entry["sha256"])
    if classes:
        text = (base.path / TOKENIZER_CONFIG_NAME).read_bytes().decode("utf-8")
        write_text(folder / TOKENIZER_CONFIG_NAME, with_class(text, classes["base"], classes["package"]))
    for name in recipe.code:
        write_text(folder / name, base.family.source(name))
    write_text(folder / CONFIG_NAME, _config(base, recipe))
    write_text(folder / RECIPE_NAME, json_text(recipe.to_dict()))
    if figure:
        (folder / card.FIGURE_NAME).write_bytes(figure)
    text = card.render_card(base, recipe, inherited, tag=recipe_tag(folder), evaluation=evaluation)
    write_text(folder / card.CARD_NAME, text)
    return recipe


def add_measured(folder: Path, recipe: Recipe, evaluation: Evaluation) -> Recipe:
    """Writes the files that an evaluation adds to a package; returns the recipe that names them.

    Raises:
        ShortVError: the evaluation is of another package.
    """
    check_evaluation(evaluation, recipe)
    files = evaluation_files(evaluation)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return replace(recipe, measured={name: hashlib.sha256(files[name]).hexdigest() for name in files})


def _source_sha256(family: Family, name: str) -> str:
    return hashlib.sha256(family.source(name).encode()).hexdigest()


def _check_same_base(base: BaseModel, recorded: BaseRecord) -> None:
    """Compares a base's files with a recipe's, before any of them is carried."""
    if missing := sorted(recorded.files.keys() - set(base.files)):
        raise ShortVError(f"{base.name} is not the recipe's base: it has no {missing[0]}.")
    found = base.record()
    for name, entry in recorded.files.items():
        if found.files[name] != entry:
            raise ShortVError(f"{base.name} is not the recipe's base: its {name} differs.")
    if found.config_sha256 != recorded.config_sha256:
        raise ShortVError(f"{base.name} is not the recipe's base: its {CONFIG_NAME} differs.")


def _check_same_recipe(made: Recipe, recipe: Recipe) -> None:
    """Refuses a recipe that this release would not write for the same package."""
    before, after = (json.loads(json_text(each.to_dict())) for each in (recipe, made))
    figures = [{**each["measured"], card.FIGURE_NAME: each["figure"]} for each in (before, after)]
    if any(figures[0][name] != figures[1].get(name) for name in figures[0] if name.endswith(".png")):
        drawn = ", ".join(f"{name} {recipe.versions.get(name)}" for name in ("matplotlib", "pillow"))
        raise ShortVError(f"the figure comes out different here; install what drew it: {drawn}.")
    if changed := [name for name in before if before[name] != after[name]]:
        version = recipe.versions["shortv-export"]
        raise ShortVError(
            f"this release makes something else of the recipe's {changed[0]}; install the one that wrote it: "
            f"pip install shortv-export=={card.plain_line(version)}."
        )


def check_target(out: Path) -> None:
    """Refuses a folder that a package cannot be made in.

    Raises:
        ShortVError: it is not empty, or no folder.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise ShortVError(f"{out} exists and is not empty; name another output folder.")
    elif out.exists() or out.is_symlink():
        raise ShortVError(f"{out} exists and is not a folder; name another output folder.")


def check_room(base: BaseModel, out: Path, weights: str) -> None:
    """Refuses a disk that is too full for the weights, where they have to be copied: hard links stay on one disk.

    Raises:
        ShortVError: there is less room than `weights` (as in `build_package`) need.
    """
    if weights == "copy" and not same_device(base.path, out):
        check_space(
            out,
            base.weight_bytes,
            f"copying the weights of {base.name}, which are on another disk,",
            "name a folder with more room or on the disk of the weights, or package with --weights reference",
        )


def _check_fit(base: BaseModel, selection: Selection, scores: Scores | None) -> None:
    """Refuses a selection or scores that were made for another model."""
    layers = base.num_layers
    if selection.num_layers != layers:
        raise ShortVError(f"the selection is for {selection.num_layers} layers, but {base.name} has {layers}.")
    if reason := _layers_problem(selection.frozen_layers, layers):
        raise ShortVError(f"the selection's frozen layers {reason}.")
    if scores is None:
        return
    if len(scores.visual) != layers:
        raise ShortVError(f"the scores are for {len(scores.visual)} layers, but {base.name} has {layers}.")
    for key, ours in (("repo_id", base.repo_id), ("revision", base.revision)):
        theirs = scores.base.get(key)
        if ours and theirs and ours != theirs:
            raise ShortVError(f"the scores were measured on {theirs}, not on {ours}; measure them on {base.name}.")


def _layers_problem(frozen_layers: Any, num_layers: int) -> str | None:
    if not all(type(layer) is int for layer in frozen_layers):
        return "must be integers"
    if list(frozen_layers) != sorted(set(frozen_layers)):
        return "must be sorted, each once"
    if any(not 0 <= layer < num_layers for layer in frozen_layers):
        return f"must lie between 0 and {num_layers - 1}"
    return None


@contextmanager
def _becoming(out: Path) -> Iterator[Path]:
    """A hidden sibling of `out` to write into: it becomes `out` at the end, or vanishes if anything fails."""
    new_parents = [parent for parent in out.parents if not parent.exists()]
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield folder
        folder.chmod(0o755)  # mkdtemp makes private folders
        os.replace(folder, out)
    except OSError as error:
        raise ShortVError(f"cannot write {out}: {error.strerror or error}.") from None
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # not empty: it holds the package
                parent.rmdir()


def _carry(source: Path, target: Path, sha256: str) -> None:
    """Puts a file of the base into the package: weights as a hard link if possible, the rest as a copy."""
    # In a Hub cache the files are links to blobs: link the blob, not the link.
    source = Path(os.path.realpath(source))
    if target.suffix == ".safetensors":
        with suppress(OSError):  # another device, or a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    if file_sha256(target) != sha256:
        raise ShortVError(f"the copy of {target.name} differs from the base's file; run the command again.")


def _config(base: BaseModel, recipe: Recipe) -> str:
    """The base's `config.json`, field by field, under the package's own model type and code."""
    fields = {name: value for name, value in base.config.items() if name not in ("auto_map", "shortv_base")}
    try:
        return json_text({**fields, **_own_fields(base.family, recipe)})
    except ValueError:
        raise ShortVError(f"the {CONFIG_NAME} of {base.name} holds NaN or Infinity; write a number.") from None


def _own_fields(family: Family, recipe: Recipe) -> dict[str, Any]:
    fields = {
        "model_type": family.shortv_model_type,
        "architectures": [family.model_class],
        "auto_map": family.auto_map,
        "frozen_layers": list(recipe.frozen_layers),
    }
    if recipe.weights == "reference":
        fields["shortv_base"] = {"repo_id": recipe.base.repo_id, "revision": recipe.base.revision}
    return fields


def _cost(base: BaseModel, selection: Selection) -> dict[str, Any]:
    """The share of the base's FLOPs (paper, Eq. 5), at the selection's prompt length or the paper's."""
    text = selection.budget.get("text_tokens", _TEXT_TOKENS)
    visual = selection.budget.get("visual_tokens", base.prompt_visual_tokens)
    ratio = flops_ratio(base.layer_shapes, selection.frozen_layers, text, visual)
    return {"text_tokens": text, "visual_tokens": visual, "flops_ratio": ratio}


# Inspecting: each look returns what it saw, or raises a ShortVError that says what is wrong


def _look_at_recipe(recipe: Recipe) -> str:
    if recipe.family not in FAMILIES:
        raise ShortVError(f"{RECIPE_NAME} names the family {recipe.family!r:.40}, which this release does not know.")
    if reason := _layers_problem(recipe.frozen_layers, recipe.num_layers):
        raise ShortVError(f"{RECIPE_NAME}: frozen_layers {reason}.")
    if recipe.weights == "reference" and not (recipe.base.repo_id and recipe.base.revision):
        raise ShortVError(f"{RECIPE_NAME} refers to the weights of a base without saying where they are.")
    return f"{len(recipe.frozen_layers)} of {recipe.num_layers} layers frozen"


def _look_at_files(recipe: Recipe, found: set[str]) -> str:
    expected = expected_files(recipe)
    if missing := sorted(expected - found):
        raise ShortVError(f"missing from the package: {', '.join(missing)}.")
    if extra := sorted(found - expected):
        raise ShortVError(f"not of the package: {', '.join(extra)}.")
    return f"{len(expected)} files"


def _look_at_hashes(package: Path, recipe: Recipe, weights: bool) -> str:
    carried = carried_files(recipe)
    files = {n: e for n, e in carried.items() if weights or not n.endswith(".safetensors")}
    # Sizes first: a truncated shard is told at once, without reading the ones before it.
    for name, entry in carried.items():
        if (size := (package / name).stat().st_size) != entry["size"]:
            raise ShortVError(f"{name} has {size} bytes, not the base's {entry['size']}.")
    for name, entry in files.items():
        if file_sha256(package / name) != entry["sha256"]:
            raise ShortVError(f"{name} differs from the base's file: its sha256 is not the recipe's.")
    if recipe.tokenizer_class:
        base_tokenizer_config(package, recipe)
    if recipe.figure and file_sha256(package / card.FIGURE_NAME) != recipe.figure:
        raise ShortVError(f"{card.FIGURE_NAME} was changed after the package was made.")
    for name, sha256 in recipe.measured.items():
        if file_sha256(package / name) != sha256:
            raise ShortVError(f"{name} was changed after the package was evaluated.")
    if recipe.measured:
        check_evaluation(Evaluation.load(package / EVALUATION_NAME), recipe)
    return f"{len(files)} files of the base, {sum(entry['size'] for entry in files.values()):,} bytes"


def _look_at_code(package: Path, recipe: Recipe) -> str:
    family = FAMILIES[recipe.family]
    if set(recipe.code) != set(family.code):
        raise ShortVError(f"{RECIPE_NAME} lists other remote code than this release's: {', '.join(recipe.code)}.")
    for name in family.code:
        sha256 = file_sha256(package / name)
        if sha256 != recipe.code[name]:
            raise ShortVError(f"{name} was changed after the package was made.")
        if sha256 != _source_sha256(family, name):
            raise ShortVError(f"{name} is not this release's; package the base again to update it.")
    return f"{len(family.code)} files, identical to this release's"


def _look_at_config(package: Path, recipe: Recipe) -> str:
    config = read_json(package / CONFIG_NAME)
    if not isinstance(config, dict):
        raise ShortVError(f"{CONFIG_NAME} is not a JSON object.")
    expected = {"shortv_base": None, **_own_fields(FAMILIES[recipe.family], recipe)}
    for name, value in expected.items():
        if config.get(name) != value:
            raise ShortVError(f"{CONFIG_NAME}: {name} is not what the recipe says.")
    check_code(str(package), config)
    # A processor's or tokenizer's auto_map would make loaders run code that nobody looked at.
    for name in sorted({*carried_files(recipe), *([TOKENIZER_CONFIG_NAME] if recipe.tokenizer_class else [])}):
        if name.endswith("config.json") and '"auto_map":' in json.dumps(read_json(package / name)):
            raise ShortVError(f"{name} names remote code of its own (auto_map), which a package does not carry.")
    return f"model type {config['model_type']}"

"""Is a package, or a published repository, what its recipe says, and does it compute what its list says?

First its files are looked at, without running any of them; a package whose remote code is not this release's,
byte for byte, goes no further. Then a fresh, isolated process loads it as a stranger would (see
`verify_child`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..base import FAMILIES
from ..errors import ShortVError, one_line
from ..hub import LocalFile, hub_error
from ..measure import available_memory
from ..packaging import Check, base_tokenizer_config, carried_files, find_package, inspect_package, referenced_weights
from ..records import RECIPE_NAME, TOKENIZER_CONFIG_NAME, Recipe
from .isolated import run_child, stock_config

_BYTES = 4  # of a parameter in fp32
# Beside the weights: the libraries, the activations of a prompt with an image, the logits.
_OVERHEAD = 2 << 30


@dataclass(frozen=True)
class Verification:
    """What was checked, in order; nothing after the first failure was run.

    Attributes:
        package: as the user wrote it.
        checks: name, passed and detail of each.
    """

    package: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def summary(self) -> str:
        """How many checks passed, and which could not be made."""
        passed = f"{sum(check.passed is True for check in self.checks)} checks passed"
        skipped = ", ".join(check.name for check in self.checks if check.passed is None)
        return f"{passed}, not made: {skipped}" if skipped else passed

    def raise_if_failed(self) -> None:
        """Raises a ShortVError with the first failure's reason."""
        for check in self.checks:
            if check.passed is False:
                raise ShortVError(f"{self.package} failed verification: {check.name}: {check.detail}")


def verify(
    package: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    timeout: float = 3600,
    report: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Checks a package, or a repository on the Hub, which is downloaded first.

    The comparison with the definition runs on the CPU in fp32, one model after the other: it needs 4 bytes of
    memory per parameter, 28 GB for a 7B model. Where there is less, the decoder layers that do not fit are read from
    disk each time they are needed, so that every layer is compared all the same, only more slowly.

    Args:
        package: a folder, or a repository id.
        revision: of the repository: branch, tag or commit.
        token: for a private repository; the process that runs its code gets none.
        timeout: seconds for that process.
        report: called with a line on the memory that is needed, before the models are loaded.

    Raises:
        ShortVError: there is no such package, or it cannot be downloaded. A failed check is reported, not
        raised.
    """
    name = str(package)
    folder, names = find_package(name, revision, token)
    checks = inspect_package(folder, names=names)
    if checks[-1].passed:
        recipe = Recipe.load(folder / RECIPE_NAME)
        weights = folder
        if recipe.weights == "reference":
            weights, check = referenced_weights(recipe, token)
        else:
            check = _compare_with_base(folder, recipe, token)
        checks.append(check)
        if check.passed is False:
            return Verification(name, tuple(checks))
        memory, resident_layers = _plan_memory(folder, recipe)
        checks.append(memory)
        report(memory.detail)
        if memory.passed:
            checks += run_child(folder, weights, recipe, resident_layers, timeout)
    return Verification(name, tuple(checks))


def _compare_with_base(package: Path, recipe: Recipe, token: str | None) -> Check:
    """Whether the package's files are those that the base's repository holds at its commit, by the Hub's hashes.

    That is not known (`Check.passed` is None) of a base that was a folder, without network, or where the Hub no longer
    shows the commit.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.hf_api import RepoFile

    base = recipe.base
    carried = carried_files(recipe).items()
    files = {name: LocalFile(package / name, entry["size"], entry["sha256"]) for name, entry in carried}
    if recipe.tokenizer_class:
        content = base_tokenizer_config(package, recipe).encode()
        files[TOKENIZER_CONFIG_NAME] = LocalFile(content, len(content), hashlib.sha256(content).hexdigest())
    if not (base.repo_id and base.revision):
        return Check("base", None, "not compared with the Hub: the base was a folder")
    try:
        infos = HfApi(token=token).get_paths_info(base.repo_id, sorted(files), revision=base.revision)
    except (HTTPError, HFValidationError, OSError) as error:
        reason = hub_error(error, f"model {base.repo_id}")
        return Check("base", None, f"not compared with the Hub: {str(reason).rstrip('.')}")
    found = {info.path: info for info in infos if isinstance(info, RepoFile)}
    for name, file in files.items():
        if not file.is_at(found.get(name)):
            state = "differs from" if name in found else "is not in"
            return Check("base", False, f"{name} {state} {base.repo_id} at {base.revision}.")
    return Check("base", True, f"{len(files)} files, identical to {base.repo_id}'s at {base.revision[:12]}")


def _plan_memory(package: Path, recipe: Recipe) -> tuple[Check, int | None]:
    """Whether a model fits in memory, and the number of decoder layers that stay in it; None if all of them do."""
    try:
        layers, rest = _sizes(package, recipe)
    except Exception as error:  # transformers raises many kinds
        return Check("memory", False, f"the config describes no model: {one_line(error)}"), None
    need, available = sum(layers) + rest + _OVERHEAD, available_memory()
    text = f"the comparison needs {need / 1e9:.1f} GB in fp32"
    if available is None:
        return Check("memory", True, text), None
    text += f", {available / 1e9:.1f} GB are free"
    if need <= available:
        return Check("memory", True, text), None
    largest = max(layers)
    # One layer more is in memory while it is computed.
    resident_layers = (available - rest - _OVERHEAD) // largest - 1
    if resident_layers < 0:
        least = rest + largest + _OVERHEAD
        return Check("memory", False, f"{text}; it takes {least / 1e9:.1f} GB at least."), None
    away = len(layers) - resident_layers
    return Check("memory", True, f"{text}: {away} of {len(layers)} layers are read from disk in turn"), resident_layers


def _sizes(package: Path, recipe: Recipe) -> tuple[list[int], int]:
    """Bytes in fp32 of each decoder layer, and of everything else, of the base that the package's config describes."""
    import torch
    import transformers

    from ..base.definition import text_decoder

    family = FAMILIES[recipe.family]
    config = transformers.AutoConfig.for_model(**stock_config(package, recipe))
    with torch.device("meta"):  # shapes alone
        model = getattr(transformers, family.base_class)._from_config(config)
    layers = [_BYTES * sum(map(torch.numel, layer.parameters())) for layer in text_decoder(model).layers]
    return layers, _BYTES * sum(map(torch.numel, model.parameters())) - sum(layers)

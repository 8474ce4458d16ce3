"""Checks that a package is what its recipe says and computes what its list of frozen layers says.

First its files are inspected without running any. A package whose remote code is not this release's, byte for byte,
goes no further. Then a fresh, isolated process loads it as any user would (see `child`).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from ..errors import ShortVError, one_line
from ..hub import LocalFile, hub_error
from ..measure import available_memory
from ..packaging import Check, Package, carried_files, inspect_package, referenced_weights
from .isolated import run_isolated

logger = logging.getLogger(__name__)

_BYTES = 4  # per parameter in fp32
_OVERHEAD = 2 << 30  # bytes for the libraries, the activations of a prompt with an image, and the logits


@dataclass(frozen=True)
class Verification:
    """The checks of a package, in order, up to and including the first that failed.

    Attributes:
        package: its name, as the user wrote it.
        checks: what was checked.
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


def verify_package(package: Package, *, timeout: float = 3600) -> Verification:
    """Checks a package. A failed check is returned, not raised.

    The package and its definition run on the CPU in fp32, one after the other. This takes 4 bytes of memory per
    parameter, 28 GB for a 7B model. With less memory, the decoder layers that do not fit are read from disk each time
    they are needed: every layer is still compared, only more slowly.

    Args:
        package: the package to check.
        timeout: seconds for the isolated process.
    """
    checks = inspect_package(package)
    if checks[-1].passed:
        by_reference = package.recipe.weights == "reference"
        weights, base = referenced_weights(package) if by_reference else (package.folder, _compare_with_base(package))
        checks.append(base)
        if base.passed is not False:
            memory, resident_layers = _plan_memory(package)
            checks.append(memory)
            logger.info(memory.detail)
            if memory.passed:
                checks += run_isolated(package, weights, resident_layers, timeout)
    return Verification(package.name, tuple(checks))


def _compare_with_base(package: Package) -> Check:
    """Compares the files that the package carries with the base's repository at its commit, by the Hub's hashes.

    `Check.passed` is None if they cannot be compared: the base was a folder, there is no network, or the commit is
    gone from the Hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.hf_api import RepoFile

    recipe, base = package.recipe, package.recipe.base
    carried = carried_files(recipe).items()
    files = {name: LocalFile(package.folder / name, entry["size"], entry["sha256"]) for name, entry in carried}
    for name, content in package.restored_files.items():
        files[name] = LocalFile(content, len(content), hashlib.sha256(content).hexdigest())
    if not (base.repo_id and base.revision):
        return Check("base", None, "not compared with the Hub: the base was a folder")
    try:
        infos = HfApi().get_paths_info(base.repo_id, sorted(files), revision=base.revision)
    except (HTTPError, HFValidationError, OSError) as error:
        reason = hub_error(error, f"model {base.repo_id}")
        return Check("base", None, f"not compared with the Hub: {str(reason).rstrip('.')}")
    found = {info.path: info for info in infos if isinstance(info, RepoFile)}
    for name, file in files.items():
        if not file.is_at(found.get(name)):
            state = "differs from" if name in found else "is not in"
            return Check("base", False, f"{name} {state} {base.repo_id} at {base.revision}.")
    return Check("base", True, f"{len(files)} files, identical to {base.repo_id}'s at {base.revision[:12]}")


def _plan_memory(package: Package) -> tuple[Check, int | None]:
    """Whether memory is enough, and how many decoder layers it holds at a time; None for all."""
    try:
        layers, rest = _sizes(package)
    except Exception as error:  # transformers raises many kinds
        return Check("memory", False, f"the config describes no model: {one_line(error)}"), None
    need, available = sum(layers) + rest + _OVERHEAD, available_memory()
    text = f"the comparison needs {need / 1e9:.1f} GB in float32, {available / 1e9:.1f} GB are free"
    if need <= available:
        return Check("memory", True, text), None
    largest = max(layers)
    # A layer from disk is in memory, too, while it is computed.
    resident_layers = (available - rest - _OVERHEAD) // largest - 1
    if resident_layers < 0:
        return Check("memory", False, f"{text}; free at least {(rest + largest + _OVERHEAD) / 1e9:.1f} GB."), None
    away = len(layers) - resident_layers
    return Check("memory", True, f"{text}: {away} of {len(layers)} layers are read from disk in turn"), resident_layers


def _sizes(package: Package) -> tuple[list[int], int]:
    """Bytes in fp32 of each decoder layer of the base, and of everything else, by the package's config."""
    import torch
    import transformers

    from ..base.definition import text_decoder

    config = transformers.AutoConfig.for_model(**package.base_config)
    with torch.device("meta"):  # allocates no memory
        model = getattr(transformers, package.family.base_class)._from_config(config)
    layers = [_BYTES * sum(map(torch.numel, layer.parameters())) for layer in text_decoder(model).layers]
    return layers, _BYTES * sum(map(torch.numel, model.parameters())) - sum(layers)

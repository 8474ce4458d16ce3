"""Verifies that a package is what its recipe and its base make, and that it computes what its list of layers says.

First its files are compared, without running any (see `packaging.inspect_package`). A package whose remote code is not
this release's, byte for byte, goes no further. Then a fresh process loads the copy that was compared, as any user
would (see `child`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..base import BaseModel
from ..errors import ShortVError, one_line
from ..files import scratch_folder
from ..measure import available_memory
from ..packaging import Check, Inspection, Package, inspect_package
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
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.passed is False for check in self.checks)

    @property
    def not_made(self) -> tuple[Check, ...]:
        """The checks that could not be made."""
        return tuple(check for check in self.checks if check.passed is None)

    @property
    def verdict(self) -> str:
        """``"verified"``, ``"verified except"`` (some checks could not be made) or ``"failed"``."""
        return "failed" if self.failed else "verified except" if self.not_made else "verified"

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        if self.failed:
            return next(f"failed: {check.name}: {check.detail}" for check in self.checks if check.passed is False)
        missing = "; ".join(f"{check.name} ({check.detail.rstrip('.')})" for check in self.not_made)
        return f"{self.verdict} {missing}" if missing else f"verified: {len(self.checks)} checks passed"

    def raise_if_failed(self) -> None:
        """Raises a ShortVError with the first failure's reason."""
        for check in self.checks:
            if check.passed is False:
                raise ShortVError(f"{self.package} failed verification: {check.name}: {check.detail}")


def verify_package(package: Package, *, base: BaseModel | None = None, timeout: float = 3600) -> Verification:
    """Checks a package. A failed check is returned, not raised.

    The package and its definition run on the CPU in fp32, one after the other. This takes 4 bytes of memory per
    parameter, 28 GB for a 7B model. With less memory, the decoder layers that do not fit are read from disk each time
    they are needed: every layer is still compared, only more slowly.

    Args:
        package: the package to check.
        base: what it should have been made of; None looks up the recipe's base at its commit.
        timeout: seconds for the fresh process.
    """
    with scratch_folder("shortv-verify") as temporary:
        logger.info("comparing the files of %s with its recipe and its base", package.name)
        inspection = inspect_package(package, temporary / "package", base=base, fetch=True)
        checks = list(inspection.checks)
        if inspection.failed is None:
            checks += _run(inspection, temporary, timeout)
        return Verification(package.name, tuple(checks))


def _run(inspection: Inspection, folder: Path, timeout: float) -> list[Check]:
    """Loads the package and compares what it computes."""
    if inspection.weights_folder is None:
        return [Check("definition", None, "without weights, nothing can be computed")]
    memory, resident_layers = _plan_memory(inspection.package)
    logger.info(memory.detail)
    if not memory.passed:
        return [memory]
    logger.info("loading it in a fresh process, and comparing what it computes with its definition")
    checks = [memory, *run_isolated(inspection, folder, resident_layers, timeout)]
    try:
        inspection.check_unchanged()
    except ShortVError as error:
        checks.append(Check("unchanged", False, str(error)))
    return checks


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
        return Check("memory", None, f"{text}; free at least {(rest + largest + _OVERHEAD) / 1e9:.1f} GB."), None
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

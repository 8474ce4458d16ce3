"""Runs a package in a fresh, isolated process (see `child`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..files import write_json
from ..packaging import Check, Package
from ..records import CONFIG_NAME, WEIGHT_FILES

# The variables of the environment that the child sees: no secrets.
_PASSED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_isolated(package: Package, weights: Path, resident_layers: int | None, timeout: float) -> list[Check]:
    """Runs the checks of `child`, up to and including the first that fails.

    Args:
        package: a package whose files were inspected.
        weights: the folder of its weights: its own, or the base's snapshot if the package refers to that.
        resident_layers: how many decoder layers memory holds at a time; None for all.
        timeout: seconds.
    """
    family = package.family
    with tempfile.TemporaryDirectory(prefix="shortv-verify-") as temporary:
        stock = Path(temporary, "stock")
        stock.mkdir()
        _write_stock(package, weights, stock)
        if weights != package.folder:  # the child's Hub cache holds the base's snapshot and nothing else
            cached = Path(temporary, "hub", weights.parents[1].name)
            cached.parent.mkdir()
            cached.symlink_to(weights.parents[1])
        task = {
            "package": str(package.folder),
            "stock": str(stock),
            "model_class": family.model_class,
            "base_class": family.base_class,
            "prompt": family.prompt,
            "definition": str(Path(__file__).parents[1] / "base" / "definition.py"),
            "frozen_layers": list(package.recipe.frozen_layers),
            "resident_layers": resident_layers,
            "offload_folder": str(Path(temporary, "offload")),
        }
        environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        # No token, no network, and no remote code cached earlier: home and caches are in the temporary folder.
        environment |= {
            "HOME": temporary,
            "HF_HOME": temporary,
            "HF_MODULES_CACHE": str(Path(temporary, "modules")),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        try:
            child = subprocess.run(
                [sys.executable, "-I", "-B", str(Path(__file__).with_name("child.py"))],
                input=json.dumps(task),
                env=environment,
                cwd=temporary,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return [Check("process", False, f"the isolated process took more than {timeout:g} s.")]
    if child.returncode:
        return [Check("process", False, _crash(child.returncode, child.stderr))]
    try:
        return [Check(**check) for check in json.loads(child.stdout.splitlines()[-1])]
    except (IndexError, ValueError, TypeError):
        return [Check("process", False, "the isolated process printed no result.")]


def _write_stock(package: Package, weights: Path, stock: Path) -> None:
    """Puts the base together from the package: its own config and classes, and links to the other files."""
    write_json(stock / CONFIG_NAME, package.base_config)
    for name, content in package.restored_files.items():
        (stock / name).write_bytes(content)
    for name in package.recipe.base.files:
        (stock / name).parent.mkdir(exist_ok=True)
        if name.endswith(WEIGHT_FILES):
            (stock / name).symlink_to(weights / name)
        elif not (stock / name).exists():
            (stock / name).symlink_to(package.folder / name)


def _crash(status: int, stderr: str) -> str:
    """Why the process died, in one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1][:300]}" if lines else ""
    if status == -9:
        return f"the isolated process was killed, as happens when memory runs out; free some, then try again{last}."
    return f"the isolated process ended with status {status}{last}."

"""Runs a package in a fresh process (see `child`)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from ..files import write_json
from ..packaging import Check, Inspection
from ..processes import lifeline, tied
from ..records import CONFIG_NAME, WEIGHT_FILES

# The variables of the environment that the child sees: no secrets.
_PASSED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_isolated(inspection: Inspection, folder: Path, resident_layers: int | None, timeout: float) -> list[Check]:
    """Runs the checks of `child`, up to and including the first that fails.

    The process loads the copy that was compared, with this release's own code. It sees no token, no network settings
    and no cache, but it is no sandbox.

    Args:
        inspection: of the package; nothing failed.
        folder: a private folder to work in.
        resident_layers: how many decoder layers memory holds at a time; None for all.
        timeout: seconds.
    """
    package, family = inspection.package, inspection.package.family
    stock = folder / "stock"
    _write_stock(inspection, stock)
    if inspection.base is not None and package.recipe.weights == "reference":
        # The process's Hub cache holds the base's snapshot and nothing else.
        cache = inspection.base.path.parents[1]
        (folder / "hub").mkdir()
        (folder / "hub" / cache.name).symlink_to(cache)
    task = {
        "package": str(package.folder),
        "stock": str(stock),
        "model_class": family.model_class,
        "base_class": family.base_class,
        "prompt": family.prompt,
        "definition": str(Path(__file__).parents[1] / "base" / "definition.py"),
        "frozen": package.recipe.frozen.lists,
        "resident_layers": resident_layers,
        "offload_folder": str(folder / "offload"),
    }
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    environment |= {
        "HOME": str(folder),
        "HF_HOME": str(folder),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    try:
        with lifeline() as ends:
            child = subprocess.run(
                tied(Path(__file__).with_name("child.py"), ends),
                input=json.dumps(task),
                env=environment,
                cwd=folder,
                pass_fds=ends,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
            )
    except subprocess.TimeoutExpired:
        return [Check("process", None, f"it took more than {timeout:g} s")]
    if child.returncode == -9:
        return [Check("process", None, "it was killed, as happens when memory runs out; free some, then try again")]
    if child.returncode:
        return [Check("process", False, _crash(child.returncode, child.stderr))]
    try:
        return [Check(**check) for check in json.loads(child.stdout.splitlines()[-1])]
    except (IndexError, ValueError, TypeError):
        return [Check("process", False, "the fresh process printed no result.")]


def _write_stock(inspection: Inspection, stock: Path) -> None:
    """Puts the base together: its own config, or else what the package says of it; its weights, and its other files,
    which were found to be those in the package."""
    package, weights = inspection.package, inspection.weights_folder
    assert weights is not None
    stock.mkdir()
    write_json(stock / CONFIG_NAME, inspection.base.config if inspection.base else package.base_config)
    for name, content in package.restored_files.items():
        (stock / name).write_bytes(content)
    for name in package.recipe.base.files:
        (stock / name).parent.mkdir(exist_ok=True)
        if name.endswith(WEIGHT_FILES):
            (stock / name).symlink_to(os.path.realpath(weights / name))
        elif not (stock / name).exists():
            (stock / name).symlink_to(package.folder / name)


def _crash(status: int, stderr: str) -> str:
    """Why the process died, in one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1][:300]}" if lines else ""
    return f"the fresh process ended with status {status}{last}."

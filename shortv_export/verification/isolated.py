"""The package is run in a fresh, isolated process (see `child`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..base import FAMILIES
from ..files import read_json, write_json, write_text
from ..packaging import Check, base_tokenizer_config
from ..records import CONFIG_NAME, TOKENIZER_CONFIG_NAME, WEIGHT_FILES, Recipe

# What the child may know of this process's environment: where programs are, and how many threads to use.
_ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "SYSTEMROOT",
    "TMPDIR",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def run_child(
    package: Path, weights: Path, recipe: Recipe, resident_layers: int | None, timeout: float
) -> list[Check]:
    """The checks of the isolated process; `weights` is the package, or the snapshot that it refers to."""
    family = FAMILIES[recipe.family]
    with tempfile.TemporaryDirectory(prefix="shortv-verify-") as temporary:
        stock = Path(temporary, "stock")
        stock.mkdir()
        _write_stock(package, weights, recipe, stock)
        if weights != package:  # all that the process finds in its Hub cache
            cached = Path(temporary, "hub", weights.parents[1].name)
            cached.parent.mkdir()
            cached.symlink_to(weights.parents[1])
        task = {
            "package": str(package),
            "stock": str(stock),
            "model_class": family.model_class,
            "base_class": family.base_class,
            "prompt": family.prompt,
            "definition": str(Path(__file__).parents[1] / "base" / "definition.py"),
            "frozen_layers": list(recipe.frozen_layers),
            "resident_layers": resident_layers,
            "offload_folder": str(Path(temporary, "offload")),
        }
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # No token, no network, no cache of earlier remote code: all of it lives in the temporary folder.
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


def _write_stock(package: Path, weights: Path, recipe: Recipe, stock: Path) -> None:
    """The base again, of the same files: its own config, its tokenizer's own class, and links."""
    write_json(stock / CONFIG_NAME, stock_config(package, recipe))
    if recipe.tokenizer_class:
        write_text(stock / TOKENIZER_CONFIG_NAME, base_tokenizer_config(package, recipe))
    for name in recipe.base.files:
        if name.endswith(WEIGHT_FILES):
            (stock / name).symlink_to(weights / name)
        elif not (stock / name).exists():
            (stock / name).symlink_to(package / name)


def stock_config(package: Path, recipe: Recipe) -> dict[str, Any]:
    """The base's own config again."""
    family, config = FAMILIES[recipe.family], read_json(package / CONFIG_NAME)
    added = ("auto_map", "frozen_layers", "shortv_base")
    kept = {name: value for name, value in config.items() if name not in added}
    return {**kept, "model_type": family.model_type, "architectures": [family.base_class]}


def _crash(status: int, stderr: str) -> str:
    """One line on why the process died; most often a large model met a small memory."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1][:300]}" if lines else ""
    if status == -9:
        return f"the isolated process was killed, as happens when memory runs out{last}."
    return f"the isolated process ended with status {status}{last}."

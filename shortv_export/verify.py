"""Is a package, or a published repository, what its recipe says, and does it compute what its list says?

First its files are looked at, without running any of them; a package whose remote code is not this release's,
byte for byte, goes no further. Then a fresh, isolated process loads it as a stranger would (see
`verify_child`).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base_model import hub_error
from .disk import bytes_to_download, check_space
from .errors import ShortVError, one_line
from .families import FAMILIES
from .hub import LocalFile
from .memory import available_memory
from .package import (
    CONFIG_NAME,
    WEIGHT_FILES,
    Check,
    base_tokenizer_config,
    carried_files,
    expected_files,
    inspect_package,
    referenced_weights,
)
from .recipe import RECIPE_NAME, TOKENIZER_CONFIG_NAME, Recipe, read_json, write_json, write_text
from .xet import plain_if_xet_fails

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
            checks += _run_child(folder, weights, recipe, resident_layers, timeout)
    return Verification(name, tuple(checks))


def find_package(name: str, revision: str | None, token: str | None) -> tuple[Path, set[str] | None]:
    """A package's folder, of a repository downloaded first; and for a repository the names of all its files.

    Raises:
        ShortVError: there is no such package, or it cannot be downloaded.
    """
    if not Path(name).is_dir():
        return _download(name, revision, token)
    if revision is not None:
        raise ShortVError(f"{name} is a folder, which has no revisions; leave the revision out.")
    return Path(name).absolute(), None


def _download(repo_id: str, revision: str | None, token: str | None) -> tuple[Path, set[str] | None]:
    """The files of a repository that its recipe names, and the names of all its files."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        try:
            info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
        except OfflineModeIsEnabled:
            return Path(snapshot_download(repo_id, revision=revision, local_files_only=True)), None
        commit, names = info.sha, {sibling.rfilename for sibling in info.siblings or ()}
        if RECIPE_NAME not in names:
            raise ShortVError(f"{repo_id} has no {RECIPE_NAME}: it was not published by shortv-export.")
        path = Path(hf_hub_download(repo_id, RECIPE_NAME, revision=commit, token=token))
        recipe = Recipe.load(path)
        wanted = sorted(expected_files(recipe) & names)
        check_space(
            path.parent,
            bytes_to_download(info, path.parent, wanted),
            f"downloading {repo_id}",
            "make room there, or set HF_HOME to a folder on another disk",
        )
        snapshot = plain_if_xet_fails(
            lambda: snapshot_download(repo_id, revision=commit, allow_patterns=wanted, token=token)
        )
        return Path(snapshot), names
    except (HTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise hub_error(error, f"model {repo_id}") from error


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

    from .oracle import text_decoder

    family = FAMILIES[recipe.family]
    config = transformers.AutoConfig.for_model(**_stock_config(package, recipe))
    with torch.device("meta"):  # shapes alone
        model = getattr(transformers, family.base_class)._from_config(config)
    layers = [_BYTES * sum(map(torch.numel, layer.parameters())) for layer in text_decoder(model).layers]
    return layers, _BYTES * sum(map(torch.numel, model.parameters())) - sum(layers)


def _run_child(
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
            "oracle": str(Path(__file__).with_name("oracle.py")),
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
                [sys.executable, "-I", "-B", str(Path(__file__).with_name("verify_child.py"))],
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
    write_json(stock / CONFIG_NAME, _stock_config(package, recipe))
    if recipe.tokenizer_class:
        write_text(stock / TOKENIZER_CONFIG_NAME, base_tokenizer_config(package, recipe))
    for name in recipe.base.files:
        if name.endswith(WEIGHT_FILES):
            (stock / name).symlink_to(weights / name)
        elif not (stock / name).exists():
            (stock / name).symlink_to(package / name)


def _stock_config(package: Path, recipe: Recipe) -> dict[str, Any]:
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

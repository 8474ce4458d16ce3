"""Is a package, or a published repository, what its recipe says, and does it compute what its list says?

First its files are looked at, without running any of them; a package whose remote code is not this release's,
byte for byte, goes no further. Then a fresh, isolated process loads it as a stranger would (see
`verify_child`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .base_model import hub_error
from .errors import ShortVError
from .families import FAMILIES
from .package import CONFIG_NAME, Check, expected_files, inspect_package
from .recipe import RECIPE_NAME, Recipe, read_json, write_json

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
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def raise_if_failed(self) -> None:
        """Raises a ShortVError with the first failure's reason."""
        for check in self.checks:
            if not check.passed:
                raise ShortVError(f"{self.package} failed verification: {check.name}: {check.detail}")


def verify(
    package: str | Path, *, revision: str | None = None, token: str | None = None, timeout: float = 3600
) -> Verification:
    """Checks a package, or a repository on the Hub, which is downloaded first.

    The comparison with the definition runs on the CPU in fp32, one model after the other: it needs 4 bytes of
    memory per parameter, 28 GB for a 7B model.

    Args:
        package: a folder, or a repository id.
        revision: of the repository: branch, tag or commit.
        token: for a private repository; the process that runs its code gets none.
        timeout: seconds for that process.

    Raises:
        ShortVError: there is no such package, or it cannot be downloaded. A failed check is reported, not
        raised.
    """
    name = str(package)
    if Path(package).is_dir():
        if revision is not None:
            raise ShortVError(f"{name} is a folder, which has no revisions; leave the revision out.")
        folder, names = Path(package).absolute(), None
    else:
        folder, names = _download(name, revision, token)
    checks = inspect_package(folder, names=names)
    if checks[-1].passed:
        checks += _run_child(folder, Recipe.load(folder / RECIPE_NAME), timeout)
    return Verification(name, tuple(checks))


def _download(repo_id: str, revision: str | None, token: str | None) -> tuple[Path, set[str] | None]:
    """The files of a repository that its recipe names, and the names of all its files."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        try:
            info = HfApi(token=token).model_info(repo_id, revision=revision)
        except OfflineModeIsEnabled:
            return Path(snapshot_download(repo_id, revision=revision, local_files_only=True)), None
        commit, names = info.sha, {sibling.rfilename for sibling in info.siblings or ()}
        if RECIPE_NAME not in names:
            raise ShortVError(f"{repo_id} has no {RECIPE_NAME}: it was not published by shortv-export.")
        recipe = Recipe.load(Path(hf_hub_download(repo_id, RECIPE_NAME, revision=commit, token=token)))
        wanted = sorted(expected_files(recipe) & names)
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=wanted, token=token)), names
    except (HTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise hub_error(error, f"model {repo_id}") from error


def _run_child(package: Path, recipe: Recipe, timeout: float) -> list[Check]:
    """The checks of the isolated process."""
    family = FAMILIES[recipe.family]
    with tempfile.TemporaryDirectory(prefix="shortv-verify-") as temporary:
        stock = Path(temporary, "stock")
        stock.mkdir()
        _write_stock(package, recipe, stock)
        task = {
            "package": str(package),
            "stock": str(stock),
            "model_class": family.model_class,
            "base_class": family.base_class,
            "oracle": str(Path(__file__).with_name("oracle.py")),
            "frozen_layers": list(recipe.frozen_layers),
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


def _write_stock(package: Path, recipe: Recipe, stock: Path) -> None:
    """A folder from which the stock class loads the same weights: the base's own config again, and links."""
    family = FAMILIES[recipe.family]
    config = read_json(package / CONFIG_NAME)
    own = {"model_type": family.model_type, "architectures": [family.base_class]}
    config = {name: value for name, value in config.items() if name not in ("auto_map", "frozen_layers")}
    write_json(stock / CONFIG_NAME, {**config, **own})
    for name in recipe.base.files:
        if name.endswith((".safetensors", ".safetensors.index.json")) or name == "generation_config.json":
            (stock / name).symlink_to(package / name)


def _crash(status: int, stderr: str) -> str:
    """One line on why the process died; most often a large model met a small memory."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1][:300]}" if lines else ""
    if status == -9:
        return f"the isolated process was killed, as happens when memory runs out{last}."
    return f"the isolated process ended with status {status}{last}."

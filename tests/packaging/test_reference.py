"""Packages without weights: made, published, verified, and loaded by strangers through the unmodified clients."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.records.selection import Selection
from tests.support.packages import make_package

BASE, MODEL = "acme/base", "loopback/model"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

# Loads models one after the other, as a stranger would, and tells of each.
LOAD = """
import json, sys
import torch
from transformers import AutoModel

def load(name, save=None, **options):
    model, loading = AutoModel.from_pretrained(name, trust_remote_code=True, output_loading_info=True, **options)
    weight = model.model.language_model.layers[1].mlp.up_proj.weight
    told = {
        "class": type(model).__name__,
        "bad": [str(key) for keys in loading.values() for key in keys],
        "names": [model.name_or_path, model.config.name_or_path],
        "dtype": str(model.dtype),
        "frozen_layers": model.shortv_report()["frozen_layers"],
        "max_new_tokens": model.generation_config.max_new_tokens,
        "sum": float(weight.double().sum()),
    }
    if save:
        with torch.no_grad():
            weight.add_(1)
        told["saved_sum"] = float(weight.double().sum())
        model.save_pretrained(save)
    return told

told = []
for job in json.loads(sys.argv[1]):
    try:
        told.append(load(**job))
    except OSError as error:
        told.append({"error": str(error)})
print(json.dumps(told))
"""


@dataclass
class Machine:
    """A stranger's: its own cache, and nothing of this project."""

    home: Path
    hub: LoopbackHub

    def run(self, command: list[Any], **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS")}
        own = {"HF_HOME": str(self.home), "HOME": str(self.home), "HF_TOKEN": self.hub.token}
        return subprocess.run(
            list(map(str, command)),
            env={**kept, **self.hub.env(), **own, **environment},
            capture_output=True,
            text=True,
            cwd=self.home,
            timeout=200,
        )

    def load(self, *jobs: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
        jobs_text = json.dumps(jobs, default=str)
        result = self.run([sys.executable, "-I", "-c", LOAD, jobs_text], **environment)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])

    def tool(self, *arguments: Any, **environment: str) -> dict[str, Any]:
        result = self.run([sys.executable, "-m", "shortv_export", *arguments, "--json"], **environment)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout)

    def downloaded(self, repo_id: str) -> int:
        """Bytes of a repository in the cache."""
        blobs = self.home / "hub" / f"models--{repo_id.replace('/', '--')}" / "blobs"
        return sum(path.stat().st_size for path in blobs.iterdir()) if blobs.is_dir() else 0


@pytest.fixture(scope="module")
def hub(tiny_base: Callable[..., Path]) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        files = {path.name: path for path in tiny_base(num_shards=2).iterdir()}
        files["generation_config.json"] = json.dumps({"max_new_tokens": 7}).encode()
        hub.create_repo(BASE, files=files)
        yield hub
        assert hub.errors == []


@pytest.fixture(scope="module")
def publisher(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("publisher"), hub)


@pytest.fixture(scope="module")
def package(publisher: Machine) -> Path:
    out = publisher.home / "package"
    publisher.tool("package", BASE, out, "--frozen-layers", "1,3", "--weights", "reference")
    return out


@pytest.fixture(scope="module")
def push(publisher: Machine, package: Path) -> dict[str, Any]:
    return publisher.tool("push", package, MODEL)


@pytest.fixture
def machine(hub: LoopbackHub, tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, hub)


def test_package(package: Path, hub: LoopbackHub) -> None:
    names = {path.name for path in package.iterdir()}
    assert not any("safetensors" in name for name in names)
    assert {"tokenizer.json", "processor_config.json", "chat_template.jinja", "shortv_weights.py"} < names
    config = json.loads((package / "config.json").read_text())
    assert config["shortv_base"] == {"repo_id": BASE, "revision": hub.commits(BASE)[0].sha}
    recipe = json.loads((package / "shortv.json").read_text())
    assert recipe["weights"] == "reference"
    assert set(SHARDS) < set(recipe["base"]["files"])
    assert sum(path.stat().st_size for path in package.iterdir()) < 200_000
    assert f"[{BASE}](https://huggingface.co/{BASE})" in (package / "README.md").read_text()


def test_verify_and_push(
    publisher: Machine, package: Path, push: dict[str, Any], hub: LoopbackHub, tiny_base: Callable[..., Path]
) -> None:
    shutil.copytree(tiny_base(num_shards=2, seed=1), publisher.home / BASE)  # a folder of that name is not the base
    assert publisher.tool("verify", package)["verdict"] == "verified"
    assert publisher.tool("verify", package, HF_HUB_OFFLINE="1")["verdict"] == "verified"
    assert not any(name.endswith(".safetensors") for name in hub.files(MODEL, push["tag"]))
    assert push["uploaded_bytes"] < 200_000
    assert publisher.tool("push", package, MODEL)["changed"] is False


@pytest.fixture(scope="module")
def saved(publisher: Machine, push: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """A model that was loaded by reference, changed and saved; and what was told of it."""
    folder = publisher.home / "saved"
    return folder, publisher.load({"name": MODEL, "save": folder})[0]


def test_who_has_the_base_downloads_kilobytes(push: dict[str, Any], machine: Machine) -> None:
    machine.run(["hf", "download", BASE], PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    had = machine.downloaded(BASE)
    assert had > 400_000
    before = len(machine.hub.requests)
    job = {"name": MODEL, "revision": push["tag"]}
    loaded = machine.load(job)
    assert loaded == [
        {
            "class": "ShortVLlavaForConditionalGeneration",
            "bad": [],
            "names": [MODEL, MODEL],
            "dtype": "torch.float32",
            "frozen_layers": [1, 3],
            "max_new_tokens": 7,
            "sum": loaded[0]["sum"],
        }
    ]
    assert machine.downloaded(BASE) == had
    assert 0 < machine.downloaded(MODEL) < 60_000
    fetched = [r.path for r in machine.hub.requests[before:] if r.method == "GET" and f"/{BASE}/resolve/" in r.path]
    assert fetched == []
    # And without network.
    assert machine.load(job, HF_HUB_OFFLINE="1") == loaded


def test_who_does_not_have_it_downloads_the_weights(push: dict[str, Any], machine: Machine) -> None:
    (loaded,) = machine.load({"name": MODEL, "dtype": "bfloat16", "device_map": "auto"})
    assert (loaded["bad"], loaded["dtype"]) == ([], "torch.bfloat16")
    weights = sum(len(data) for name, data in machine.hub.files(BASE).items() if "safetensors" in name)
    assert weights <= machine.downloaded(BASE) < weights + 5_000


def test_own_weights_win(package: Path, saved: tuple[Path, dict[str, Any]], machine: Machine, tmp_path: Path) -> None:
    """A saved model's config does not name the base; and if somebody puts that back, the weights win all the same."""
    folder, told = saved
    assert told["saved_sum"] != told["sum"]
    assert "shortv_base" not in json.loads((folder / "config.json").read_text())
    mixed = shutil.copytree(package, tmp_path / "mixed")
    shutil.copy(folder / "model.safetensors", mixed)
    assert "shortv_base" in json.loads((mixed / "config.json").read_text())
    machine.hub.create_repo("loopback/mixed", files={path.name: path for path in mixed.iterdir()})
    for loaded in machine.load({"name": folder}, {"name": mixed}, {"name": "loopback/mixed"}):
        assert (loaded["sum"], loaded["bad"], loaded["frozen_layers"]) == (told["saved_sum"], [], [1, 3])
    assert machine.downloaded(BASE) == 0


def test_a_base_that_cannot_be_had(package: Path, machine: Machine, tmp_path: Path, hub: LoopbackHub) -> None:
    hub.create_repo("acme/gated", files={"config.json": b"{}"}, gated="manual")
    hub.create_repo("acme/empty", files={"config.json": b"{}"})
    revision, gated, empty = (hub.commits(repo_id)[0].sha for repo_id in (BASE, "acme/gated", "acme/empty"))
    cases: tuple[tuple[str, str, dict[str, Any], str], ...] = (
        ("acme/none", revision, {}, "Repository Not Found"),
        ("acme/gated", gated, {"token": False}, "gated repo"),
        (BASE, "0" * 40, {}, "Revision Not Found"),
        ("acme/empty", empty, {}, "model.safetensors"),
        (BASE, revision, {"local_files_only": True}, "Cannot find the requested files in the disk cache"),
    )
    jobs = []
    for number, (repo_id, commit, options, _) in enumerate(cases):
        folder = shutil.copytree(package, tmp_path / str(number))
        config = json.loads((folder / "config.json").read_text())
        config["shortv_base"] = {"repo_id": repo_id, "revision": commit}
        (folder / "config.json").write_text(json.dumps(config))
        jobs.append({"name": folder, **options})
    for (repo_id, commit, _, reason), told in zip(cases, machine.load(*jobs), strict=True):
        assert "\n" not in told["error"]
        assert f"those of {repo_id} at revision {commit} could not be loaded" in told["error"]
        assert reason in told["error"]


def test_folders_cannot_be_referenced(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = resolve_base(tiny_base())
    for weights, reason in (("reference", "others cannot load weights from"), ("link", "copy or reference")):
        with pytest.raises(ShortVError, match=reason) as caught:
            make_package(base, tmp_path / "out", Selection((1,), 4, "given"), weights=weights)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []

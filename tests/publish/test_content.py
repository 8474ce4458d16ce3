"""Only regular files of the package are published, as they were read and hashed."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import _commit_api, constants

from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Target
from shortv_export.packaging.package import Package
from shortv_export.publish import plan as plan_module
from shortv_export.publish.plan import plan_commit
from shortv_export.publish.repository import inspect_repository
from shortv_export.records.selection import Selection
from tests.support.packages import make_package, publish
from tests.support.published import REPO, contents, failure, path_ends, published, refusal, state

SECRET = b"machine huggingface.co password SECRET\n"
SHARD = "model-00001-of-00002.safetensors"
BATCH = path_ends("POST", "/objects/batch")


@pytest.fixture
def copy(packages: dict[str, Path], tmp_path: Path) -> Path:
    """A package that a test may change."""
    return shutil.copytree(packages["two"], tmp_path / "copy")


@pytest.fixture(scope="session")
def large(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with weights of some megabytes."""
    base = resolve_base(tiny_base(num_shards=2, hidden_size=448))
    return make_package(base, tmp_path_factory.mktemp("large") / "package", Selection((1,), 4, "given"))


@pytest.fixture
def weights(large: Path, tmp_path: Path) -> Path:
    """A shard of a package that a test may change."""
    return shutil.copytree(large, tmp_path / "large") / SHARD


def damage(path: Path) -> None:
    """Changes bytes in place, where no sample for the remembered hash is taken, and sets the old time again."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 15 // 2)
        old = file.read(4)
        file.seek(-4, os.SEEK_CUR)
        file.write(bytes(255 - byte for byte in old))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# What is no file of the package


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["README.md", "shortv_layers.py", "layer_contribution.png", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["link out", "link to a device", "pipe", "folder", "loop", "sparse"])
def test_what_is_no_file_of_the_package(loopback: LoopbackHub, copy: Path, name: str, kind: str) -> None:
    path, outside = copy / name, copy.parent / ".netrc"
    outside.write_bytes(SECRET)
    path.unlink()
    if kind == "link out":
        path.symlink_to(outside)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    assert str(path) in unreadable(copy, card="package")
    assert loopback.repos == {}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "sparse"])
def test_what_is_no_weight_file(loopback: LoopbackHub, copy: Path, kind: str) -> None:
    path, outside = copy / SHARD, copy.parent / SHARD
    path.rename(outside)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    assert SHARD in refusal(loopback, copy, REPO)


def unreadable(folder: Path, **target: Any) -> str:
    """What is wrong with the files of a package, whether or not it was compared with its recipe before."""
    with pytest.raises(ShortVError) as caught:
        plan_commit(Package.open(folder), inspect_repository(REPO, Target(**target))).require_undamaged()
    return str(caught.value)


def test_a_link_within_the_package_is_what_it_points_to(loopback: LoopbackHub, copy: Path) -> None:
    """As in a snapshot of the Hub's cache."""
    publish(copy, REPO)
    publish(Package.open(REPO).folder, REPO)
    assert published(loopback) == contents(copy)


@pytest.mark.parametrize("name", ["shortv_layers.py", "layer_contribution.png", "tokenizer.json", SHARD])
def test_changed_after_it_was_packaged(loopback: LoopbackHub, copy: Path, name: str) -> None:
    damage(copy / name)
    assert f"{name} is damaged: its sha256 is not the recipe's" in unreadable(copy)
    assert name in refusal(loopback, copy, REPO)


def test_what_was_read_is_what_is_sent(loopback: LoopbackHub, copy: Path) -> None:
    """Files that change after they were read do not matter."""
    expected = contents(copy)

    def change() -> None:
        for name in ("config.json", "README.md", "shortv_layers.py", "tokenizer.json"):
            (copy / name).write_bytes(SECRET)

    loopback.meanwhile(change, path_ends("POST", "/repos/create"))
    publish(copy, REPO)
    assert published(loopback) == expected


# Weights


@pytest.mark.timeout(120)
def test_weights_damaged_before(loopback: LoopbackHub, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    assert f"{SHARD} is damaged" in unreadable(weights.parent)
    with weights.open("wb") as file:
        file.truncate(1 << 40)
    assert f"{SHARD} is larger than" in unreadable(weights.parent)


def test_weights_damaged_in_place(loopback: LoopbackHub, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the remembered hash is that of the file as it was: the file is hashed again when it is sent."""
    believe(monkeypatch, weights)
    damage(weights)
    loopback.create_repo(REPO)
    before = state(loopback)
    assert f"{SHARD} was changed during this push, so nothing was committed" in failure(loopback, weights.parent, REPO)
    assert state(loopback) == before


def believe(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    """Lets the remembered hashes stay as they are now."""
    remembered = {name: plan_module.file_sha256(weights.with_name(name)) for name in os.listdir(weights.parent)}
    monkeypatch.setattr(plan_module, "file_sha256", lambda path, **_: remembered[path.name])


def test_weights_rewritten_during_the_upload(loopback: LoopbackHub, weights: Path) -> None:
    loopback.create_repo(REPO)
    content = weights.read_bytes()
    loopback.meanwhile(lambda: weights.write_bytes(content), BATCH)
    assert f"{SHARD} was changed during this push" in failure(loopback, weights.parent, REPO)
    assert published(loopback) == {}
    publish(weights.parent, REPO)
    assert published(loopback) == contents(weights.parent)


def test_xet_gets_no_hash_to_believe(loopback: LoopbackHub, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf_xet stores a file under the hash that it is given, and else under that of what it reads."""

    def upload(*, additions: list[Any], repo_id: str, **_: Any) -> None:
        for addition in additions:
            source = addition.path_or_fileobj
            content = Path(source).read_bytes() if isinstance(source, str) else source
            sha256, _ = loopback.content.store(io.BytesIO(content))
            if addition.upload_info.is_hashed:
                loopback.content._paths[addition.upload_info.sha256.hex()] = loopback.content[sha256]
            else:
                addition.upload_info.sha256 = bytes.fromhex(sha256)
            loopback.repos[repo_id].objects.add(addition.upload_info.sha256.hex())

    believe(monkeypatch, weights)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(_commit_api, "_upload_xet_files", upload)
    publish(weights.parent, "loopback/before")
    assert published(loopback, repo_id="loopback/before") == contents(weights.parent, "loopback/before")
    damage(weights)
    loopback.create_repo(REPO)
    assert f"{SHARD} was changed during this push" in failure(loopback, weights.parent, REPO)
    assert published(loopback) == {}

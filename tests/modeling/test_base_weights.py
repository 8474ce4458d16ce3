"""ShortV models without weights of their own: they load those of their base on the Hub, at its commit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor

from tests.support.definition import edit_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def refer_to(tiny_base: Any, shortv_folder: Any, tmp_path: Path) -> Callable[..., Path]:
    """``refer_to(shortv_base, name)``: a ShortV model in folder `name` that has no weights of its own."""
    original = shortv_folder(tiny_base(), [0, 2])

    def make(base: Any, name: str = "model") -> Path:
        folder = shutil.copytree(original, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        return edit_config(folder, shortv_base=base)

    return make


def weight_sum(folder: Path) -> float:
    """Of one weight that differs between models, from the files alone."""
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors = {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}
    return float(tensors[name].double().sum())


def loaded_sum(folder: Path, **options: Any) -> float:
    model, loading = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True, **options)
    assert not any(loading.values())
    assert model.shortv_report()["frozen_layers"] == [0, 2]
    assert model.name_or_path == str(folder)
    return float(model.model.language_model.layers[1].mlp.up_proj.weight.detach().double().sum())


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("decoy", [None, "folder", "link", "file"])
def test_a_pinned_base_is_never_a_folder(
    tiny_base: Any, refer_to: Any, hub: Any, tmp_path: Path, monkeypatch: Any, decoy: str | None, num_shards: int
) -> None:
    """Whatever the working directory has under the base's name, or the base's main branch has now."""
    honest, other = tiny_base(num_shards=num_shards), tiny_base(num_shards=num_shards, seed=1)
    assert weight_sum(honest) != weight_sum(other)
    if Version(version("huggingface_hub")) < Version("2"):
        pytest.skip("the loopback Hub serves large files to newer clients only")
    revision = hub.create_repo("acme/base", files={path.name: path for path in honest.iterdir()})
    hub.commit("acme/base", {path.name: path for path in other.iterdir()})
    here = tmp_path / "here"
    (here / "acme").mkdir(parents=True)
    monkeypatch.chdir(here)
    if decoy == "folder":
        shutil.copytree(other, here / "acme" / "base")
    elif decoy == "link":
        (here / "acme" / "base").symlink_to(other)
    elif decoy == "file":
        shutil.copy(tiny_base(seed=1) / "model.safetensors", here / "acme" / "base")
    folder = refer_to({"repo_id": "acme/base", "revision": revision})
    assert loaded_sum(folder) == weight_sum(honest)
    requests = len(hub.requests)
    assert loaded_sum(folder, local_files_only=True) == weight_sum(honest)
    assert len(hub.requests) == requests
    assert loaded_sum(folder, cache_dir=tmp_path / "elsewhere") == weight_sum(honest)


def test_a_base_without_namespace(tiny_base: Any, refer_to: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Some old repositories have none. This one was downloaded before."""
    cache = tmp_path / "cache"
    shutil.copytree(tiny_base(), cache / "models--base" / "snapshots" / COMMIT)
    shutil.copytree(tiny_base(seed=1), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    folder = refer_to({"repo_id": "base", "revision": COMMIT})
    assert loaded_sum(folder, cache_dir=cache, local_files_only=True) == weight_sum(tiny_base())


NO_BASES = [
    *({"repo_id": name, "revision": COMMIT} for name in ("../x", "..", "/", "~", "~/x", "./x", "x/", "", "a/b/c")),
    *({"repo_id": name, "revision": COMMIT} for name in ("a b", "x\n", "-x", None, 7, ["x"], {"x": 1})),
    *({"repo_id": "acme/base", "revision": revision} for revision in ("main", "", COMMIT[:12], f"{COMMIT}0", None, 7)),
    *({"repo_id": "acme/base"}, {"revision": COMMIT}, {}, [], ["acme/base", COMMIT], "acme/base", "", 0, True),
]


@pytest.mark.parametrize("base", NO_BASES, ids=repr)
def test_what_is_no_pinned_base_is_refused(
    tiny_base: Any, refer_to: Any, tmp_path: Path, monkeypatch: Any, base: Any
) -> None:
    for name in ("x", "here/acme/base"):
        shutil.copytree(tiny_base(), tmp_path / name)
    monkeypatch.chdir(tmp_path / "here")
    folder = refer_to(base)
    with pytest.raises(ValueError, match="`shortv_base` in config") as caught:
        AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert "\n" not in str(caught.value)
    # Nothing else looks at the base.
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).frozen_layers == [0, 2]
    AutoProcessor.from_pretrained(folder, trust_remote_code=True)

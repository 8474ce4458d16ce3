"""Verifies good packages, and packages that fail each check."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shortv_export import pipeline
from shortv_export.base import families
from shortv_export.base.definition import text_decoder
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.files.bundled import modeling_dir
from shortv_export.loopback import LoopbackHub
from shortv_export.packaging import Package
from shortv_export.packaging.inspection import Check
from shortv_export.records.frozen import Frozen
from shortv_export.records.selection import Selection
from shortv_export.verification import checks as verification
from shortv_export.verification import isolated
from shortv_export.verification.checks import Verification, verify_package
from tests.support.packages import make_package, publish

STATIC = [
    "recipe", "files", "hashes", "base", "remote code", "made again", "figures", "weights", "card",
]  # fmt: skip
DYNAMIC = ["memory", "self-contained", "loads", "inputs", "frozen", "generates", "definition"]


def last(result: Verification) -> tuple[str, str]:
    """Name and detail of the failed check, which is the last, the only failure, and one line."""
    assert result.verdict == "failed"
    *before, failed = result.checks
    assert all(check.passed is not False for check in before)
    assert failed.passed is False
    assert "\n" not in failed.detail
    with pytest.raises(ShortVError, match="failed verification: "):
        result.raise_if_failed()
    return failed.name, failed.detail


@pytest.mark.parametrize(
    ("model_type", "frozen"),
    [
        ("llava", Frozen((1, 3))),
        ("llava", Frozen()),
        ("llava_next", Frozen((0, 1, 2, 3))),
        ("llava_next", Frozen((3,), (0, 1), (2,))),
    ],
)
def test_good_packages(tiny_base: Callable[..., Path], tmp_path: Path, model_type: str, frozen: Frozen) -> None:
    base = resolve_base(tiny_base(model_type, num_shards=2))
    package = make_package(base, tmp_path / "out", Selection(frozen.layers, 4, "given", **frozen.operators))
    before = sorted(path.name for path in package.iterdir())
    result = pipeline.verify(package)
    result.raise_if_failed()
    assert [check.name for check in result.checks] == STATIC + DYNAMIC
    assert [check.name for check in result.not_made] == ["base"]
    assert result.summary == ("verified except base (the base was a folder; name it with `base` to compare with it)")
    verified = verify_package(Package.open(package), base=base)
    assert (verified.verdict, verified.not_made) == ("verified", ())
    assert verified.summary == "verified: 16 checks passed"
    assert sorted(path.name for path in package.iterdir()) == before


def test_repository(
    tiny_base: Callable[..., Path], hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = resolve_base(tiny_base(num_shards=2))
    package = make_package(base, tmp_path / "out", Selection((1, 3), 4, "given"))
    push = publish(package, "loopback/model", private=True)
    pipeline.verify("loopback/model", revision=push.tag).raise_if_failed()

    monkeypatch.setattr(isolated.subprocess, "run", forbidden)
    hub.commit("loopback/model", {"custom_generate/generate.py": b"evil = True\n"})
    name, detail = last(pipeline.verify("loopback/model"))
    assert (name, detail) == ("files", "not of the package: custom_generate/generate.py.")
    assert not list((tmp_path / "cache").rglob("generate.py"))

    hub.create_repo("acme/other", files={"config.json": b"{}"})
    for repo_id, reason in (
        ("acme/other", "was not published by shortv-export"),
        ("acme/none", "is not on the Hub"),
        ("no such thing", "neither a folder here nor a Hub id"),
    ):
        with pytest.raises(ShortVError, match=reason) as caught:
            pipeline.verify(repo_id)
        assert "\n" not in str(caught.value)


@pytest.fixture
def on_hub(hub: LoopbackHub, tiny_base: Callable[..., Path], tmp_path: Path) -> LoopbackHub:
    """A Hub with acme/base on it, and a package of that base in ``tmp_path / "out"``."""
    hub.create_repo("acme/base", files={path.name: path for path in tiny_base(num_shards=2).iterdir()})
    make_package(resolve_base("acme/base"), tmp_path / "out", Selection((1, 3), 4, "given"))
    return hub


def looked_up(package: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[bool | None, str]]:
    """The checks "base" and "weights", without loading models."""
    monkeypatch.setattr(verification, "_plan_memory", lambda *_: (Check("memory", False, "no models here."), None))
    checks = pipeline.verify(package).checks
    assert not any("\n" in check.detail for check in checks)
    return {check.name: (check.passed, check.detail) for check in checks if check.name in ("base", "weights")}


def test_files_are_the_base_s_on_the_hub(on_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub.commit("acme/base", {"tokenizer.json": b"{}"})  # later than the package's commit
    place = f"acme/base at {on_hub.commits('acme/base')[1].sha[:12]}"
    assert looked_up(tmp_path / "out", monkeypatch) == {
        "base": (True, f"6 small files, those of {place}"),
        "weights": (True, f"2 files, those of {place}"),
    }
    assert on_hub.errors == []


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json"])
def test_files_that_the_base_never_had(
    on_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The base's commit has another file than the recipe, or lacks it."""
    repo = on_hub.repos["acme/base"]
    (commit,) = [each for each in repo.commits.values() if name in each.files]
    other = on_hub.commit("acme/base", {name: b"{}"})
    changed = next(each for each in repo.commits.values() if each.sha == other)
    check = "weights" if name.endswith(".safetensors") else "base"
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setitem(repo.commits, commit.sha, replace(commit, files={**commit.files, name: changed.files[name]}))
    passed, detail = looked_up(tmp_path / "out", monkeypatch)[check]
    assert (passed, f"{name} differs" in detail) == (False, True)
    files = {key: value for key, value in commit.files.items() if key != name}
    monkeypatch.setitem(repo.commits, commit.sha, replace(commit, files=files))
    shutil.rmtree(tmp_path / "cache")
    passed, detail = looked_up(tmp_path / "out", monkeypatch)["base"]
    assert (passed, name in detail or "no tokenizer" in detail) == (False, True), detail


def test_a_base_that_cannot_be_asked(on_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the Hub does not answer, the comparison is not made: that is no failure, and not verified either."""
    from huggingface_hub import constants

    package = tmp_path / "out"
    # The Hub's cache has the base at its commit.
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        found = looked_up(package, monkeypatch)
        assert [passed for passed, _ in found.values()] == [True, True]
        assert "2 files, those of the Hub's cache of acme/base" in found["weights"][1]
    shutil.rmtree(tmp_path / "cache")
    on_hub.fail(lambda request: "acme/base" in request.path, times=1000, status=403)
    passed, detail = looked_up(package, monkeypatch)["base"]
    assert (passed, "acme/base" in detail) == (None, True), detail
    on_hub.faults.clear()
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        passed, detail = looked_up(package, monkeypatch)["base"]
        assert (passed, "HF_HUB_OFFLINE" in detail) == (None, True), detail
    del on_hub.repos["acme/base"]
    found = looked_up(package, monkeypatch)
    assert found["base"][0] is None
    assert "is not on the Hub, or is private" in found["base"][1]
    assert found["weights"] == (True, "2 files, those of the recipe")


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


@pytest.fixture(scope="module")
def base_folder(tiny_base: Callable[..., Path]) -> Path:
    return tiny_base()


@pytest.fixture
def tampered(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``tampered(file, old, new)``: a package with changed remote code, which passes for this release's code."""

    def make(file: str, old: str, new: str) -> Path:
        code = shutil.copytree(modeling_dir(), tmp_path / "code")
        text = (code / file).read_text()
        assert old in text
        (code / file).write_text(text.replace(old, new))
        monkeypatch.setattr(families, "modeling_dir", lambda: code)
        return make_package(resolve_base(base_folder), tmp_path / "out", Selection((1, 3), 4, "given"))

    return make


MODELING = "modeling_shortv_llava.py"
FIRST_IMPORT = "from .configuration_shortv_llava"


def test_foreign_code_is_not_run(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_package(resolve_base(base_folder), tmp_path / "out", Selection((1, 3), 4, "given"))
    (package / MODELING).write_text("raise SystemExit\n")
    monkeypatch.setattr(isolated.subprocess, "run", forbidden)
    name, detail = last(pipeline.verify(package))
    assert (name, MODELING in detail) == ("remote code", True)


def test_weights_that_do_not_load(tampered: Callable[..., Path]) -> None:
    """Without the mapping of the published tensor names, transformers leaves weights random and only warns."""
    package = tampered(
        "shortv_weights.py", "register_checkpoint_conversion_mapping(cls.__name__, mapping, overwrite=True)", "pass"
    )
    name, detail = last(pipeline.verify(package))
    assert (name, "loads with missing keys: lm_head.weight" in detail) == ("loads", True)


def test_layers_that_do_not_skip(tampered: Callable[..., Path]) -> None:
    package = tampered("shortv_layers.py", "sum(rows for (name, _), rows in skipped.items() if name == operator)", "0")
    name, detail = last(pipeline.verify(package))
    assert (name, "skipped_attention 0 instead of 32" in detail) == ("frozen", True)


def test_wrong_results(tampered: Callable[..., Path]) -> None:
    package = tampered(
        "shortv_layers.py",
        "return hidden_states.scatter(1, index, text_states)",
        "return hidden_states.scatter(1, index, 1.001 * text_states)",
    )
    name, detail = last(pipeline.verify(package))
    assert (name, "differ from the definition by" in detail) == ("definition", True)


def test_wrong_keys_in_the_cache(tampered: Callable[..., Path]) -> None:
    """Wrong keys do not change the prompt's logits, only later tokens."""
    package = tampered("shortv_layers.py", "keys, values = self.cached(keys,", "self.cached(1.001 * keys,")
    name, detail = last(pipeline.verify(package))
    assert (name, detail) == ("definition", "keys and values of layer 1 differ from the definition by 0.001.")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "gemma3"])
def test_decoder_layers_are_found_in_every_family(family: str, tmp_path: Path) -> None:
    """Only the text model's layers are counted, whatever their tensors are called in the checkpoint."""
    from tests.support.tiny_families import tiny_model

    stock = tiny_model(family)
    stock.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": f"shortv_{family}", "frozen_layers": [1]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    package = SimpleNamespace(family=families.FAMILIES[family], base_config={**config, "model_type": family})
    layers, rest = verification._sizes(package)  # type: ignore[arg-type]
    expected = [sum(tensor.nbytes for tensor in layer.state_dict().values()) for layer in text_decoder(stock).layers]
    assert layers == expected
    assert sum(layers) + rest == sum(parameter.nbytes for parameter in stock.parameters())


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_more_layers_than_memory(
    tiny_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    model_type: str,
) -> None:
    """Layers that do not fit are read from disk. All are compared, and the memory needed is logged first."""
    base = resolve_base(tiny_base(model_type, num_shards=2))
    package = make_package(base, tmp_path / "out", Selection((0, 2, 3), 4, "given"))
    layers, rest = weights(package)
    overhead = verification._OVERHEAD
    for free, expected in (
        (sum(layers) + rest + overhead, "the comparison needs 2.1 GB in float32, 2.1 GB are free"),
        (sum(layers) + rest + overhead - 1, "2 of 4 layers are read from disk in turn"),
        (layers[0] + rest + overhead, "4 of 4 layers are read from disk in turn"),
    ):
        monkeypatch.setattr(verification, "available_memory", lambda free=free: free)
        caplog.clear()
        with caplog.at_level("INFO", "shortv_export"):
            result = pipeline.verify(package)
        result.raise_if_failed()
        told = [record.getMessage() for record in caplog.records if record.name.startswith("shortv_export")]
        lines = [line for line in told if "GB" in line]
        assert expected in "".join(lines)
        assert [check.detail for check in result.checks if check.name == "memory"] == lines
        assert [check.name for check in result.checks] == STATIC + DYNAMIC

    monkeypatch.setattr(isolated.subprocess, "run", forbidden)
    monkeypatch.setattr(verification, "available_memory", lambda: layers[0] + rest + overhead - 1)
    result = pipeline.verify(package)
    assert result.verdict == "verified except"
    assert (result.checks[-1].name, "at least" in result.checks[-1].detail) == ("memory", True)


def weights(package: Path) -> tuple[list[int], int]:
    """Bytes in fp32 of each decoder layer and of the rest, from the tensors themselves."""
    from safetensors.torch import load_file

    layers, rest = [0] * 4, 0
    for shard in package.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            if name.startswith("language_model.model.layers."):
                layers[int(name.split(".")[3])] += 4 * tensor.numel()
            else:
                rest += 4 * tensor.numel()
    return layers, rest


def test_wrong_results_of_a_layer_on_disk(tampered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    package = tampered(
        "shortv_layers.py",
        "return hidden_states.scatter(1, index, text_states)",
        "return hidden_states.scatter(1, index, 1.001 * text_states)",
    )
    layers, rest = weights(package)
    free = layers[0] + rest + verification._OVERHEAD
    monkeypatch.setattr(verification, "available_memory", lambda: free)
    assert last(pipeline.verify(package))[0] == "definition"


def test_available_memory() -> None:
    import psutil

    available = verification.available_memory()
    assert available is not None
    assert 0 < available <= psutil.virtual_memory().total


def test_isolation(tampered: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the code sees no token and no secret, and works in temporary folders."""
    seen = tmp_path / "seen.json"
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    package = tampered(
        MODELING,
        FIRST_IMPORT,
        "import json, os\n"
        "from huggingface_hub import constants, get_token\n"
        "seen = {'environment': dict(os.environ), 'token': get_token(), 'offline': constants.HF_HUB_OFFLINE}\n"
        f"json.dump(seen, open({str(seen)!r}, 'w'))\n"
        "__import__('shortv_export')\n"
        f"{FIRST_IMPORT}",
    )
    name, detail = last(pipeline.verify(package))
    assert name == "loads"
    assert "shortv_export" in detail
    found = json.loads(seen.read_text())
    assert (found["token"], found["offline"]) == (None, True)
    assert "canary" not in json.dumps(found)
    assert found["environment"]["HOME"] != os.environ["HOME"]
    for name in ("HOME", "HF_HOME", "HF_MODULES_CACHE"):
        assert not Path(found["environment"][name]).exists()  # gone with the process


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, sys; print('last words', file=sys.stderr, flush=True); os._exit(3)", "status 3: last words"),
        ("import os; os._exit(0)", "printed no result"),
    ],
)
def test_a_process_that_dies(tampered: Callable[..., Path], code: str, reason: str) -> None:
    name, detail = last(pipeline.verify(tampered(MODELING, FIRST_IMPORT, f"{code}\n{FIRST_IMPORT}")))
    assert (name, reason in detail) == ("process", True)


def test_a_process_that_is_killed(tampered: Callable[..., Path]) -> None:
    """As the system does when memory runs out. That is no verdict on the package."""
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    result = pipeline.verify(tampered(MODELING, FIRST_IMPORT, f"{kill}\n{FIRST_IMPORT}"))
    assert result.verdict == "verified except"
    assert (result.checks[-1].name, "memory runs out" in result.checks[-1].detail) == ("process", True)


def test_a_process_that_hangs(tampered: Callable[..., Path]) -> None:
    package = tampered(MODELING, FIRST_IMPORT, f"import time; time.sleep(60)\n{FIRST_IMPORT}")
    result = verify_package(Package.open(package), timeout=2)
    assert (result.verdict, result.checks[-1].detail) == ("verified except", "it took more than 2 s")


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(ShortVError, match="no revisions"):
        pipeline.verify(tmp_path, revision="main")
    name, detail = last(pipeline.verify(tmp_path))
    assert (name, "does not exist" in detail) == ("recipe", True)

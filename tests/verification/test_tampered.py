"""Packages that are not what they say. None of them is called verified, and none of their code is run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from shortv_export import pipeline
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.files.json_file import json_text
from shortv_export.packaging import Package
from shortv_export.records.scores import Scores
from shortv_export.selection.presets import given_selection
from shortv_export.verification import checks as verification
from shortv_export.verification.checks import Verification, verify_package
from tests.support.hub import client_of_loopback
from tests.support.packages import make_package, publish

SCORES = Scores((0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2)
WEIGHTS = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def made(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package of a base on the Hub."""
    folder = tmp_path_factory.mktemp("tampered")
    with client_of_loopback(folder / "cache") as hub:
        hub.create_repo("acme/base", files={path.name: path for path in tiny_base(num_shards=2).iterdir()})
        yield make_package(resolve_base("acme/base"), folder / "out", given_selection([1, 3], 4), scores=SCORES)


@pytest.fixture
def package(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it. Nothing is loaded: a tampered package must not get that far."""
    monkeypatch.setattr(verification, "_run", lambda *_: [])
    return shutil.copytree(made, tmp_path / "out")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a JSON file, in the form in which this tool writes it."""
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json_text(value), encoding="utf-8")


def entry(path: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}


def replaced(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes a file of the base, and its hash in the recipe."""

    def tamper(package: Path) -> None:
        content = change((package / name).read_bytes())
        (package / name).unlink()
        (package / name).write_bytes(content)
        edit(package / "shortv.json", lambda recipe: recipe["base"]["files"].update({name: entry(package / name)}))

    return tamper


def added(name: str, where: str) -> Callable[[Path], None]:
    """Adds a file, and names it in the recipe."""

    def tamper(package: Path) -> None:
        (package / name).write_text('{"base_model_name_or_path": "evil/model"}')
        found = entry(package / name)
        value = found if where == "base" else found["sha256"]

        def name_it(recipe: dict[str, Any]) -> None:
            (recipe["base"]["files"] if where == "base" else recipe[where])[name] = value

        edit(package / "shortv.json", name_it)

    return tamper


def in_config(**fields: Any) -> Callable[[Path], None]:
    return lambda package: edit(package / "config.json", lambda config: config.update(fields))


def in_text_config(**fields: Any) -> Callable[[Path], None]:
    return lambda package: edit(package / "config.json", lambda config: config["text_config"].update(fields))


def in_recipe(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda package: edit(package / "shortv.json", change)


def without_frozen_layers(package: Path) -> None:
    edit(package / "config.json", lambda config: config.update(frozen_layers=[]))
    edit(
        package / "shortv.json",
        lambda recipe: recipe.update(frozen_layers=[], selection={**recipe["selection"], "frozen_layers": []}),
    )


def other_figure(package: Path) -> None:
    picture = (package / "layer_contribution.png").read_bytes() + b"\0"
    (package / "layer_contribution.png").write_bytes(picture)
    edit(package / "shortv.json", lambda recipe: recipe.update(figure=hashlib.sha256(picture).hexdigest()))


def in_place(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def tamper(package: Path) -> None:
        (package / name).unlink()
        make(package / name)

    return tamper


def reformatted(package: Path) -> None:
    recipe = package / "shortv.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text("utf-8"))), encoding="utf-8")


def last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def in_place_byte(package: Path) -> None:
    content = last_byte((package / WEIGHTS).read_bytes())
    (package / WEIGHTS).unlink()
    (package / WEIGHTS).write_bytes(content)


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "rms_norm_eps": (in_text_config(rms_norm_eps=1e-3), "made again"),
    "rope_theta": (in_text_config(rope_theta=1.0), "made again"),
    "eos_token_id": (in_config(eos_token_id=0), "made again"),
    "vision_feature_layer": (in_config(vision_feature_layer=-1), "made again"),
    "a config with code": (in_config(attn_implementation="evil/kernel"), "made again"),
    "an auto_map to elsewhere": (in_config(auto_map={"AutoModel": "evil/repo--modeling.Evil"}), "made again"),
    "other weights to load": (in_config(shortv_base={"repo_id": "evil/base", "revision": "a" * 40}), "made again"),
    "a reformatted config": (lambda p: edit(p / "config.json", lambda c: c.update(c)), ""),
    "no frozen layers": (without_frozen_layers, "made again"),
    "a card with lies": (lambda p: (p / "README.md").write_text("# Best model\n<script>x</script>"), "card"),
    "one word on the card": (
        lambda p: (p / "README.md").write_text((p / "README.md").read_text("utf-8").replace("of 4", "of 5"), "utf-8"),
        "card",
    ),
    "no card": (in_place("README.md", lambda path: path.write_text("")), "card"),
    "code in the recipe": (added("evil.py", "code"), "recipe"),
    "code among the base's files": (added("evil.py", "base"), "recipe"),
    "a pickle": (added("pytorch_model.bin", "base"), "recipe"),
    "an adapter": (added("adapter_config.json", "base"), "recipe"),
    "a custom generate": (added("generate.py", "measured"), "recipe"),
    "a picture that no evaluation made": (added("evil.png", "measured"), "made again"),
    "an evaluation that is none": (added("evaluation.json", "measured"), "made again"),
    "a processor that the base has not": (added("video_preprocessor_config.json", "base"), "base"),
    "another licence text": (added("LICENSE", "base"), "base"),
    "another tokenizer": (replaced("tokenizer.json", lambda text: text + b" "), "base"),
    "another template": (replaced("chat_template.jinja", lambda text: text + b"{# evil #}"), "base"),
    "another processor": (replaced("processor_config.json", lambda text: text + b" "), "base"),
    "other generation": (replaced("generation_config.json", lambda text: text + b" "), "base"),
    "a byte of the weights": (in_place_byte, "weights"),
    "a byte of the weights, and its hash": (replaced(WEIGHTS, last_byte), "weights"),
    "another index": (replaced("model.safetensors.index.json", lambda text: text + b" "), "base"),
    "another licence": (in_recipe(lambda r: r["card"].update(license="mit")), "made again"),
    "another config of the base": (in_recipe(lambda r: r["base"].update(config_sha256="0" * 64)), "base"),
    "another template of the card": (in_recipe(lambda r: r["card"].update(template="0" * 64)), "made again"),
    "other costs": (in_recipe(lambda r: r["cost"].update(flops_ratio=0.1)), "made again"),
    "another format of the recipe": (reformatted, "made again"),
    "another figure": (other_figure, "made again"),
    "another commit": (in_recipe(lambda r: r["base"].update(revision="0" * 40)), "card"),
    "a link to a private file": (in_place("README.md", lambda path: path.symlink_to("/etc/hostname")), "files"),
    "a pipe": (in_place("README.md", os.mkfifo), "files"),
    "a device": (in_place("tokenizer.json", lambda path: path.symlink_to("/dev/zero")), "files"),
    "a loop": (in_place("config.json", lambda path: path.symlink_to(path.name)), "files"),
    "a folder": (in_place("shortv_layers.py", lambda path: path.mkdir()), "files"),
    "weights from elsewhere": (in_place(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), "files"),
    "a recipe that is a pipe": (in_place("shortv.json", os.mkfifo), "recipe"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered(package: Path, kind: str) -> None:
    tamper, check = TAMPERED[kind]
    tamper(package)
    result = pipeline.verify(package)
    assert [each.name for each in result.checks if each.passed is False] == ([check] if check else []), result.summary
    assert "\n" not in result.summary
    if not check:
        assert result.verdict == "verified"


@pytest.mark.parametrize(
    "kind",
    ["rms_norm_eps", "a card with lies", "an adapter", "another tokenizer", "a byte of the weights, and its hash"],
)
def test_what_does_not_verify_is_not_published(package: Path, kind: str) -> None:
    TAMPERED[kind][0](package)
    with pytest.raises(ShortVError, match="is not a complete package: "):
        publish(package, f"loopback/{kind.split()[-1]}")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info(f"loopback/{kind.split()[-1]}")


def test_a_good_package(package: Path) -> None:
    assert pipeline.verify(package).verdict == "verified"


def forged(tmp_path: Path, **origin: Any) -> Path:
    """A package whose recipe, card and hashes all fit changed weights."""
    base = resolve_base("acme/base")
    folder = Path(shutil.copytree(base.path, tmp_path / "forged"))
    (folder / WEIGHTS).write_bytes(last_byte((folder / WEIGHTS).read_bytes()))
    base = replace(base, path=folder, **origin)
    return make_package(base, tmp_path / "forgery", given_selection([1, 3], 4), scores=SCORES)


def test_a_forgery_is_compared_with_the_base_itself(package: Path, tmp_path: Path) -> None:
    result = pipeline.verify(forged(tmp_path))
    assert [check.name for check in result.checks if check.passed is False] == ["weights"]
    assert f"{WEIGHTS} differs from acme/base at " in result.summary


@pytest.mark.parametrize("origin", [{"repo_id": "acme/gone"}, {"revision": "0" * 40}])
def test_a_forgery_of_a_base_that_is_not_there(package: Path, tmp_path: Path, origin: dict[str, str]) -> None:
    result = pipeline.verify(forged(tmp_path, **origin))
    assert result.verdict == "verified except"
    assert [check.name for check in result.not_made] == ["base"]
    assert next(iter(origin.values())) in result.summary


def test_figures_of_other_libraries_are_not_called_verified(package: Path, tmp_path: Path) -> None:
    other_figure(package)
    edit(package / "shortv.json", lambda recipe: recipe["versions"].update(matplotlib="1.0"))
    result = pipeline.verify(package)
    assert result.verdict == "failed"  # the card names the recipe's tag
    (check,) = [each for each in result.checks if each.name == "figures"]
    assert (check.passed, "matplotlib 1.0" in check.detail) == (None, True)


def test_another_folder_is_not_taken_for_the_base(package: Path, tiny_base: Callable[..., Path]) -> None:
    opened = Package.open(package)
    same = verify_package(opened, base=resolve_base(tiny_base(num_shards=2)))
    assert (same.verdict, [check.name for check in same.not_made]) == ("verified except", ["base"])
    assert verify_package(opened, base=resolve_base(tiny_base(num_shards=2, seed=1))).verdict == "failed"


def test_what_was_compared_is_what_is_run(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and card that are swapped after the comparison are not looked at again."""
    run: list[str] = []

    def swap(inspection: Any, *_: object) -> list[Any]:
        (package / "shortv_layers.py").write_text("evil")
        run.append((inspection.package.folder / "shortv_layers.py").read_text("utf-8"))
        return []

    monkeypatch.setattr(verification, "_run", swap)
    result: Verification = pipeline.verify(package)
    assert result.verdict == "verified"
    assert "evil" not in run[0]
    assert pipeline.verify(package).verdict == "failed"


def test_weights_changed_while_they_are_compared(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the modification time is put back."""

    def write(*_: object) -> list[Any]:
        before = (package / WEIGHTS).stat()
        with (package / WEIGHTS).open("r+b") as file:
            file.write(b"\0")
        os.utime(package / WEIGHTS, ns=(before.st_atime_ns, before.st_mtime_ns))
        return []

    monkeypatch.undo()
    monkeypatch.setattr(verification, "run_isolated", write)
    result = verify_package(Package.open(package), base=None)
    assert result.verdict == "failed"
    assert "was changed while it was compared" in result.summary

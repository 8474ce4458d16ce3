"""Packages: what is in the folder, that it comes whole or not at all, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shortv_export import pipeline
from shortv_export.base.cost import flops_ratio
from shortv_export.base.model import BaseModel
from shortv_export.base.resolve import resolve_base
from shortv_export.base.shapes import LayerShape
from shortv_export.errors import ShortVError
from shortv_export.evaluation.changes import shortv
from shortv_export.evaluation.speed import measure_speed
from shortv_export.files.bundled import modeling_dir
from shortv_export.options import Budget, Choice
from shortv_export.packaging import rendering
from shortv_export.packaging.package import Package
from shortv_export.records.frozen import Frozen
from shortv_export.records.recipe import Recipe
from shortv_export.records.scores import Scores
from shortv_export.records.selection import Selection
from tests.support.packages import inspected, make_package
from tests.support.tiny_families import base_class, tiny_config

FROZEN = Selection((1, 3), 4, "given", {"num_frozen": 2})
SCORES = Scores((0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2)


def code_of(model_type: str) -> set[str]:
    own = {f"configuration_shortv_{model_type}.py", f"modeling_shortv_{model_type}.py"}
    return {*own, "shortv_layers.py", "shortv_weights.py"}


@pytest.fixture
def base(tiny_base: Callable[..., Path], tmp_path: Path) -> BaseModel:
    """A base in two shards, in a folder that a test may change."""
    return resolve_base(shutil.copytree(tiny_base(num_shards=2), tmp_path / "base"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(*arguments: object, **options: object) -> str:
    """The message of a refused `build_package`: one line, that ends as a sentence."""
    with pytest.raises(ShortVError) as caught:
        make_package(*arguments, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_contents(tiny_base: Callable[..., Path], model_type: str, tmp_path: Path) -> None:
    folder = tiny_base(model_type, num_shards=2)
    base = resolve_base(folder)
    out = make_package(base, tmp_path / "deep" / "out", FROZEN)
    assert out == tmp_path / "deep" / "out"

    files = contents(out)
    code = code_of(model_type)
    carried = set(files) - {*code, "config.json", "shortv.json", "README.md"}
    assert carried == {path.name for path in folder.iterdir()} - {"config.json", "README.md"}
    for name in carried:
        assert files[name] == (folder / name).read_bytes()
    # What names no family is the file in modeling/; what does, too, for LLaVA.
    for name in code if model_type == "llava" else ("shortv_layers.py", "shortv_weights.py"):
        assert files[name] == (modeling_dir() / name).read_bytes()

    stock, config = json.loads((folder / "config.json").read_text()), json.loads(files["config.json"])
    own = {"model_type", "architectures", "auto_map", "frozen_layers"}
    assert {name: value for name, value in config.items() if name not in own} == {
        name: value for name, value in stock.items() if name not in own
    }
    assert config["model_type"] == f"shortv_{model_type}"
    assert config["frozen_layers"] == [1, 3]
    assert config["auto_map"]["AutoModel"] == f"modeling_shortv_{model_type}.{config['architectures'][0]}"

    recipe = json.loads(files["shortv.json"])
    assert recipe["base"] == {
        "repo_id": None,
        "revision": None,
        "config_sha256": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        "files": {
            name: {"sha256": hashlib.sha256(files[name]).hexdigest(), "size": len(files[name])}
            for name in sorted(carried)
        },
        "left_out": {"number": 0, "names": []},
    }
    assert recipe["code"] == {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(code)}
    assert recipe["frozen_layers"] == [1, 3]
    # 56 pixels in patches of 14 are 16 visual tokens; LLaVA-NeXT has an overview and four tiles.
    visual = 16 if model_type == "llava" else 80
    ratio = flops_ratio((LayerShape(64, 128, 64, 64),) * 4, (1, 3), 64, visual)
    assert recipe["cost"] == {"text_tokens": 64, "visual_tokens": visual, "flops_ratio": ratio}
    assert Package.open(out).tag == "shortv-" + hashlib.sha256(files["shortv.json"]).hexdigest()[:12]
    assert [check.name for check in inspected(out)] == [
        "recipe",
        "files",
        "hashes",
        "remote code",
        "made again",
        "figures",
        "weights",
        "card",
    ]
    assert all(check.passed for check in inspected(out))


def test_flops_ratio_where_layers_differ(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    """Wide dense layers 0 and 3, layers with experts between them: a ratio freezes as many as it takes of them.

    And what the packages then compute less, by PyTorch's counter, is what their recipes say.
    """
    pytest.importorskip("transformers", minversion="5.19", reason="where these experts load")
    from transformers import AutoModel

    # The config says how many visual tokens there are, so that no processor has to: LLaVA's will do.
    folder = shutil.copytree(tiny_base(), tmp_path / "base")
    config = tiny_config("qwen3_vl_moe")
    config.update({"image_seq_length": 144})
    config.text_config.update({"mlp_only_layers": [0, 3], "intermediate_size": 640})
    base_class("qwen3_vl_moe")._from_config(config).save_pretrained(folder)
    shapes = resolve_base(folder).layer_shapes
    assert [(shape.intermediate_size, shape.router_size) for shape in shapes] == [(640, 0), (96, 4), (96, 4), (640, 0)]

    for visual, expected in (((0.1, 0.3, 0.4, 0.2), (0, 3)), ((0.3, 0.1, 0.2, 0.4), (0, 1, 2))):
        scores, out = tmp_path / f"{len(expected)}.json", tmp_path / f"package-{len(expected)}"
        Scores(visual, visual, (0.0,) * 4, 1).save(scores)
        choice, budget = Choice(scores=scores), Budget(flops_ratio=0.6)
        recipe = pipeline.package(str(folder), out, choice=choice, budget=budget).recipe
        assert recipe.frozen_layers == expected
        model = AutoModel.from_pretrained(out, trust_remote_code=True)
        assert model.config.frozen_layers == list(expected)
        model.freeze_layers([])
        speed = measure_speed(model, shortv(Frozen(expected), 4), tokens=(64, 144), repeats=1)
        assert recipe.cost == {"text_tokens": 64, "visual_tokens": 144, "flops_ratio": pytest.approx(1 / speed.limit)}
        assert speed.flops_difference == pytest.approx(0, abs=1e-3)


def test_same_bytes_again(base: BaseModel, tmp_path: Path) -> None:
    first, second = (make_package(base, tmp_path / name, FROZEN, scores=SCORES) for name in ("one", "two"))
    assert contents(first) == contents(second)
    assert (first / "layer_contribution.png").is_file()
    assert Recipe.load(first / "shortv.json").to_dict()["scores"]["visual"] == list(SCORES.visual)


@pytest.mark.parametrize("kind", ["folder", "snapshot"])
def test_what_is_written_into_a_package_stays_there(base: BaseModel, tmp_path: Path, kind: str) -> None:
    """A file that is copied over a weight file changes neither the base's nor a blob of the Hub's cache."""
    if kind == "snapshot":
        blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "1"
        shutil.copytree(base.path, blobs)
        snapshot.mkdir(parents=True)
        for blob in blobs.iterdir():
            (snapshot / blob.name).symlink_to(blob)
        base = replace(base, path=snapshot)
    before = contents(base.path)
    out = make_package(base, tmp_path / "out", FROZEN)
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1
        with path.open("r+b") as file:  # keeps the inode, as `cp` does
            file.write(b"tuned")
    assert contents(base.path) == before


def test_a_copy_that_breaks_off_leaves_nothing(base: BaseModel, tmp_path: Path) -> None:
    """The system refuses to write files of more than 100 kB, as a full disk would."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert "cannot write" in refusal(base, tmp_path / "out", FROZEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_empty_folder_is_taken(base: BaseModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make_package(base, out, FROZEN)
    assert (out / "shortv.json").is_file()


def test_output_that_exists(base: BaseModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "exists and is not empty" in refusal(base, out, FROZEN)
    assert contents(out) == {"notes.txt": b"mine"}
    assert "is not a folder" in refusal(base, out / "notes.txt", FROZEN)
    assert contents(out) == {"notes.txt": b"mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


def test_output_that_cannot_be_made(base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal(base, tmp_path / "file" / "out", FROZEN)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "file"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_nothing_is_left_behind(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | OSError
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(rendering, "render_card", fail)
    expected = ShortVError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        make_package(base, tmp_path / "new" / "parents" / "out", FROZEN)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        (Selection((1,), 5, "given"), "for 5 layers, but"),
        (Selection((1, 4), 4, "given"), "between 0 and 3"),
        (Selection((-1,), 4, "given"), "between 0 and 3"),
        (Selection((2, 1), 4, "given"), "sorted, each once"),
        (Selection((1, 1), 4, "given"), "sorted, each once"),
        (Selection((True,), 4, "given"), "integers"),
    ],
)
def test_selection_for_another_model(base: BaseModel, tmp_path: Path, selection: Selection, reason: str) -> None:
    assert reason in refusal(base, tmp_path / "out", selection)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_scores_of_another_model(base: BaseModel, tmp_path: Path) -> None:
    scores = Scores((0.1, 0.2), (0.1, 0.2), (0.0, 0.0), 1)
    assert "scores are for 2 layers" in refusal(base, tmp_path / "out", FROZEN, scores=scores)
    on_the_hub = BaseModel("acme/a", "acme/a", "a" * 40, base.path, base.config, base.family, base.files)
    for other in ({"repo_id": "acme/b"}, {"repo_id": "acme/a", "revision": "b" * 40}):
        scores = Scores(SCORES.visual, SCORES.text, SCORES.text, 2, base=other)
        assert "scores were measured on" in refusal(on_the_hub, tmp_path / "out", FROZEN, scores=scores)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_config_that_is_no_json(base: BaseModel, tmp_path: Path) -> None:
    base.config["text_config"]["rope_theta"] = float("nan")
    assert "NaN" in refusal(base, tmp_path / "out", FROZEN)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


# What inspection finds


@pytest.fixture
def package(base: BaseModel, tmp_path: Path) -> Path:
    return make_package(base, tmp_path / "out", FROZEN)


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (lambda p: (p / "shortv.json").unlink(), "recipe", "does not exist"),
        (lambda p: (p / "shortv.json").write_text("{"), "recipe", "not valid JSON"),
        (lambda p: edit_json(p / "shortv.json", lambda r: r.update(family="blip")), "recipe", "'blip'"),
        (lambda p: edit_json(p / "shortv.json", lambda r: r.update(family=[])), "recipe", "its family"),
        (lambda p: edit_json(p / "shortv.json", lambda r: r.update(num_layers="4")), "recipe", "its num_layers"),
        (lambda p: edit_json(p / "shortv.json", lambda r: r.update(frozen_layers=[4])), "recipe", "between"),
        (lambda p: edit_json(p / "shortv.json", lambda r: r["base"].update(files=[])), "recipe", "its base"),
        (lambda p: edit_json(p / "shortv.json", lambda r: r["base"]["files"].update(x=1)), "recipe", "its base"),
        (lambda p: (p / SHARD).unlink(), "files", f"missing from the package: {SHARD}"),
        (lambda p: (p / "chat_template.jinja").unlink(), "files", "missing"),
        (lambda p: (p / "pytorch_model.bin").write_bytes(b""), "files", "not of the package"),
        (lambda p: (p / "custom_generate").mkdir(), "files", "not of the package"),
        (lambda p: flip_last_byte(p / SHARD), "weights", f"{SHARD} differs"),
        (lambda p: (p / SHARD).write_bytes(b"x"), "files", "has 1 bytes"),
        (lambda p: flip_last_byte(p / "tokenizer.json"), "hashes", "tokenizer.json differs"),
        (lambda p: flip_last_byte(p / "shortv_layers.py"), "remote code", "was changed"),
        (
            lambda p: edit_json(p / "config.json", lambda c: c.update(frozen_layers=[])),
            "made again",
            "config.json was changed",
        ),
        (lambda p: edit_json(p / "config.json", lambda c: c.pop("auto_map")), "made again", "config.json was"),
        (lambda p: (p / "config.json").write_text("[]"), "made again", "not a JSON object"),
    ],
)
def test_damage_is_found(package: Path, damage: Callable[[Path], object], name: str, reason: str) -> None:
    damage(package)
    *before, last = inspected(package)
    assert all(check.passed for check in before)
    assert (last.name, last.passed) == (name, False)
    assert reason in last.detail
    assert "\n" not in last.detail


def test_code_of_another_release(package: Path) -> None:
    code = package / "shortv_layers.py"
    code.write_text("evil = True\n")
    sha256 = hashlib.sha256(code.read_bytes()).hexdigest()
    edit_json(package / "shortv.json", lambda recipe: recipe["code"].update({code.name: sha256}))
    last = inspected(package)[-1]
    assert (last.name, last.passed) == ("remote code", False)
    assert "is not this release's" in last.detail


@pytest.mark.parametrize(
    "fields", [{"attn_implementation": "evil/kernel"}, {"text_config": {"auto_map": {"AutoModel": "evil.Model"}}}]
)
def test_code_that_the_config_asks_for(package: Path, fields: dict) -> None:
    edit_json(package / "config.json", lambda config: config.update(fields))
    last = inspected(package)[-1]
    assert (last.name, last.passed) == ("made again", False)
    assert "asks for code or weights from elsewhere" in last.detail


def test_code_that_a_carried_file_asks_for(package: Path) -> None:
    """A tokenizer's `auto_map` would be followed by loaders that were told to trust the repository."""
    config = package / "tokenizer_config.json"
    edit_json(config, lambda value: value.update({"auto_map": {"AutoTokenizer": "evil.Tokenizer"}}))
    entry = {"sha256": hashlib.sha256(config.read_bytes()).hexdigest(), "size": config.stat().st_size}
    edit_json(package / "shortv.json", lambda recipe: recipe["base"]["files"].update({config.name: entry}))
    last = inspected(package)[-1]
    assert (last.name, last.passed) == ("made again", False)
    assert "auto_map" in last.detail


def test_what_downloads_leave_is_no_damage(package: Path) -> None:
    (package / ".gitattributes").write_text("")
    (package / ".cache").mkdir()
    assert inspected(package)[-1].passed

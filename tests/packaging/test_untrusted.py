"""Whatever the files of a base or a recipe say: a package or a `ShortVError`, nothing outside the folder, and no text
from them in code, or unescaped on a card."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.files.bundled import modeling_dir
from shortv_export.loopback.card_metadata import front_matter
from shortv_export.packaging.build import rebuild_package
from shortv_export.packaging.card_metadata import inherited_metadata
from shortv_export.records.recipe import Recipe
from shortv_export.records.scores import Scores
from shortv_export.selection.presets import given_selection
from tests.support.packages import inspected, make_package

SCORES = Scores((0.3, 0.02, 0.5, 0.0), (1.5, 2.0, 0.7, 0.1), (0.1, 0.01, 0.1, 0.0), 2)

# Text that would show if it were taken for YAML, Markdown, HTML, a template, a shell command, a path or a link.
HOSTILE = [
    "EVIL\n---\nlicense: EVIL\n---\n# EVIL",
    "<script>EVIL</script>",
    "`EVIL` ```\nEVIL",
    "{{ 7 * 191 }}{% EVIL %}",
    "[EVIL](javascript:EVIL) ![EVIL](x)",
    "| EVIL |",
    "$(EVIL); EVIL '\" EVIL",
    "../EVIL",
    "/EVIL",
    "EVIL/../../EVIL",
    "https://EVIL\n# EVIL",
    "EVIL\u2028EVIL\x00\u202eEVIL",
    "\ud800EVIL",
    "EVIL" * 5000,
]

numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 2**31, 2**63, 1e308, True])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=20) | st.sampled_from(HOSTILE)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(HOSTILE), inner, max_size=3)
    ),
)

SETTINGS = settings(suppress_health_check=list(HealthCheck))


@st.composite
def edits(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with one to three of its values, at any depth, removed or replaced by anything."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = None, None
        value = document
        while isinstance(value, dict | list) and value and (parent is None or draw(st.integers(0, 3))):
            parent = value
            key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
            value = value[key]
        if parent is None:
            return draw(values)
        if isinstance(parent, dict) and draw(st.booleans()):
            parent[draw(st.text(max_size=8) | st.sampled_from(HOSTILE))] = draw(values)
        elif draw(st.integers(0, 4)):
            parent[key] = draw(values)
        else:
            del parent[key]
    return document


@pytest.fixture(scope="module")
def base(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose files may be written over: each test starts by putting them back."""
    return shutil.copytree(tiny_base(num_shards=2), tmp_path_factory.mktemp("untrusted") / "base")


@pytest.fixture
def clean_base(base: Path, tiny_base: Callable[..., Path]) -> Iterator[Path]:
    yield base
    for path in tiny_base(num_shards=2).iterdir():
        shutil.copyfile(path, base / path.name)


@contextmanager
def alone(folder: Path, out: Path) -> Iterator[None]:
    """Nothing around `folder` changes but `out`, which vanishes afterwards; what is refused is refused in one line."""
    before = sorted(folder.parent.rglob("*"))
    try:
        yield
    except ShortVError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 1500  # noqa: PT017
        assert not out.exists()
    finally:
        shutil.rmtree(out, ignore_errors=True)
    assert sorted(folder.parent.rglob("*")) == before


def check(out: Path) -> None:
    """A package that was made is whole, its code is ours, and its card has no text from elsewhere but as data."""
    assert all(check.passed for check in inspected(out)), inspected(out)[-1]
    for path in out.glob("*.py"):
        assert path.read_bytes() == (modeling_dir() / path.name).read_bytes()
    text = (out / "README.md").read_text(encoding="utf-8")
    data, errors, warnings = front_matter(text)
    assert (errors, warnings) == ([], [])
    assert set(data) <= {
        "language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "tags", "datasets",
        "base_model", "base_model_relation",
    }  # fmt: skip
    assert "EVIL" not in data["license"]
    assert "EVIL" not in str(data.get("language"))
    assert text.count("\n---\n") == 1
    body = text.split("\n---\n")[1]
    assert body.count("```") % 2 == 0
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE))
    assert "EVIL" not in prose
    assert not re.search(r"\b1337\b", body)


def build(base: Path, out: Path, **options: Any) -> None:
    make_package(resolve_base(base), out, given_selection([1], 4), **options)
    check(out)


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@SETTINGS
@given(data=st.data())
def test_config(clean_base: Path, tmp_path: Path, tiny_base: Callable[..., Path], data: st.DataObject) -> None:
    original = json.loads((tiny_base(num_shards=2) / "config.json").read_text())
    write(clean_base / "config.json", data.draw(edits(original)))
    with alone(clean_base, tmp_path / "out"):
        build(clean_base, tmp_path / "out")


@SETTINGS
@given(
    data=st.data(),
    name=st.sampled_from(["model.safetensors.index.json", "processor_config.json", "tokenizer_config.json"]),
)
def test_other_json(clean_base: Path, tmp_path: Path, tiny_base: Callable[..., Path], name: str, data: Any) -> None:
    original = json.loads((tiny_base(num_shards=2) / name).read_text())
    write(clean_base / name, data.draw(edits(original)))
    with alone(clean_base, tmp_path / "out"):
        build(clean_base, tmp_path / "out")
    shutil.copyfile(tiny_base(num_shards=2) / name, clean_base / name)


@SETTINGS
@given(
    header=st.binary(max_size=200)
    | edits({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).map(
        lambda value: json.dumps(value).encode()
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
)
def test_header(clean_base: Path, tmp_path: Path, header: bytes, length: int | None) -> None:
    size = len(header) if length is None else length
    (clean_base / "model-00001-of-00002.safetensors").write_bytes(size.to_bytes(8, "little") + header + bytes(8))
    with alone(clean_base, tmp_path / "out"):
        build(clean_base, tmp_path / "out")


FIELDS = st.sampled_from(
    ["license", "license_name", "license_link", "language", "base_model", "tags", "datasets", "x"]
)


@SETTINGS
@example(metadata={"license": "other", "license_name": HOSTILE[0], "license_link": "javascript://EVIL"}, license=None)
@given(
    metadata=st.dictionaries(FIELDS, values | st.just("mit") | st.just("other"), max_size=6).map(
        lambda value: {"license": "other", **value}
    ),
    license=st.none() | st.sampled_from([*HOSTILE, "mit"]) | st.text(max_size=20),
)
def test_front_matter(clean_base: Path, tmp_path: Path, metadata: dict[str, Any], license: str | None) -> None:
    text = f"---\n{json.dumps(metadata)}\n---\n# EVIL\n"
    (clean_base / "README.md").write_text(text, encoding="utf-8")
    with alone(clean_base, tmp_path / "out"):
        build(clean_base, tmp_path / "out", license=license)
    hub = replace(resolve_base(clean_base), repo_id="acme/base", revision="a" * 40)
    with alone(clean_base, tmp_path / "out"):
        link = inherited_metadata(hub, license).license_link
        assert link is None or re.match(r"https?://\S+$|[\w.-]+$", link)


@SETTINGS
@given(text=st.text(max_size=200) | st.binary(max_size=200))
def test_any_card(clean_base: Path, tmp_path: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (clean_base / "README.md").write_bytes(b"---\nlicense: other\n" + data + b"\n---\n")
    with alone(clean_base, tmp_path / "out"):
        build(clean_base, tmp_path / "out")


@pytest.fixture(scope="module")
def made(base: Path, tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "package"
    return make_package(resolve_base(tiny_base(num_shards=2)), out, given_selection([1, 3], 4), scores=SCORES)


@SETTINGS
@given(data=st.data())
def test_recipe(clean_base: Path, made: Path, tmp_path: Path, data: st.DataObject) -> None:
    recipe = data.draw(edits(json.loads((made / "shortv.json").read_text())))
    write(tmp_path / "shortv.json", recipe)
    with alone(tmp_path / "shortv.json", tmp_path / "out"):
        rebuild_package(resolve_base(clean_base), tmp_path / "out", Recipe.load(tmp_path / "shortv.json"))
        # What is rebuilt is what the recipe says.
        assert json.loads((tmp_path / "out" / "shortv.json").read_text()) == recipe
        check(tmp_path / "out")


@SETTINGS
@given(data=st.data())
def test_packages_are_inspected_without_harm(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    package = tmp_path / "package"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(made, package, copy_function=os.link)
    name = data.draw(st.sampled_from(["shortv.json", "config.json", "processor_config.json"]))
    value = data.draw(edits(json.loads((package / name).read_text())))
    (package / name).unlink()
    write(package / name, value)
    with alone(package, tmp_path / "out"):
        checks = inspected(package)
        assert all("\n" not in check.detail and len(check.detail) < 1500 for check in checks)


def test_scores_and_names(clean_base: Path, tmp_path: Path) -> None:
    """What a scores file and a Hub say of themselves."""
    for text in HOSTILE[:-2]:
        calibration = {"data": text, "seed": text, "sources": [{"repo_id": text}, text], "digest": text}
        scores = replace(SCORES, calibration=calibration, base={"name": text}, versions={text: text})
        with alone(clean_base, tmp_path / "out"):
            build(clean_base, tmp_path / "out", scores=scores)


@pytest.mark.parametrize(
    "change",
    [
        {"transformers_weights": "other.safetensors"},
        {"attn_implementation": "acme/kernel"},
        {"text_config": {"attn_implementation": {"": "acme/kernel:run"}}},
        {"vision_config": {"auto_map": {"AutoModel": "evil.Model"}}},
    ],
)
def test_configs_that_ask_for_code(clean_base: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    config = json.loads((clean_base / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    write(clean_base / "config.json", config)
    with pytest.raises(ShortVError, match="asks for code or weights from elsewhere"):
        resolve_base(clean_base)

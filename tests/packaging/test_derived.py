"""A package's processor and tokenizer are its base's, also where transformers finds them by the model type."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.packaging import build as packaging
from shortv_export.packaging.build import rebuild_package
from shortv_export.packaging.derived import derive_fields
from shortv_export.packaging.json_fields import with_field
from shortv_export.packaging.package import Package
from shortv_export.pipeline import verify
from shortv_export.records.file_names import RECIPE_NAME, TOKENIZER_CONFIG_NAME
from shortv_export.records.recipe import Recipe
from shortv_export.records.selection import Selection
from tests.support.packages import inspected, make_package
from tests.support.tiny_processors import build_tiny_base, missing, older_layout

FROZEN = Selection((1, 3), 4, "given")
PROMPT = "USER: <image>\nwhat is this ? ASSISTANT:"
CLASSES = {"tokenizer_class": {"base": "LlamaTokenizer", "package": "TokenizersBackend"}}


@pytest.fixture
def base(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    """A base whose tokenizer is as LLaVA-1.5's: a `LlamaTokenizer` by name, of the older kind by its rules, where a
    space stands before each piece of text between special tokens."""
    from tokenizers import Tokenizer, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = shutil.copytree(tiny_base(), tmp_path / "base")
    image = json.loads((folder / "config.json").read_text())["image_token_index"]
    tokens = iter(["<pad>", "<s>", "</s>", "<unk>", "▁", *"\nUSERAINT:?ahinostw"])
    vocabulary: dict[str, int] = {}
    while (token := next(tokens, None)) is not None:
        if token not in vocabulary:
            vocabulary[token] = len(vocabulary) + (len(vocabulary) >= image)
    backend = Tokenizer(
        models.BPE(vocab={**vocabulary, "<image>": image}, merges=[], unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **named, additional_special_tokens=["<image>"], padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    edit(folder / TOKENIZER_CONFIG_NAME, lambda fields: fields.update(tokenizer_class="LlamaTokenizer"))
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2))


def tokens(folder: Path) -> list[str]:
    tokenizer = AutoProcessor.from_pretrained(folder, trust_remote_code=True).tokenizer
    return tokenizer.convert_ids_to_tokens(tokenizer(PROMPT)["input_ids"])


def test_text_is_split_as_by_the_base(base: Path, tmp_path: Path) -> None:
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    expected = tokens(base)
    assert expected[expected.index("<image>") + 1] == "▁"
    assert tokens(package) == expected
    assert Recipe.load(package / RECIPE_NAME).derived == {TOKENIZER_CONFIG_NAME: CLASSES}
    before, after = (json.loads((folder / TOKENIZER_CONFIG_NAME).read_text()) for folder in (base, package))
    assert after == before | {"tokenizer_class": "TokenizersBackend"}
    verify(package).raise_if_failed()
    again = rebuild_package(resolve_base(base), tmp_path / "again", Recipe.load(package / RECIPE_NAME)).folder
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in package.iterdir())


def test_verify_notices_another_tokenizer(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "derive_fields", lambda base: {})
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    assert tokens(package) != tokens(base)
    failed = verify(package).checks[-1]
    assert (failed.name, failed.passed) == ("inputs", False)
    assert "makes other" in failed.detail


def test_nothing_but_the_class_may_differ(base: Path, tmp_path: Path) -> None:
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    path = package / TOKENIZER_CONFIG_NAME
    text = path.read_text()
    for changed, reason in (
        (text.replace('"padding_side": "left"', '"padding_side": "right"'), "differs from the base's in more than"),
        (text.replace("TokenizersBackend", "LlamaTokenizer"), 'its tokenizer_class is not "TokenizersBackend"'),
        ("[]", "it is not a JSON object"),
        ('{"a": ' * 10**5, "is not valid JSON"),
    ):
        assert changed != text
        path.write_text(changed)
        failed = inspected(package)[-1]
        assert (failed.name, failed.passed) == ("made again", False)
        assert reason in failed.detail
        assert "\n" not in failed.detail


def test_the_base_on_the_hub_is_compared(base: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    """A changed file does not pass for the base's because the recipe was changed with it."""
    hub.create_repo("acme/base", files={path.name: path for path in base.iterdir()})
    package = make_package(resolve_base("acme/base"), tmp_path / "out", FROZEN)
    assert verify(package).verdict == "verified"

    path = package / TOKENIZER_CONFIG_NAME
    text = path.read_text().replace('"padding_side": "left"', '"padding_side": "right"')
    assert text != path.read_text()
    path.write_text(text)
    original = text.replace("TokenizersBackend", "LlamaTokenizer").encode()
    entry = {"sha256": hashlib.sha256(original).hexdigest(), "size": len(original)}
    edit(package / RECIPE_NAME, lambda recipe: recipe["base"]["files"].update({TOKENIZER_CONFIG_NAME: entry}))
    failed = verify(package).checks[-1]
    assert (failed.name, failed.passed) == ("base", False)
    assert failed.detail == f"acme/base is not the recipe's base: its {TOKENIZER_CONFIG_NAME} differs."


def test_a_class_that_is_right_stays(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    package = make_package(resolve_base(tiny_base()), tmp_path / "out", FROZEN)
    assert Recipe.load(package / RECIPE_NAME).derived == {}
    assert (package / TOKENIZER_CONFIG_NAME).read_bytes() == (tiny_base() / TOKENIZER_CONFIG_NAME).read_bytes()


@pytest.mark.parametrize("damage", ["tokenizer", "class"])
def test_a_tokenizer_that_does_not_load(base: Path, tmp_path: Path, damage: str) -> None:
    if damage == "tokenizer":
        (base / "tokenizer.json").write_text("{}")
    else:
        edit(base / TOKENIZER_CONFIG_NAME, lambda fields: fields.update(tokenizer_class=["LlamaTokenizer"]))
    with pytest.raises(ShortVError, match="its tokenizer cannot be loaded: ") as caught:
        make_package(resolve_base(base), tmp_path / "out", FROZEN)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_patched_by_the_model_type(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    """transformers replaces the rules of large, old Mistral tokenizers if the model type is theirs."""
    base = shutil.copytree(tiny_base(), tmp_path / "base")
    resolved = resolve_base(base)
    edit(base / "config.json", lambda config: config.update(model_type="mistral3", transformers_version="4.57.0"))
    edit(base / TOKENIZER_CONFIG_NAME, lambda fields: fields.update(fix_mistral_regex=True))
    words = {f"word{number}": 10**4 + number for number in range(10**5 + 1)}
    edit(base / "tokenizer.json", lambda tokenizer: tokenizer["model"]["vocab"].update(words))
    with pytest.raises(ShortVError, match="splits text otherwise in a package; save it"):
        derive_fields(resolved)


# Without the names of classes

FIELDS = (
    "processor_class",
    "image_processor_type",
    "video_processor_type",
    "feature_extractor_type",
    "tokenizer_class",
)
FAMILIES = [name for name in ("llava", "gemma3", "idefics3", "qwen3_vl", "internvl", "gemma4") if not missing(name)]


def without_classes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_classes(item) for name, item in value.items() if name not in FIELDS}
    return value


def describe(*folders: Path) -> list[Any]:
    """Of each folder: the classes of its processor, and what it makes of a picture and text. In a fresh process."""
    code = """
import json, sys
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
picture = Image.fromarray(np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3))
content = [{"type": "image"}, {"type": "text", "text": "what is in this picture ?"}]
for folder in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    parts = [processor, *(getattr(processor, name) for name in processor.get_attributes())]
    parts += [auto.from_pretrained(folder, trust_remote_code=True) for auto in (AutoTokenizer, AutoImageProcessor)]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[picture], text=[prompt], return_tensors="np")
    values = {name: np.asarray(value).tolist() for name, value in inputs.items()}
    print(json.dumps([[type(part).__name__ for part in parts], values]))
"""
    result = subprocess.run([sys.executable, "-c", code, *map(str, folders)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()[-len(folders) :]]


def test_what_is_found_by_model_type_is_written_down(tmp_path: Path) -> None:
    """Of several families, in the layout of today and in that before transformers 5, where each part has a file."""
    made: list[tuple[Path, Path]] = []
    for name, older in itertools.product(FAMILIES, (False, True)):
        base = build_tiny_base(tmp_path / f"{name}-{older}", name)
        if older:
            older_layout(base)
        for path in (*base.glob("*processor_config.json"), base / TOKENIZER_CONFIG_NAME):
            fields = without_classes(json.loads(path.read_text()))
            path.write_text(json.dumps(fields, indent=2)) if fields else path.unlink()
        made.append((base, make_package(resolve_base(base), tmp_path / f"{name}-{older}-package", FROZEN)))
    # A tokenizer may have no file of its own: for Gemma 3, the model type decides otherwise than for a package.
    base, package = made[FAMILIES.index("gemma3") * 2]
    assert json.loads((package / TOKENIZER_CONFIG_NAME).read_text())["tokenizer_class"] == "GemmaTokenizer"

    described = describe(*itertools.chain(*made))
    for number, (base, package) in enumerate(made):
        assert described[2 * number] == described[2 * number + 1], base.name
        opened = Package.open(package)
        derived = opened.recipe.derived
        named = {field.split(".")[-1] for fields in derived.values() for field in fields}
        assert {"processor_class", "image_processor_type"} <= named, base.name
        assert opened.restored_files == {file: (base / file).read_bytes() for file in derived}
        for file in derived:  # its formatting stays
            before = (base / file).read_text().splitlines()
            added = [line for line in (package / file).read_text().splitlines() if line not in before]
            assert len(added) == len(derived[file])
        again = rebuild_package(resolve_base(base), tmp_path / "again" / base.name, opened.recipe).folder
        assert all((again / file).read_bytes() == (package / file).read_bytes() for file in (*derived, RECIPE_NAME))


@pytest.mark.parametrize("content", ["{}", "{ }", '{\n  "crop_size": null}', '{"a": {"image_processor_type": "b"}}'])
def test_almost_empty_configurations(tmp_path: Path, tiny_base: Callable[..., Path], content: str) -> None:
    """Everything at its default, and no file for the processor or the tokenizer's settings."""
    base = shutil.copytree(tiny_base(), tmp_path / "base")
    (base / "processor_config.json").unlink()
    (base / TOKENIZER_CONFIG_NAME).unlink()
    (base / "preprocessor_config.json").write_text(content)
    edit(base / "config.json", lambda config: config.update(model_type="vipllava"))
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    processors = [AutoProcessor.from_pretrained(folder, trust_remote_code=True) for folder in (base, package)]
    assert len({type(each) for each in processors}) == 1
    assert len({type(each.image_processor) for each in processors}) == 1
    assert len({each.tokenizer.backend_tokenizer.to_str() for each in processors}) == 1
    assert Package.open(package).restored_files == {"preprocessor_config.json": content.encode()}


def test_a_file_that_the_base_does_not_have(tmp_path: Path) -> None:
    """Without `tokenizer_config.json`, the model type decides: for Gemma 3 otherwise than for a package."""
    base = build_tiny_base(tmp_path / "base", "gemma3")
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    (base / "special_tokens_map.json").write_text(json.dumps({**named, "bos_token": "<s>", "unk_token": "<unk>"}))
    (base / TOKENIZER_CONFIG_NAME).unlink()
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    opened = Package.open(package)
    assert json.loads((package / TOKENIZER_CONFIG_NAME).read_text()) == {"tokenizer_class": "GemmaTokenizer"}
    assert TOKENIZER_CONFIG_NAME not in opened.recipe.base.files
    assert opened.restored_files == {}
    assert all(check.passed for check in inspected(package))
    tokenizers = [
        AutoProcessor.from_pretrained(folder, trust_remote_code=True).tokenizer for folder in (base, package)
    ]
    assert len({type(each) for each in tokenizers}) == 1
    assert len({each.backend_tokenizer.to_str() for each in tokenizers}) == 1
    edit(package / TOKENIZER_CONFIG_NAME, lambda fields: fields.update(padding_side="right"))
    assert "holds more than the recipe says" in inspected(package)[-1].detail


def test_a_processor_that_does_not_load(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base(), tmp_path / "base")
    edit(
        base / "processor_config.json", lambda fields: fields.update(processor_class="NoProcessor", image_processor=1)
    )
    with pytest.raises(ShortVError, match="its processor cannot be loaded: ") as caught:
        make_package(resolve_base(base), tmp_path / "out", FROZEN)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# One field in a text

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    fields=st.dictionaries(st.text(), _VALUES, max_size=4),
    inner=st.none() | st.dictionaries(st.text(), _VALUES, max_size=3),
    before=st.sampled_from([None, "null", '"LlamaTokenizer"']),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    escape=st.booleans(),
)
def test_there_and_back(fields: Any, inner: Any, before: str | None, indent: Any, escape: bool) -> None:
    place, target = "kind", fields
    if inner is not None:
        place, target, fields["part"] = "part.kind", inner, inner
    target.pop("kind", None)
    if before:
        target["kind"] = json.loads(before)
    text = json.dumps(fields, indent=indent, ensure_ascii=escape)
    changed = with_field(text, place, before, '"New"')
    target["kind"] = "New"
    assert json.loads(changed) == fields
    assert with_field(changed, place, '"New"', before) == text


@pytest.mark.parametrize(
    ("text", "place", "before", "reason"),
    [
        ("[]", "kind", None, "not a JSON object"),
        ("", "kind", None, "not valid JSON"),
        ('{"a": 1', "kind", None, "not valid JSON"),
        ('{"a": ' * 10**5, "kind", None, "not valid JSON"),
        ('{"kind": "A"}', "kind", None, "it has kind already"),
        ('{"kind": "A"}', "kind", '"B"', 'its kind is not "B"'),
        ('{"kind": "\\u0041"}', "kind", '"A"', "its kind is not"),
        ('{"kind": "A", "kind": "A"}', "kind", '"A"', "it has 2 fields kind"),
        ('{"part": 1}', "part.kind", None, "not a JSON object"),
        ("{}", "part.kind", None, "it has 0 fields part"),
        ('{"part": {}, "part": {}}', "part.kind", None, "it has 2 fields part"),
    ],
)
def test_a_text_that_cannot_be_changed(text: str, place: str, before: str | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        with_field(text, place, before, '"New"')
    with pytest.raises(ValueError, match="not at the beginning"):
        with_field('{"a": 1, "kind": "A"}', "kind", '"A"', None)

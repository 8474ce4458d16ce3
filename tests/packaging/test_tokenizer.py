"""A package's tokenizer splits text as its base's does, also where transformers goes by the model type."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub
from shortv_export.packaging import build as packaging
from shortv_export.packaging.build import rebuild_package
from shortv_export.packaging.tokenizer import with_class
from shortv_export.pipeline import verify
from shortv_export.records.file_names import RECIPE_NAME, TOKENIZER_CONFIG_NAME
from shortv_export.records.recipe import Recipe
from shortv_export.records.selection import Selection
from tests.support.packages import inspected, make_package

FROZEN = Selection((1, 3), 4, "given")
PROMPT = "USER: <image>\nwhat is this ? ASSISTANT:"
CLASSES = {"base": "LlamaTokenizer", "package": "TokenizersBackend"}


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
    path = folder / TOKENIZER_CONFIG_NAME
    text = path.read_text()
    path.write_text(with_class(text, json.loads(text)["tokenizer_class"], "LlamaTokenizer"))
    return folder


def tokens(folder: Path) -> list[str]:
    tokenizer = AutoProcessor.from_pretrained(folder, trust_remote_code=True).tokenizer
    return tokenizer.convert_ids_to_tokens(tokenizer(PROMPT)["input_ids"])


def test_text_is_split_as_by_the_base(base: Path, tmp_path: Path) -> None:
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    expected = tokens(base)
    assert expected[expected.index("<image>") + 1] == "▁"
    assert tokens(package) == expected
    assert Recipe.load(package / RECIPE_NAME).tokenizer_class == CLASSES
    before, after = (json.loads((folder / TOKENIZER_CONFIG_NAME).read_text()) for folder in (base, package))
    assert after == before | {"tokenizer_class": "TokenizersBackend"}
    result = verify(package)
    result.raise_if_failed()
    again = rebuild_package(resolve_base(base), tmp_path / "again", Recipe.load(package / RECIPE_NAME)).folder
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in package.iterdir())


def test_verify_notices_another_tokenizer(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "tokenizer_classes", lambda base: None)
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
        (text.replace("TokenizersBackend", "LlamaTokenizer"), "it does not name TokenizersBackend"),
        ("[]", "tokenizer_config.json: "),
    ):
        assert changed != text
        path.write_text(changed)
        failed = inspected(package)[-1]
        assert (failed.name, failed.passed) == ("made again", False)
        assert reason in failed.detail


def test_recipe_of_a_base_without_the_file(base: Path, tmp_path: Path) -> None:
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    recipe = json.loads((package / RECIPE_NAME).read_text())
    del recipe["base"]["files"][TOKENIZER_CONFIG_NAME]
    (package / RECIPE_NAME).write_text(json.dumps(recipe))
    with pytest.raises(ShortVError, match="names a tokenizer class of a base without"):
        Recipe.load(package / RECIPE_NAME)


def test_the_base_on_the_hub_is_compared(base: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    """A changed file does not pass for the base's because the recipe was changed with it."""
    hub.create_repo("acme/base", files={path.name: path for path in base.iterdir()})
    package = make_package(resolve_base("acme/base"), tmp_path / "out", FROZEN)
    result = verify(package)
    result.raise_if_failed()
    assert {check.name: check.passed for check in result.checks}["base"] is True

    path = package / TOKENIZER_CONFIG_NAME
    text = path.read_text().replace('"padding_side": "left"', '"padding_side": "right"')
    assert text != path.read_text()
    path.write_text(text)
    original = with_class(text, "TokenizersBackend", "LlamaTokenizer").encode()
    recipe = json.loads((package / RECIPE_NAME).read_text())
    entry = {"sha256": hashlib.sha256(original).hexdigest(), "size": len(original)}
    recipe["base"]["files"][TOKENIZER_CONFIG_NAME] = entry
    (package / RECIPE_NAME).write_text(json.dumps(recipe))
    failed = verify(package).checks[-1]
    assert (failed.name, failed.passed) == ("base", False)
    assert f"{TOKENIZER_CONFIG_NAME} differs from acme/base" in failed.detail


def test_a_class_that_is_right_stays(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    package = make_package(resolve_base(tiny_base()), tmp_path / "out", FROZEN)
    assert Recipe.load(package / RECIPE_NAME).tokenizer_class is None
    assert (package / TOKENIZER_CONFIG_NAME).read_bytes() == (tiny_base() / TOKENIZER_CONFIG_NAME).read_bytes()


def test_a_tokenizer_that_does_not_load(base: Path, tmp_path: Path) -> None:
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(ShortVError, match="its tokenizer cannot be loaded: ") as caught:
        make_package(resolve_base(base), tmp_path / "out", FROZEN)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.lists(st.text())),
    st.sampled_from([None, "LlamaTokenizer"]),
    st.sampled_from([None, 2]),
)
def test_there_and_back(fields: dict, before: str | None, indent: int | None) -> None:
    fields = {name: value for name, value in fields.items() if name != "tokenizer_class"}
    text = json.dumps({**fields, **({"tokenizer_class": before} if before else {})}, indent=indent)
    try:
        changed = with_class(text, before, "TokenizersBackend")
    except ShortVError:  # nothing to put a comma behind
        assert before is None
        assert not fields
        return
    assert json.loads(changed) == {**fields, "tokenizer_class": "TokenizersBackend"}
    assert with_class(changed, "TokenizersBackend", before) == text

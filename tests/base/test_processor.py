"""A base's processor and chat template: where a template may lie, and what a broken one says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export.base import worker as limits
from shortv_export.base.processor import Processor
from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.samples.decode import Sample
from shortv_export.samples.encode import Encoder
from tests.support.tiny_llava import CHAT_TEMPLATE

TEMPLATE = CHAT_TEMPLATE.replace("ASSISTANT:", "yes")  # not the made-up prompt
WORDS = ["<s>", "USER", ":", "<image>", "what", "yes"]
NAMED = [{"name": "rag", "template": "no"}, {"name": "default", "template": TEMPLATE}]


@pytest.fixture
def folder(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    """A base that a test may change."""
    return shutil.copytree(tiny_base(), tmp_path / "base")


def edit(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file; ``...`` removes one."""
    value = {**json.loads(path.read_text("utf-8")), **fields}
    path.write_text(json.dumps({key: field for key, field in value.items() if field is not ...}), "utf-8")


def sample(photos: dict[str, Any], question: str = "what", name: str = "coffee") -> Sample:
    return Sample((photos[name],), question, None, f"{name} {question}")


def words(base: Path, sample: Sample) -> list[str]:
    """The words of a sample's prompt; those of the picture count as one."""
    ids = json.loads((base / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    with Encoder(resolve_base(base)) as encoder:
        found = encoder(sample)["input_ids"][0].tolist()
    names = {number: word for word, number in ids.items()}
    names[encoder.base.image_token_id] = "<image>"
    shown = [names[number] for number in found]
    return [word for index, word in enumerate(shown) if word != "<image>" or shown[index - 1] != "<image>"]


def as_jinja(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")


def as_json(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}), "utf-8")


def in_processor(folder: Path) -> None:
    edit(folder / "processor_config.json", chat_template=TEMPLATE)


def in_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=TEMPLATE)


def named_in_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=NAMED)


def additional(folder: Path) -> None:
    as_jinja(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("no", "utf-8")


@pytest.mark.parametrize(
    "put",
    [as_jinja, as_json, in_processor, in_tokenizer, named_in_tokenizer, additional],
    ids=lambda put: put.__name__,
)
def test_the_chat_template_is_found_wherever_it_lies(
    folder: Path, photos: dict[str, Any], caplog: pytest.LogCaptureFixture, put: Callable[[Path], None]
) -> None:
    (folder / "chat_template.jinja").unlink()
    put(folder)
    assert words(folder, sample(photos)) == WORDS
    assert "no chat template" not in caplog.text


@pytest.mark.parametrize("template", [None, "", ...])
def test_a_made_up_prompt_is_told(
    folder: Path, photos: dict[str, Any], caplog: pytest.LogCaptureFixture, template: Any
) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)
    with caplog.at_level("INFO"):
        assert words(folder, sample(photos)) == ["<s>", "USER", ":", "<image>", "what", "ASSISTANT", ":"]
    assert [record.getMessage() for record in caplog.records if "template" in record.getMessage()] == [
        f"{folder} has no chat template; its prompts are 'USER: <image>\\n{{question}} ASSISTANT:'"
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages[0]['content'] + ' ' }}", "its chat template fails: TypeError: can only concatenate list"),
        ("{{ messages[0]['content'] }}", "may be for text only"),
        ("{% for x in messages %}", "its chat template fails: "),
        ("{{ 1 + }}", "its chat template fails: "),
        ("{{ nothing.here }}", "its chat template fails: UndefinedError: 'nothing' is undefined"),
        ("{{ raise_exception('not\nfor you') }}", "its chat template fails: TemplateError: not for you"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "its chat template fails: SecurityError: "),
        ("{{ messages.append(1) }}", "its chat template fails: SecurityError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "its chat template fails: RecursionError: "),
        ("{{ range(1000000) | list }}", "its chat template fails: OverflowError: "),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}<image>",
            "its chat template takes more than 1 seconds",
        ),
        ("{{ 'x' * 10000000000 }}", "its chat template takes more than 1 GiB of memory"),
        ("{{ 7 ** (7 ** (7 ** 7)) }}", "its chat template takes more than 1 "),
        ("(" * 9000 + "{{ " + "(" * 9000 + " }}", "its chat template "),
    ],
)
def test_a_template_that_fails_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, template: str, says: str
) -> None:
    monkeypatch.setitem(limits.SECONDS, "chat template", 1.0)
    monkeypatch.setattr(limits, "MEMORY", 1 << 30)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    assert says in refusal(folder)


def refusal(folder: Path) -> str:
    base = resolve_base(folder)
    with pytest.raises(ShortVError) as caught, Processor(base) as processor:
        _ = processor.reference
    message = str(caught.value)
    assert message.startswith(f"{folder}: its ")
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("file", "fields", "says"),
    [
        ("processor_config.json", {"patch_size": ...}, "its processor cannot be used: patch_size is not set"),
        ("processor_config.json", {"patch_size": "x"}, "its processor cannot be used: TypeError"),
        ("processor_config.json", {"image_processor": 5}, "its processor cannot be loaded: "),
        ("processor_config.json", {"processor_class": "NoSuchProcessor"}, "its processor cannot be loaded: "),
        ("processor_config.json", {"chat_template": 5}, "its chat template fails: it is a int, not text"),
        (
            "processor_config.json",
            {"chat_template": {"rag": "no"}},
            "there are several (rag), and none is named default",
        ),
        ("tokenizer_config.json", {"tokenizer_class": "NoSuchTokenizer"}, ""),
        ("tokenizer_config.json", {"extra_special_tokens": 5}, "its processor cannot be loaded: "),
        ("tokenizer.json", {"model": 1}, "its processor cannot be loaded: "),
        ("tokenizer.json", {"normalizer": {"type": "Replace"}}, "its processor cannot be loaded: "),
    ],
)
def test_a_processor_that_fails_is_one_line(folder: Path, file: str, fields: dict[str, Any], says: str) -> None:
    edit(folder / file, **fields)
    if says:
        assert says in refusal(folder)
    else:  # transformers takes another class
        with Processor(resolve_base(folder)) as processor:
            assert processor.reference.visual_tokens == 16


def test_an_endless_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step makes ten letters of one, and the process aborts when it gets no more memory."""
    monkeypatch.setattr(limits, "MEMORY", 1 << 29)
    grow = {"type": "Replace", "pattern": {"String": "U"}, "content": "U" * 10}
    edit(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [grow] * 30})
    assert "its tokenizer takes more than 0.5 GiB of memory" in refusal(folder)


def test_an_enormous_picture_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMORY", 1 << 29)
    images = json.loads((folder / "processor_config.json").read_text("utf-8"))["image_processor"]
    images |= {"size": {"shortest_edge": 10**6}, "crop_size": {"height": 10**6, "width": 10**6}}
    edit(folder / "processor_config.json", image_processor=images)
    assert "its processor takes more than 0.5 GiB of memory" in refusal(folder)


def test_tokens_that_the_model_does_not_know(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["vocab"]["USER"] = 5000
    edit(folder / "tokenizer.json", model=tokenizer["model"])
    assert "its tokenizer gives the token id 5000, but its model has " in refusal(folder)


# Which sample is at fault, and which base


ODD = "{% if 'cat' in messages[0]['content'][1]['text'] %}{{ raise_exception('no cats') }}{% endif %}" + CHAT_TEMPLATE


def test_a_sample_that_fails_is_told_from_a_base_that_fails(folder: Path, photos: dict[str, Any]) -> None:
    (folder / "chat_template.jinja").write_text(ODD, "utf-8")
    with Encoder(resolve_base(folder)) as encoder:
        good, odd = sample(photos, "what ?"), sample(photos, "a cat ?")
        assert [encoder.refusal(each) for each in (good, odd, good, odd)] == [
            *(None, "the base's chat template fails: TemplateError: no cats (on a picture of 600 x 400 pixels)") * 2
        ]
        with pytest.raises(ShortVError, match=r"no cats \(on a picture of 600 x 400 pixels\); correct"):
            encoder(odd)
        assert encoder.num_tokens(good) == encoder(good)["input_ids"].shape[1]


@pytest.mark.timeout(60)
def test_the_second_endless_sample_is_the_base_s_fault(
    folder: Path, photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limits.SECONDS, "chat template", 0.5)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(ODD.replace("{{ raise_exception('no cats') }}", endless), "utf-8")
    with Encoder(resolve_base(folder)) as encoder:
        assert "takes more than 0.5 seconds (on a picture of" in str(encoder.refusal(sample(photos, "a cat ?")))
        assert encoder.refusal(sample(photos, "what ?")) is None
        with pytest.raises(ShortVError, match=r"its chat template takes more than 0\.5 seconds"):
            encoder.refusal(sample(photos, "no cat ?"))

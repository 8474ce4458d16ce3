"""What of a base goes into a package, and what is told of the rest."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig

from shortv_export.base.resolve import resolve_base
from shortv_export.loopback import LoopbackHub
from shortv_export.packaging.build import rebuild_package
from shortv_export.pipeline import verify
from shortv_export.records.recipe import Recipe
from shortv_export.records.selection import Selection
from tests.support.packages import inspected, make_package, publish

FROZEN = Selection((1, 3), 4, "given")
TEMPLATES = {"rag": "RAG {{ messages[0]['content'][0]['text'] }} {{ documents | length }}", "tool_use": "TOOL"}


@pytest.fixture
def base(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    """A base with named chat templates, in a folder that a test may change."""
    folder = shutil.copytree(tiny_base(), tmp_path / "base")
    (folder / "additional_chat_templates").mkdir()
    for name, text in TEMPLATES.items():
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def prompts(place: str | Path, **options: Any) -> dict[str, str]:
    """The prompt of each named template, by the processor and by the tokenizer."""
    conversation = [{"role": "user", "content": [{"type": "text", "text": "is there a cat ?"}]}]
    processor = AutoProcessor.from_pretrained(place, trust_remote_code=True, **options)
    names = [None, *TEMPLATES]
    return {
        f"{type(owner).__name__} {name}": owner.apply_chat_template(
            conversation, chat_template=name, documents=[], tokenize=False
        )
        for owner in (processor, processor.tokenizer)
        for name in names
    }


def test_named_chat_templates_go_all_the_way(base: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    """From a base on the Hub to a package on the Hub, and through a rebuild."""
    expected = prompts(base)
    assert set(expected.values()) >= {"RAG is there a cat ? 0", "TOOL"}
    hub.create_repo("acme/base", files=contents(base))
    package = make_package(resolve_base("acme/base"), tmp_path / "out", FROZEN)
    assert prompts(package) == expected

    push = publish(package, "loopback/model")
    published = {name: data for name, data in hub.files("loopback/model").items() if name != ".gitattributes"}
    assert published.keys() == contents(package).keys()
    assert prompts("loopback/model", revision=push.tag) == expected
    assert publish(package, "loopback/model").commit == push.commit
    verify("loopback/model", revision=push.tag).raise_if_failed()

    recipe = Recipe.load(package / "shortv.json")
    for number, source in enumerate((base, "acme/base")):
        again = rebuild_package(resolve_base(source), tmp_path / f"again{number}", recipe).folder
        assert contents(again) == contents(package)

    # A later package without them takes them away.
    shutil.rmtree(base / "additional_chat_templates")
    publish(make_package(resolve_base(base), tmp_path / "other", FROZEN), "loopback/model")
    assert not [name for name in hub.files("loopback/model") if "/" in name]


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (lambda folder: (folder / "rag.jinja").unlink(), "files", "missing from the package"),
        (lambda folder: (folder / "evil.py").write_text(""), "files", "not of the package"),
        (lambda folder: (folder / "more.jinja").write_text(""), "files", "not of the package"),
        (lambda folder: (folder / "below").mkdir(), "files", "not of the package"),
        (lambda folder: (folder / "rag.jinja").write_text("RAX"), "hashes", "additional_chat_templates/rag.jinja"),
    ],
)
def test_damaged_templates_are_found(
    base: Path, tmp_path: Path, damage: Callable[[Path], object], name: str, reason: str
) -> None:
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    damage(package / "additional_chat_templates")
    last = inspected(package)[-1]
    assert (last.name, last.passed) == (name, False)
    assert reason in last.detail


def test_every_small_file_that_transformers_reads(base: Path, tmp_path: Path) -> None:
    """Processor, tokenizer and generation settings are the base's, whatever files they come from."""
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    extra = {
        "added_tokens.json": json.dumps({"<extra>": len(vocabulary)}),
        "special_tokens_map.json": json.dumps({"unk_token": "<unk>", "bos_token": "<s>"}),
        "vocab.json": json.dumps(vocabulary),
        "vocab.txt": "\n".join(vocabulary),
        "merges.txt": "#version: 0.2\n",
        "tokenizer.5.0.json": json.dumps(tokenizer),
        "generation_config.json": json.dumps({"temperature": 0.5, "do_sample": True, "top_p": 0.9, "max_length": 77}),
        "USE_POLICY.md": "Be kind.",
    }
    for name, text in extra.items():
        (base / name).write_text(text)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["fast_tokenizer_files"] = ["tokenizer.json", "tokenizer.5.0.json"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    assert extra.keys() <= contents(package).keys()
    assert json.loads((package / "shortv.json").read_text())["base"]["left_out"] == {"number": 0, "names": []}
    ours, theirs = (AutoProcessor.from_pretrained(folder, trust_remote_code=True) for folder in (package, base))
    assert ours.to_dict() == theirs.to_dict()
    assert ours.chat_template == theirs.chat_template
    tokenizers = [AutoTokenizer.from_pretrained(folder, trust_remote_code=True) for folder in (package, base)]
    assert len({each.backend_tokenizer.to_str() for each in tokenizers}) == 1
    assert len({str(sorted(each.special_tokens_map.items())) for each in tokenizers}) == 1
    generation = [GenerationConfig.from_pretrained(folder).to_diff_dict() for folder in (package, base)]
    assert generation[0] == generation[1]
    assert generation[0]["max_length"] == 77


LEFT = {
    "pytorch_model.bin": b"x",
    "consolidated.safetensors": b"x",
    "model.safetensors.index.json": b"{}",
    "model-00001-of-00002.safetensors": b"x",
    "model.gguf": b"x",
    "modeling_llava.py": b"raise SystemExit",
    "hf_quant_config.json": b"{}",
    "custom_generate/generate.py": b"raise SystemExit",
    "onnx/model.onnx": b"x",
    "checkpoint-500/adapter_config.json": b"{}",
    "checkpoint-500/adapter_model.safetensors": b"x",
    "additional_chat_templates/notes.txt": b"x",
    "additional_chat_templates/below/rag.jinja": b"x",
}
TOLD = [
    *("additional_chat_templates/below/", "additional_chat_templates/notes.txt"),
    *("checkpoint-500/", "checkpoint-500/adapter_config.json", "config.json: auto_map", "consolidated.safetensors"),
    *("custom_generate/", "hf_quant_config.json", "model-00001-of-00002.safetensors", "model.gguf"),
    *("model.safetensors.index.json", "modeling_llava.py", "onnx/", "pytorch_model.bin"),
]


def test_what_is_left_out_is_told(
    base: Path, hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the recipe and on the screen, and the same for a folder and a repository."""
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_llava.Model"}
    (base / "config.json").write_text(json.dumps(config))
    hub.create_repo("acme/base", files={**contents(base), **LEFT, ".gitattributes": b""})
    for name, data in LEFT.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(data)
    (base / ".cache").mkdir()
    for number, source in enumerate((base, "acme/base")):
        caplog.clear()
        with caplog.at_level(logging.INFO, "shortv_export"):
            package = make_package(resolve_base(source), tmp_path / f"out{number}", FROZEN)
        recipe = Recipe.load(package / "shortv.json")
        assert recipe.base.left_out == {"number": len(TOLD), "names": TOLD}
        assert [record.message for record in caplog.records if "left out" in record.message] == [
            f"left out of the package: {', '.join(TOLD[:12])} and 2 more"
        ]
        assert not recipe.base.files.keys() & LEFT.keys()
        assert "auto_map" in json.loads((package / "config.json").read_text())

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = resolve_base("acme/base")
    again = make_package(offline, tmp_path / "offline", FROZEN)
    assert contents(again) == contents(package)
    # The cache alone does not tell: another tool may have filled it.
    Path(constants.HF_HOME, "shortv-export", "names", f"{offline.revision}.json").unlink()
    with caplog.at_level(logging.INFO, "shortv_export"):
        package = make_package(resolve_base("acme/base"), tmp_path / "unknown", FROZEN)
    assert Recipe.load(package / "shortv.json").base.left_out is None
    assert caplog.records[-1].message == (
        "offline, what else acme/base holds is not known; it is left out of the package"
    )


def test_names_of_any_kind_and_number(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On one line, without characters that hide others, and not without bounds."""
    names = [
        "line\nbreak",
        "\x1b[31mred",
        "\u202egnp.exe",
        "x" * 250,
        "B ä",
        *(f"z{number:03}" for number in range(200)),
    ]
    for name in names:
        (base / name).touch()
    (base / "raw\udcff").touch()  # the byte ff: no text in UTF-8
    (base / "nowhere").symlink_to(tmp_path / "missing")
    with caplog.at_level(logging.INFO, "shortv_export"):
        package = make_package(resolve_base(base), tmp_path / "out", FROZEN)
    told = Recipe.load(package / "shortv.json").base.left_out
    assert told is not None
    assert told["number"] == len(names) + 1
    assert len(told["names"]) == 100
    assert {"line\\nbreak", "\\x1b[31mred", "x" * 99 + "…", "B ä"} < {*told["names"]}
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert line.isprintable()
    assert line.endswith(f" and {len(names) + 1 - 12} more")

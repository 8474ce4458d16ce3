"""What makes a base unfit to be packaged as it is: refused at the first look, in one line that says what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.loopback import LoopbackHub


@pytest.fixture
def base(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base(num_shards=2), tmp_path / "base")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def put(name: str, text: str = "{}") -> Callable[[Path], None]:
    """Puts a file into the base."""

    def damage(base: Path) -> None:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)

    return damage


def config(**fields: Any) -> Callable[[Path], None]:
    return lambda base: edit(base / "config.json", lambda value: value.update(fields))


def text_config(**fields: Any) -> Callable[[Path], None]:
    return lambda base: edit(base / "config.json", lambda value: value["text_config"].update(fields))


DAMAGES = {
    "adapter": (put("adapter_config.json"), "holds an adapter (adapter_config.json); merge it into its model"),
    "weights of an adapter": (put("adapter_model.safetensors"), "holds an adapter (adapter_model.safetensors)"),
    "pickled adapter": (put("adapter_model.bin"), "holds an adapter (adapter_model.bin)"),
    "name of a template": (put("additional_chat_templates/my rag.jinja"), "rag.jinja cannot be packaged by this name"),
    "hidden template": (put("additional_chat_templates/.rag.jinja"), "rename it with letters, digits and . _ - only"),
    "template with a line break": (
        put("additional_chat_templates/a\nb.jinja"),
        "additional_chat_templates/a\\nb.jinja",
    ),
    "case": (lambda base: (put("LICENSE")(base), put("license")(base)), "LICENSE and license differ by case only"),
    "audio tokenizer": (put("audio_tokenizer_config.json"), "has an audio tokenizer, a model of its own"),
    "audio tokenizer in the processor": (
        lambda base: edit(
            base / "processor_config.json",
            lambda value: value.update(audio_tokenizer={"audio_tokenizer_name_or_path": "acme/audio"}),
        ),
        "its processor_config.json asks for code or a model of its own (audio_tokenizer)",
    ),
    "configs for other releases": (config(configuration_files=["config.4.0.0.json"]), "configuration_files"),
    "bitsandbytes": (
        config(quantization_config={"load_in_4bit": True}),
        "its weights are quantised (quantization_config",
    ),
    "gptq": (config(quantization_config={"quant_method": "gptq"}), "its weights are quantised (gptq)"),
    "odd method": (config(quantization_config={"quant_method": "a\nb"}), "its weights are quantised (a\\nb)"),
    "quantised text model": (text_config(quantization_config={"quant_method": "fp8"}), "are quantised (fp8)"),
    "compression": (config(compression_config={"quant_method": "compressed-tensors"}), "(compressed-tensors)"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_refused(
    base: Path, request: pytest.FixtureRequest, place: str, damage: Callable[[Path], object], words: str
) -> None:
    damage(base)
    source = str(base)
    if place == "hub":
        source = "acme/base"
        hub: LoopbackHub = request.getfixturevalue("hub")
        files = {path.relative_to(base).as_posix(): path for path in base.rglob("*") if path.is_file()}
        hub.create_repo(source, files=files)
    with pytest.raises(ShortVError) as caught:
        resolve_base(source, weights=False)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert message.endswith(".")


def test_every_quantisation_is_refused_by_its_name(base: Path) -> None:
    """All methods that transformers knows, as it writes them into a config; also for a part of the model."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    assert {"awq", "gptq", "fp8", "compressed-tensors", "torchao"} <= AUTO_QUANTIZATION_CONFIG_MAPPING.keys()
    config = json.loads((base / "config.json").read_text())
    for method in AUTO_QUANTIZATION_CONFIG_MAPPING:
        for place in ("text_config", "vision_config", None):
            changed = json.loads(json.dumps(config))
            (changed[place] if place else changed)["quantization_config"] = {"quant_method": method, "bits": 4}
            (base / "config.json").write_text(json.dumps(changed))
            with pytest.raises(ShortVError, match=rf"its weights are quantised \({re.escape(method)}\), which is not"):
                resolve_base(str(base), weights=False)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "uint8"])
def test_quantised_weights_without_a_word_in_the_config(base: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shard = base / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("proj.weight"))
    save_file({**tensors, name: tensors[name].to(getattr(torch, dtype))}, shard)
    with pytest.raises(ShortVError, match=rf"its weights are quantised \([A-Z0-9_]+ in {shard.name}\), which"):
        resolve_base(base)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "model-00001-of-00002.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["pipe", "link", "loop"])
def test_files_that_are_none(base: Path, tmp_path: Path, name: str, kind: str) -> None:
    (base / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(base / name)
    else:
        (tmp_path / "private").write_text("{}")
        (base / name).symlink_to(tmp_path / "private" if kind == "link" else base / name)
    if (name, kind) == ("LICENSE", "loop"):  # as if it were not there
        assert "LICENSE" not in resolve_base(base).files
        return
    with pytest.raises(ShortVError) as caught:
        resolve_base(base)
    reasons = {"pipe": "not a regular file", "link": "link out of its folder", "loop": ""}
    assert reasons[kind] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("target", [".", "../private"])
def test_a_folder_of_templates_that_is_a_link(base: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "rag.jinja").write_text("secret")
    (base / "additional_chat_templates").symlink_to(target, target_is_directory=True)
    if target == ".":  # for transformers, too, this is a template of the name "chat_template"
        named = [name for name in resolve_base(base).files if "/" in name]
        assert named == ["additional_chat_templates/chat_template.jinja"]
        return
    with pytest.raises(ShortVError, match="link out of its folder"):
        resolve_base(base)

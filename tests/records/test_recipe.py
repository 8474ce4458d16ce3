"""A recipe may come from anywhere: its types, hashes and file names are right, or it is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export.errors import ShortVError
from shortv_export.files.json_file import json_text
from shortv_export.records.file_names import HUB_ID
from shortv_export.records.recipe import Recipe

SHA = "0" * 64


def recipe() -> dict[str, Any]:
    """Every field of it, with numbers that are whole and numbers that are not."""
    return {
        "base": {
            "repo_id": "acme/base",
            "revision": "a" * 40,
            "config_sha256": SHA,
            "files": {
                "model.safetensors": {"sha256": SHA, "size": 10},
                "tokenizer_config.json": {"sha256": SHA, "size": 0},
                "additional_chat_templates/rag.jinja": {"sha256": SHA, "size": 1},
            },
            "left_out": {"number": 101, "names": ["images/", "train.py"]},
        },
        "family": "llava",
        "num_layers": 4,
        "frozen_layers": [1, 3],
        "weights": "copy",
        "selection": {
            "frozen_layers": [1, 3],
            "num_layers": 4,
            "method": "lc",
            "budget": {"max_kl": 1, "text_tokens": 64, "visual_tokens": 576.5},
            "source": None,
            "evidence": {
                "boundary": {"frozen": 1},
                "probes": [{"num_frozen": 2, "kl": 0.5, "standard_error": 0}],
                "held_out": {"data": "x"},
            },
        },
        "scores": {
            "visual": [1, 0.0, 0.5, 0.0],
            "text": [1.0] * 4,
            "visual_standard_error": [0.0] * 4,
            "num_samples": 2,
        },
        "cost": {"text_tokens": 64, "visual_tokens": 576, "flops_ratio": 1},
        "card": {"license": "mit", "template": SHA},
        "figure": SHA,
        "code": {"shortv_layers.py": SHA},
        "versions": {"shortv-export": "0.1.0", "transformers": "5.18.0", "torch": "2.13.0"},
        "derived": {
            "tokenizer_config.json": {"tokenizer_class": {"base": "LlamaTokenizer", "package": "TokenizersBackend"}},
            "processor_config.json": {
                "image_processor.image_processor_type": {"base": None, "package": "CLIPImageProcessor"},
                "processor_class": {"package": "LlavaProcessor"},
            },
        },
        "measured": {"evaluation.json": SHA, "sweep.png": SHA, ".eval_results/acme--bench.yaml": SHA},
        "format": 1,
    }


def load(folder: Path, data: Any) -> Recipe:
    (folder / "shortv.json").write_text(json.dumps(data), encoding="utf-8")
    return Recipe.load(folder / "shortv.json")


def test_what_is_read_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    data = recipe()
    loaded = load(tmp_path, data)
    assert loaded.frozen_layers == (1, 3)
    assert json_text(loaded.to_dict()) == json_text(data)
    data |= {"scores": None, "figure": None, "derived": {}, "measured": {}}
    data["base"] |= {"repo_id": None, "revision": None, "left_out": None}
    data["selection"] |= {"budget": {}, "source": "Table 8", "evidence": {}}
    assert json_text(load(tmp_path, data).to_dict()) == json_text(data)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the value at a path: ``put("base", "revision", "main")``."""

    def change(data: Any) -> None:
        *parents, key, value = path
        for parent in parents:
            data = data[parent]
        data[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            put("base", "repo_id", "../../etc"),
            "its base is missing, or not what belongs there ('base.repo_id': ",
        ),
        (put("base", "repo_id", "a/b/c"), "'base.repo_id': should be a Hub id"),
        (put("base", "revision", "main"), "'base.revision': should be a commit"),
        (put("base", "config_sha256", "A" * 64), "'base.config_sha256': should be a sha256"),
        (put("base", "config_sha256", SHA + "\n"), "'base.config_sha256'"),
        (put("base", "files", None), "'base.files'"),
        (put("base", "files", "../evil", {"sha256": SHA, "size": 1}), "'base.files.../evil.[key]': should be a file"),
        (put("base", "files", ".hidden", {"sha256": SHA, "size": 1}), "'base.files..hidden.[key]'"),
        (put("base", "files", "a\n", {"sha256": SHA, "size": 1}), r"'base.files.a\n.[key]'"),
        (put("base", "files", "ä", {"sha256": SHA, "size": 1}), "'base.files.ä.[key]'"),
        (put("base", "files", "LICENSE", {"sha256": SHA, "size": -1}), "'base.files.LICENSE.size'"),
        (put("base", "files", "LICENSE", {"sha256": SHA, "size": True}), "'base.files.LICENSE.size'"),
        (put("base", "files", "LICENSE", {"sha256": SHA}), "'base.files.LICENSE.size': field required"),
        *(
            (put("base", "files", name, {"sha256": SHA, "size": 1}), f"'base.files.{name}.[key]'")
            for name in (
                *("evil.py", "pytorch_model.bin", "adapter_config.json", "adapter_model.safetensors", "config.json"),
                *("README.md", "shortv.json", "custom_generate/generate.py", "additional_chat_templates/evil.py"),
                *("additional_chat_templates/.jinja", "additional_chat_templates/a/b.jinja", "templates/rag.jinja"),
            )
        ),
        (put("base", "left_out", []), "'base.left_out'"),
        (put("base", "left_out", {"number": -1, "names": []}), "'base.left_out.number'"),
        (put("base", "left_out", {"number": 1, "names": ["x" * 201]}), "'base.left_out.names.0'"),
        (put("base", "left_out", {"number": 101, "names": ["x"] * 101}), "'base.left_out.names'"),
        (put("base", "more", 1), "unknown field 'base.more'"),
        (put("family", 1), "'family'"),
        (put("num_layers", "4"), "'num_layers'"),
        (put("num_layers", -1), "'num_layers'"),
        (put("frozen_layers", "1"), "'frozen_layers'"),
        (put("frozen_layers", [True]), "'frozen_layers.0'"),
        (put("weights", "move"), "'weights': should be copy or reference"),
        (put("selection", "method", None), "'selection.method'"),
        (put("selection", "budget", {"seed": "1"}), "'selection.budget.seed'"),
        (put("selection", "budget", {"num_frozen": 10**400}), "'selection.budget.num_frozen'"),
        (put("selection", "budget", {"text_tokens": 0}), "'selection.budget.text_tokens'"),
        (put("selection", "budget", {"visual_tokens": 1e10}), "'selection.budget.visual_tokens'"),
        (put("selection", "evidence", {"more": {}}), "unknown field 'selection.evidence.more'"),
        (put("selection", "evidence", {"boundary": []}), "'selection.evidence.boundary'"),
        (put("selection", "evidence", {"probes": [{"num_frozen": 1, "kl": 0.1}]}), "probes.0.standard_error'"),
        (lambda data: data["selection"].pop("source"), "'selection.source': field required"),
        (put("scores", "visual", [1.0]), "scores must hold"),
        (put("scores", {}), "'scores.visual': field required"),
        (put("cost", {}), "'cost.text_tokens'"),
        (put("cost", "flops_ratio", float("inf")), "a number that is not finite"),
        (put("card", []), "'card'"),
        (put("card", "x", "\ud800"), "not valid Unicode"),
        (put("figure", "x"), "'figure': should be a sha256"),
        (put("code", "../evil.py", SHA), "'code.../evil.py.[key]'"),
        (put("code", "a.py", None), "'code.a.py'"),
        (put("versions", {"transformers": "5"}), "'versions.shortv-export': field required"),
        (put("versions", "torch", 2), "'versions.torch'"),
        (put("derived", {"config.json": {}}), "'derived.config.json.[key]'"),
        (put("derived", {"tokenizer_config.json": {"auto_map": {"package": "A"}}}), "auto_map.[key]'"),
        (put("derived", "tokenizer_config.json", {"tokenizer_class": {"package": None}}), "tokenizer_class.package'"),
        (
            put("derived", "tokenizer_config.json", {"tokenizer_class": {"package": "A", "base": "a b"}}),
            "a class name",
        ),
        (put("derived", "tokenizer_config.json", {"tokenizer_class": {}}), "tokenizer_class.package': field required"),
        (lambda data: data.pop("derived"), "its derived is missing"),
        (put("measured", "model.safetensors", SHA), "'measured.model.safetensors.[key]'"),
        (lambda data: data.pop("measured"), "its measured is missing"),
        (put("more\nlines", 1), r"unknown field 'more\nlines'"),
    ],
)
def test_a_damaged_recipe_is_one_line_that_names_the_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    data = recipe()
    change(data)
    with pytest.raises(ShortVError) as caught:
        load(tmp_path, data)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'shortv.json'} is not a ShortV recipe: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("data", [None, 1, "x", [], {}])
def test_something_else(tmp_path: Path, data: Any) -> None:
    with pytest.raises(ShortVError, match=r"is not a ShortV recipe\.$"):
        load(tmp_path, data)


def test_another_format(tmp_path: Path) -> None:
    with pytest.raises(ShortVError, match=r"has format 2; this release reads format 1\.$"):
        load(tmp_path, recipe() | {"format": 2})


@pytest.mark.parametrize("text", ["gpt2", "acme/base", "acme-1/b.a_s-e"])
def test_hub_ids(text: str) -> None:
    assert HUB_ID.fullmatch(text)


@pytest.mark.parametrize("text", ["", "..", "/a", "a/", "a/../b", "a/.b", "-a/b", "a/b/c", "a b/c", "ä/b", "a/b\n"])
def test_no_hub_ids(text: str) -> None:
    assert not HUB_ID.fullmatch(text)

"""A base whose processor and model do not fit, through the command line: one line that names which of them is off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shortv_export.base.resolve import resolve_base
from shortv_export.errors import ShortVError
from shortv_export.measure.running import running
from tests.support.packages import write_questions
from tests.support.typed import one_line


@pytest.fixture
def folder(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    """A base that a test may change."""
    return shutil.copytree(tiny_base(), tmp_path / "base")


@pytest.fixture(scope="module")
def questions(photos: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "questions", photos, ["what is this ?"], (64, 64))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (
            "processor_config.json",
            lambda value: value.update(num_additional_image_tokens=0),
            "puts 15 image tokens into a prompt where its model makes 16 image features; the weights fit config.json",
        ),
        (
            "processor_config.json",
            lambda value: value.update(patch_size=28),
            "its processor puts 4 image tokens into a prompt where its model makes 16 image features; "
            "processor_config.json has patch_size 28, config.json 14: make them agree",
        ),
        (
            "config.json",
            lambda value: value.update(vision_feature_select_strategy="full"),
            "processor_config.json has vision_feature_select_strategy 'default', config.json 'full': make them agree",
        ),
        (
            "processor_config.json",
            lambda value: value["image_processor"].update(crop_size={"height": 28, "width": 28}),
            "its model fails (ValueError: Input image size (28*28)",
        ),
        (
            "config.json",
            lambda value: value["text_config"].update(hidden_act="foo"),
            "describes no model that transformers can build: transformers has no activation function 'foo'",
        ),
        (
            "config.json",
            lambda value: value.update(vision_config={"model_type": "timm_wrapper", "architecture": "resnet18"}),
            "needs timm, which is not installed: pip install timm.",
        ),
        (
            "config.json",
            lambda value: value.update(image_token_index=5000),
            "names the image token 5000, but its model",
        ),
    ],
)
def test_which_is_off(
    run: Any, folder: Path, questions: Path, tmp_path: Path, file: str, change: Callable[[Any], Any], says: str
) -> None:
    edit(folder / file, change)
    output = tmp_path / "out" / "scores.json"
    status, out, err = run("score", folder, "--data", questions, "--num-samples", 1, "--output", output)
    assert status == 1
    assert one_line(err).startswith("error: ")
    assert says in err
    assert "Traceback" not in out
    assert not output.exists()


def test_memory_is_not_the_models_fault(folder: Path) -> None:
    base = resolve_base(folder)
    with pytest.raises(RuntimeError, match="allocate memory"), running(base):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(ShortVError, match=r"^as it is$"), running(base):
        raise ShortVError("as it is")


# Samples


def test_a_sample_that_the_base_cannot_take_is_skipped_and_counted(
    run: Any, folder: Path, photos: dict[str, Any], tmp_path: Path
) -> None:
    """Where its processor takes a plain picture: it cannot be the base's fault."""
    template = (folder / "chat_template.jinja").read_text("utf-8")
    odd = "{% if 'cat' in messages[0]['content'][1]['text'] %}{{ raise_exception('no cats') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(odd + template, "utf-8")
    scores = tmp_path / "scores.json"

    def score(folder_name: str, *questions: str) -> tuple[int, str, str]:
        data = write_questions(tmp_path / folder_name, photos, questions, (64, 64))
        rows = (data / "metadata.jsonl").read_text("utf-8").replace("what is this ?", "a cat ?", 1)
        (data / "metadata.jsonl").write_text(rows, "utf-8")
        return run("score", folder, "--data", data, "--num-samples", 7, "--output", scores)

    assert score("one", "what is this ?", "what colour ?")[0] == 0
    record = json.loads(scores.read_text("utf-8"))["calibration"]
    assert (record["num_samples"], record["skipped"], "prompt" in record) == (7, 1, False)
    scores.unlink()
    status, _, err = score("all", "a cat ?", "no cat ?")
    assert status == 1
    assert "the base's chat template fails: TemplateError: no cats (on a picture of 64 x 64 pixels)" in err
    assert not scores.exists()


def test_scores_say_that_their_prompts_are_made_up(run: Any, folder: Path, questions: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    scores = tmp_path / "scores.json"
    status, _, err = run("score", folder, "--data", questions, "--num-samples", 1, "--output", scores)
    assert status == 0
    assert "has no chat template; its prompts are 'USER: <image>\\n{question} ASSISTANT:'" in err
    assert json.loads(scores.read_text("utf-8"))["calibration"]["prompt"] == "plain"

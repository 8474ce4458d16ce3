"""The model `shortv` in lmms-eval: its real command line, offline, on a task with two photographs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shortv_export.base.definition import frozen_by_definition, text_decoder, visual_tokens
from shortv_export.base.resolve import resolve_base
from shortv_export.lmms import __main__ as lmms
from shortv_export.records.selection import Selection
from tests.support.packages import make_package

FROZEN = (0, 2)
TASK = """
task: photographs
dataset_path: imagefolder
dataset_kwargs:
  data_dir: {folder}
test_split: train
output_type: generate_until
doc_to_visual: !function own.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
process_results: !function own.score
generation_kwargs:
  max_new_tokens: 5
metric_list:
  - metric: exact
    aggregation: !function own.mean
    higher_is_better: true
"""
FUNCTIONS = """
def pictures(doc):
    return [doc["image"]]

def score(doc, results):
    return {"exact": float(results[0] == doc["answer"])}

def mean(values):
    return sum(values) / len(values)
"""


@pytest.fixture
def installed() -> None:
    pytest.importorskip("lmms_eval")


@pytest.fixture
def task(installed: None, photos: dict[str, Any], tmp_path: Path) -> Path:
    """A folder for ``--include_path`` with the task `photographs`."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("rocket", "coffee"):
        photos[name].resize((96, 64)).save(folder / f"{name}.png")
    line = {"question": "what is in this picture ?", "answer": "a cat"}
    lines = [json.dumps(line | {"file_name": f"{name}.png"}) for name in ("rocket", "coffee")]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "photographs.yaml").write_text(TASK.format(folder=folder), encoding="utf-8")
    (tasks / "own.py").write_text(FUNCTIONS, encoding="utf-8")
    return tasks


@pytest.fixture
def package(installed: None, tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    return make_package(resolve_base(tiny_base()), tmp_path / "package", Selection(FROZEN, 4, "given"))


@pytest.fixture
def run(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``run("shortv", folder, "--option", ...)`` runs our command line or, with ``strict=False``, lmms-eval's own."""

    def command(model: str, pretrained: Path, *options: str, tasks: str = "photographs", strict: bool = True) -> None:
        from lmms_eval import __main__ as own

        given = f"pretrained={pretrained},device=cpu" + (",device_map=cpu" if model == "llava_hf" else "")
        if "--force_simple" in options:  # it passes text to the template, and the package's template expects parts
            given += ",chat_template={% for message in messages %}USER: {{ message.content }} ASSISTANT:{% endfor %}"
        arguments = ["--model", model, "--model_args", given, "--include_path", str(task), "--batch_size", "1"]
        arguments += ["--output_path", str(tmp_path / "out"), "--log_samples", *options]
        monkeypatch.setattr(sys, "argv", ["lmms-eval", *arguments, *(["--tasks", tasks] if tasks else [])])
        monkeypatch.setattr(own, "cli_evaluate_single", own.cli_evaluate_single)  # undone after the test
        (lmms.main if strict else own.cli_evaluate)()

    return command


def answers(tmp_path: Path) -> list[str]:
    """The answers that the last run logged."""
    file = max((tmp_path / "out").rglob("*samples*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [line["filtered_resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]


@pytest.mark.parametrize("options", [(), ("--force_simple",)], ids=["chat", "simple"])
def test_prompts_are_those_of_llava_hf(
    run: Callable[..., None],
    tiny_base: Callable[..., Path],
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationMixin

    calls: list[dict[str, Any]] = []
    generate = GenerationMixin.generate

    def recorded(model: Any, **inputs: Any) -> Any:
        calls.append(inputs)
        return generate(model, **inputs)

    monkeypatch.setattr(GenerationMixin, "generate", recorded)
    run("llava_hf", tiny_base(), *options)
    stock, base_answers = calls.copy(), answers(tmp_path)
    calls.clear()
    run("shortv", package, *options)
    assert len(calls) == len(stock) == 2
    for ours, theirs in zip(calls, stock, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            same = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
            assert same, name

    # The answers must also be those of the definition.
    base = AutoModelForImageTextToText.from_pretrained(tiny_base())
    tokenizer = AutoTokenizer.from_pretrained(tiny_base())
    expected = []
    for inputs in stock:
        visual = visual_tokens(base.config, inputs["input_ids"])
        with frozen_by_definition(text_decoder(base).layers, FROZEN, visual):
            tokens = generate(base, **inputs)[0, visual.shape[1] :]
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    assert sorted(answers(tmp_path)) == sorted(expected)
    assert sorted(expected) != sorted(base_answers), "the comparison needs differences"


@pytest.mark.parametrize("strict", [True, False], ids=["wrapper", "lmms-eval"])
def test_a_base_is_refused(run: Callable[..., None], tiny_base: Callable[..., Path], strict: bool) -> None:
    with pytest.raises(SystemExit) as ended:
        run("shortv", tiny_base(), strict=strict)
    message = str(ended.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message


def test_what_freezes_nothing_is_refused(run: Callable[..., None], package: Path) -> None:
    for name in ("config.json", "shortv.json"):
        values = json.loads((package / name).read_text("utf-8"))
        (package / name).write_text(json.dumps(values | {"frozen_layers": []}), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^error: "):
        run("shortv", package)


def test_other_code_is_not_run(run: Callable[..., None], package: Path) -> None:
    for file in package.glob("*.py"):
        file.write_text("raise AssertionError('it ran')", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^error: .*cannot be evaluated: ") as ended:
        run("shortv", package)
    assert "it ran" not in str(ended.value.code)


@pytest.mark.parametrize("strict", [True, False], ids=["wrapper", "lmms-eval"])
@pytest.mark.parametrize("options", [(), ("--force_simple",)], ids=["chat", "simple"])
def test_a_failing_answer_is_not_an_empty_one(
    run: Callable[..., None],
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strict: bool,
    options: tuple[str, ...],
) -> None:
    from transformers import GenerationMixin

    def fail(model: Any, **inputs: Any) -> Any:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(GenerationMixin, "generate", fail)
    with pytest.raises(SystemExit, match=r"^error: .*out of memory"):
        run("shortv", package, *options, strict=strict)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tasks", ["no_such_task", ""])
def test_tasks_that_cannot_be_evaluated(run: Callable[..., None], package: Path, tasks: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run("shortv", package, tasks=tasks)
    assert ended.value.code not in (None, 0)


def test_a_task_that_fails(run: Callable[..., None], task: Path, package: Path) -> None:
    (task / "own.py").write_text(FUNCTIONS.replace('doc["answer"]', 'doc["missing"]'), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^error: "):
        run("shortv", package)


def test_without_lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    message = r"^error: lmms-eval cannot be loaded \(.*\); install the extra lmms of shortv-export\.$"
    with pytest.raises(SystemExit, match=message):
        lmms.main()

"""`handler.py`, loaded and called as Inference Endpoints do: in a fresh process, from the package's folder."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shortv_export import pipeline
from shortv_export.base.resolve import resolve_base
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Contents
from shortv_export.packaging.build import Draft, build_package
from shortv_export.records.selection import Selection
from tests.support.packages import inspected, publish

# As `huggingface_inference_toolkit.handler` does it: the module from its path, then the class by its name.
SERVER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", sys.argv[1] + "/handler.py")
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(sys.argv[1])
for line in sys.stdin:
    try:
        answer = handler(json.loads(line))
    except ValueError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""
QUESTION = "what is in this picture ?"


@pytest.fixture(scope="module")
def package(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handler") / "package"
    draft = Draft.of(resolve_base(tiny_base()), folder, Contents(handler=True))
    return build_package(draft, Selection((1, 3), 4, "given")).folder


def served(package: Path, requests: list[Any], folder: Path) -> list[Any]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    process = subprocess.run(
        [sys.executable, "-c", SERVER, str(package)],
        input="".join(json.dumps(request) + "\n" for request in requests),
        env=kept | {"HF_HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines() if line[:1] in '["']


def encoded(picture: Any) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_answers(package: Path, photos: dict[str, Any], tmp_path: Path) -> None:
    """Those of the package itself, greedy; with a bare image, a data URL, two images and none."""
    from transformers import AutoModel, AutoProcessor

    one, other = [photos[name] for name in sorted(photos)[:2]]
    asked = [[one], [other], [one, other], []]
    images = [[encoded(one)], [f"data:image/png;base64,{encoded(other)}"], [encoded(one), encoded(other)], []]
    parameters = {"max_new_tokens": 6}
    requests: list[Any] = [{"inputs": {"text": QUESTION, "images": each}, "parameters": parameters} for each in images]
    requests.append({"inputs": QUESTION, "parameters": parameters})
    found = served(package, requests, tmp_path)
    processor = AutoProcessor.from_pretrained(package, trust_remote_code=True)
    model = AutoModel.from_pretrained(package, trust_remote_code=True, dtype=torch.float32).eval()
    expected = []
    for pictures in asked:
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": QUESTION}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=prompt, images=pictures or None, return_tensors="pt")
        new = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected.append([{"generated_text": processor.decode(new, skip_special_tokens=True)}])
    assert found == [*expected, expected[-1]]
    assert len({json.dumps(answer) for answer in expected}) > 2


def test_bad_requests(package: Path, tmp_path: Path) -> None:
    """One line each; no address and no file is opened."""
    (tmp_path / "secret.png").write_bytes(b"\x89PNG")
    bad = [
        {},
        {"inputs": 3},
        {"inputs": {"text": QUESTION, "images": "x"}},
        {"inputs": {"text": QUESTION, "images": [7]}},
        {"inputs": {"text": QUESTION, "images": ["http://127.0.0.1:9/a.png"]}},
        {"inputs": {"text": QUESTION, "images": [str(tmp_path / "secret.png")]}},
        {"inputs": {"text": QUESTION, "images": [base64.b64encode(b"no picture").decode()]}},
        {"inputs": QUESTION, "parameters": [1]},
    ]
    found = served(package, bad, tmp_path)
    assert len(found) == len(bad)
    assert all(isinstance(answer, str) and answer.endswith(".") and "\n" not in answer for answer in found)


def test_it_is_part_of_the_package(
    package: Path, tiny_base: Callable[..., Path], hub: LoopbackHub, tmp_path: Path
) -> None:
    """Verified, pushed, named on the card, and made again with the rest; not there unless asked for."""
    assert all(check.passed for check in inspected(package))
    card = (package / "README.md").read_text(encoding="utf-8")
    assert "serve this model by `handler.py`" in card
    assert "--handler" in card
    names = {path.name for path in package.iterdir()}
    publish(package, "loopback/served")
    assert {name for name in hub.files("loopback/served") if name != ".gitattributes"} == names
    pipeline.rebuild(package / "shortv.json", tmp_path / "again", base=str(tiny_base()))
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {
        p.name: p.read_bytes() for p in package.iterdir()
    }
    plain = build_package(
        Draft.of(resolve_base(tiny_base()), tmp_path / "plain"), Selection((1, 3), 4, "given")
    ).folder
    assert names - {path.name for path in plain.iterdir()} == {"handler.py"}
    changed = shutil.copytree(package, tmp_path / "changed")
    (changed / "handler.py").write_text("print('mine')")
    assert not all(check.passed for check in inspected(changed))

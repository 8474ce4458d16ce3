"""`python -m shortv_export.serve` in a process of its own, asked with pictures by OpenAI's client."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shortv_export.base.resolve import resolve_base
from shortv_export.loopback import LoopbackHub
from shortv_export.records.selection import Selection
from tests.support.hub import client_of_loopback
from tests.support.packages import make_package, publish
from tests.support.servers import free_port, serving
from tests.support.tiny_llava import build_tiny_llava

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

PUBLISHED = "loopback/model"
QUESTION = "what is in this picture ?"
NEW_TOKENS = 8


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shortv_export.serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(folder), check=False)


def environment(folder: Path, hub: LoopbackHub | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    root = str(Path(__file__).resolve().parents[2])
    return kept | {"HF_HOME": str(folder / "home"), "PYTHONPATH": root} | (hub.env() if hub else {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[LoopbackHub]:
    """Holds a base, and a package without weights of its own; another package is a folder."""
    base = build_tiny_llava(folder / "base")
    with client_of_loopback(folder / "cache") as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        hub.create_repo("acme/base", files={path.name: path for path in base.iterdir()})
        resolved = resolve_base("acme/base")
        publish(make_package(resolved, folder / "one", Selection((1, 3), 4, "given"), weights="reference"), PUBLISHED)
        make_package(resolved, folder / "other", Selection((0, 1, 2), 4, "given"))
        yield hub


@pytest.fixture(scope="module")
def server(hub: LoopbackHub, folder: Path) -> Iterator[tuple[Any, str]]:
    """A client of a server of both packages, and what the server said when it started."""
    port = free_port()
    command = [sys.executable, "-m", "shortv_export.serve", PUBLISHED, "other", "--port", port, "--device", "cpu"]
    with (
        serving(command, port, folder, environment(folder, hub)) as (address, log),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client, log.read_text()


def chat(picture: Any) -> list[dict[str, Any]]:
    data = io.BytesIO()
    picture.save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


def expected(model_id: str, picture: Any) -> str:
    """What the package answers in this process, greedily."""
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
    model = AutoModel.from_pretrained(model_id, trust_remote_code=True, dtype=torch.float32).eval()
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[picture], return_tensors="pt")
    new = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert model.shortv_report()["skipped_ffn"] > 0
    return processor.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_answers(server: tuple[Any, str], hub: LoopbackHub, folder: Path, photos: dict[str, Any]) -> None:
    """Both packages answer as they do in transformers, at once and word by word."""
    client, _ = server
    answers = set()
    for name, source in ((PUBLISHED, PUBLISHED), ("other", str(folder / "other"))):
        for picture in photos.values():
            asked = {"model": name, "messages": chat(picture), "temperature": 0, "max_tokens": NEW_TOKENS}
            answer = client.chat.completions.create(**asked).choices[0].message.content
            assert answer == expected(source, picture)
            parts = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**asked, stream=True)]
            assert "".join(part or "" for part in parts) == answer
            assert len([part for part in parts if part]) > 1
            answers.add((name, answer))
    assert len({answer for _, answer in answers}) > 2  # else the packages could not be told apart


def test_only_the_packages_are_served(server: tuple[Any, str], folder: Path, photos: dict[str, Any]) -> None:
    """A request must not make the server run the code of another repository, even of one that is here."""
    client, said = server
    assert [model.id for model in client.models.list()] == [PUBLISHED, "other"]
    assert f"{PUBLISHED}: 2 of 4 layers frozen, " in said
    assert "other: 3 of 4 layers frozen, " in said
    for name in ("acme/base", str(folder / "one"), f"{PUBLISHED}@main"):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=name, messages=chat(photos["chelsea"]))
        detail = refused.value.response.json()["detail"]
        assert detail == f"{name} is not served here; there are: {PUBLISHED}, other"


def test_refusals(folder: Path, tmp_path: Path) -> None:
    """One line each, before anything is loaded."""
    (tmp_path / "empty").mkdir()
    for arguments, status, words in (
        ([], 2, "name a package to serve"),
        (["empty"], 1, "shortv.json"),
        (["nobody/nothing"], 1, "nobody/nothing"),
    ):
        found = run(*arguments, folder=tmp_path)
        assert found.returncode == status, found
        (line,) = found.stderr.splitlines()
        assert line.startswith("error: "), line
        assert words in line


def test_changed_code_is_not_run(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    package = shutil.copytree(folder / "other", tmp_path / "changed")
    with (package / "modeling_shortv_llava.py").open("a") as file:
        file.write("\nopen('ran', 'w')\n")
    found = run("changed", folder=tmp_path)
    assert found.returncode == 1
    assert found.stderr.startswith("error: changed cannot be served: ")
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "ran").exists()

"""The page on this machine, asked by gradio's own client; its answers compared with transformers'."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shortv_export.base.resolve import resolve_base
from shortv_export.comparison.page import compare_words
from shortv_export.errors import ShortVError
from shortv_export.options import Placement
from shortv_export.pipeline import compare
from shortv_export.records.selection import Selection
from tests.support.packages import make_package
from tests.support.servers import free_port
from tests.support.tiny_llava import build_tiny_llava

gradio_client = pytest.importorskip("gradio_client")

QUESTION = "what is in this picture ?"
NEW_TOKENS = 8
LISTS = {"frozen_layers": [1, 3], "frozen_attention": [0], "frozen_ffn": [2]}


@pytest.fixture(scope="module")
def client(package: Path) -> Iterator[Any]:
    page = compare(str(package), placement=Placement(dtype="float32"))
    yield gradio_client.Client(page.url, verbose=False)
    page.close()


def answers(package: Path, picture: Any, dtype: Any = torch.float32) -> tuple[str, str, dict[str, Any]]:
    """What the base and the package answer, and the package's report, by `generate` alone."""
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(package, trust_remote_code=True)
    model = AutoModel.from_pretrained(package, trust_remote_code=True, dtype=dtype).eval()
    content = [{"type": "image"}] * (picture is not None) + [{"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=None if picture is None else [picture], return_tensors="pt").to(model.dtype)
    found = []
    for lists in ({"frozen_layers": []}, LISTS):
        model.freeze_layers(**lists)
        new = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        found.append(processor.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return found[0], found[1], model.shortv_report()


def text(words: list[dict[str, Any]]) -> str:
    return "".join(word["token"] for word in words or [])


def ask(client: Any, picture: Path | None, question: str = QUESTION) -> tuple[list[Any], Any]:
    image = None if picture is None else gradio_client.handle_file(str(picture))
    job = client.submit(image, question, NEW_TOKENS, api_name="/ask")
    return job, job.result(timeout=120)


def test_answers_and_facts(client: Any, package: Path, photos: dict[str, Any], tmp_path: Path) -> None:
    """Both answers are those of `generate`, they come word by word, and the skipped updates are the model's count."""
    differing = 0
    for name, photo in photos.items():
        path = tmp_path / f"{name}.png"
        photo.save(path)
        base, shortv, report = answers(package, photo.convert("RGB"))
        job, (one, base_facts, other, facts, verdict) = ask(client, path)
        assert (text(one), text(other)) == (base, shortv)
        assert len(job.outputs()) > 4
        assert "skips nothing" in base_facts
        skipped, total = report["skipped_updates"], report["total_updates"]
        assert skipped > 0
        assert f"skips {skipped:,} of {total:,} token updates ({skipped / total:.0%})" in facts
        assert re.search(r"\*\*\d+\.\d\d s\*\* to the first token \(\d+\.\d\d of the base's time\)", facts)
        assert (verdict == "Both answers are the same.") == (base.split() == shortv.split())
        differing += base.split() != shortv.split()
    assert differing  # else the two models could not be told apart


def test_without_a_picture(client: Any, package: Path) -> None:
    base, shortv, _ = answers(package, None)
    assert base == shortv
    _, (one, _, other, facts, verdict) = ask(client, None)
    assert (text(one), text(other)) == (base, shortv)
    assert "skips nothing: there is no picture" in facts
    assert verdict == "Both answers are the same."


def test_an_empty_question_is_refused_and_the_next_one_is_answered(client: Any) -> None:
    with pytest.raises(Exception, match=r"Type a question\."):
        ask(client, None, "  ")
    assert text(ask(client, None)[1][0])


def test_an_answer_that_nobody_waits_for_ends(package: Path) -> None:
    """Else its thread would go on with the next question's frozen layers."""
    from transformers import AutoModel, AutoProcessor

    from shortv_export.comparison.page import Asked

    model = AutoModel.from_pretrained(package, trust_remote_code=True, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    asked = Asked(model, AutoProcessor.from_pretrained(package, trust_remote_code=True), "{question}")
    before = threading.active_count()
    answer = asked.ask(None, QUESTION, 400)
    next(answer)
    assert threading.active_count() > before
    answer.close()
    assert threading.active_count() == before
    assert asked.frozen == LISTS


def test_words_that_differ() -> None:
    one, other, verdict = compare_words("A red cube, left of a ball.", "A red ball, left of a ball. Yes")
    assert one == [("A red", None), (" cube,", "differs"), (" left of a ball.", None)]
    assert other == [("A red", None), (" ball,", "differs"), (" left of a ball.", None), (" Yes", "differs")]
    assert verdict == (
        "The answers differ: 1 of the base's 7 words are missing from ShortV's answer, "
        "and 2 of its 8 words are others."
    )
    assert compare_words("same  words", "same words")[2] == "Both answers are the same."
    assert compare_words("", "") == ([], [], "Both answers are the same.")


def test_the_command(package: Path, tmp_path: Path) -> None:
    """It says where the page is, and ends without it when interrupted."""
    port, root = free_port(), Path(__file__).parents[2]
    command = [sys.executable, "-m", "shortv_export", "compare", str(package), "--port", str(port), "--json"]
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert json.loads("".join(lines)) == {"url": f"http://127.0.0.1:{port}/"}
        assert text(ask(gradio_client.Client(f"http://127.0.0.1:{port}/", verbose=False), None)[1][0])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert err.splitlines()[-1] == "interrupted"


def test_refusals(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = resolve_base(str(build_tiny_llava(tmp_path / "base")))
    nothing = make_package(base, tmp_path / "nothing", Selection((), 4, "given"))
    with pytest.raises(ShortVError, match="freezes no layer, so it is its base; name a package that freezes some"):
        compare(str(nothing))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ShortVError, match=rf"127\.0\.0\.1:{port} cannot be listened on; choose another `port`\."):
            compare(str(package), port=port)
    changed = make_package(base, tmp_path / "changed", Selection((1,), 4, "given"))
    (changed / "shortv_layers.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ShortVError, match="cannot be compared with its base"):
        compare(str(changed))
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ShortVError, match="needs gradio: pip install 'gradio>=6'"):
        compare(str(package))

"""A published package, served by `vllm serve` and asked with pictures by OpenAI's client."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from tests.vllm.conftest import FROZEN
from tests.vllm.engines import NEW_TOKENS, picture

MODEL = "loopback/model"
QUESTION = "what is in this picture ?"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """Holds a base, and a package without weights of its own."""
    folder = tmp_path_factory.mktemp("serve")
    base = build_tiny_llava(folder / "base", hidden_size=128, num_shards=2)
    with client_of_loopback(folder / "cache") as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        hub.create_repo("acme/base", files={path.name: path for path in base.iterdir()})
        resolved = resolve_base("acme/base")
        package = make_package(resolved, folder / "package", Selection(FROZEN, 4, "given"), weights="reference")
        publish(package, MODEL)
        yield hub


@pytest.fixture(scope="module")
def server(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server of the published package, and its log."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    metrics = folder / "metrics"
    metrics.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | hub.env()
    environment |= {
        "HF_HOME": str(folder / "home"),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    command = [Path(sys.executable).with_name("vllm"), "serve", MODEL, "--trust-remote-code", "--dtype", "float32"]
    command += ["--port", port, "--max-model-len", 512, "--max-num-batched-tokens", 64, "--enforce-eager"]
    with serving(command, port, folder, environment) as found:
        yield found


def ask(address: str, seed: int) -> list[int]:
    """The ids of the answer to a question about a picture."""
    from openai import OpenAI

    data = io.BytesIO()
    picture(seed).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    content: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    answer = OpenAI(base_url=f"{address}/v1", api_key="none").chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=NEW_TOKENS,
        # vLLM's chat adds no token for the beginning, as templates usually do.
        extra_body={"ignore_eos": True, "return_token_ids": True, "add_special_tokens": True},
    )
    return answer.choices[0].token_ids


def test_answers(server: tuple[str, Path], hub: LoopbackHub, tmp_path: Path) -> None:
    """Four at once, in chunks that cut pictures, as the published repository answers in transformers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    seeds = range(20, 26)
    with ThreadPoolExecutor(4) as pool:
        served = list(pool.map(lambda seed: ask(server[0], seed), seeds))
    processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, trust_remote_code=True, dtype=torch.float32).eval()
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    for seed, answer in zip(seeds, served, strict=True):
        inputs = processor(text=prompt, images=[picture(seed)], return_tensors="pt")
        new = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=3)
        assert answer == new[0, inputs["input_ids"].shape[1] :].tolist()


def test_what_was_skipped_is_told(server: tuple[str, Path]) -> None:
    """In the log and as metrics: 16 visual tokens of each picture, in each frozen layer."""
    address, log = server

    def skipped() -> dict[str, float]:
        text = urllib.request.urlopen(f"{address}/metrics", timeout=30).read().decode()
        found = re.findall(
            r'^vllm:shortv_skipped_token_updates_total\{.*operator="(\w+)".*\} (\S+)$', text, re.MULTILINE
        )
        return {operator: float(value) for operator, value in found}

    before = skipped()
    ask(address, seed=99)
    assert {operator: value - before.get(operator, 0) for operator, value in skipped().items()} == {
        "attention": 16 * len(FROZEN),
        "ffn": 16 * len(FROZEN),
    }
    text = log.read_text()
    assert "ShortV: 2 attention and 2 feed-forward operators of 4 decoder layers skip visual tokens." in text
    assert re.search(r"ShortV: skipped \d+ attention and \d+ feed-forward updates of visual tokens", text)

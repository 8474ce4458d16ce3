"""What cannot be served is refused with one line before an engine starts; nothing is served densely by mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shortv_export.vllm import checks
from tests.vllm.engines import engine


def edited(package: Path, out: Path, **fields: Any) -> Path:
    """A copy of a package whose config has other fields; None deletes one."""
    shutil.copytree(package, out)
    config = json.loads((out / "config.json").read_text())
    for name, value in fields.items():
        config.pop(name, None)
        if value is not None:
            config[name] = value
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frozen_layers": None}, "no `frozen_layers`"),
        ({"frozen_layers": [1, 9]}, "must lie in 0..3"),
        ({"frozen_layers": [1, True]}, "list of integers"),
        ({"frozen_layers": "1"}, "list of integers"),
        ({"frozen_layers": [1, 1]}, "a second time"),
        ({"frozen_ffn": [0, 1]}, "a second time"),
        ({"frozen_attention": [-1]}, "must lie in 0..3"),
    ],
)
def test_lists(llava: Callable[..., Path], tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    package = edited(llava(), tmp_path / "edited", **fields)
    with pytest.raises(ValueError, match=message), engine(package):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism; use tensor parallelism"),
        ({"enable_lora": True}, "LoRA; merge"),
        ({"enable_prompt_embeds": True}, "prompt embeddings"),
        ({"enable_expert_parallel": True, "tensor_parallel_size": 2}, "expert parallelism"),
        ({"compilation_config": {"mode": 1}, "enforce_eager": False}, "stock mode"),
    ],
)
def test_options(llava: Callable[..., Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), engine(llava(), **options):
        pass


def test_model_runner_v2(llava: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ValueError, match="VLLM_USE_V2_MODEL_RUNNER=0"), engine(llava()):
        pass


def test_another_vllm(llava: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A release whose metadata has a field that nobody has thought about."""
    monkeypatch.setattr(checks, "_LEFT_OUT", checks._LEFT_OUT - {"req_idx"})
    with (
        pytest.raises(ValueError, match=r"fields of CommonAttentionMetadata are unknown \(req_idx\)"),
        engine(llava()),
    ):
        pass


def test_without_the_plugin(llava: Callable[..., Path]) -> None:
    """vLLM alone refuses a package. It never runs the stock model in its place."""
    script = f"from vllm import LLM; LLM({str(llava())!r}, trust_remote_code=True, enforce_eager=True)"
    environment = {**os.environ, "VLLM_PLUGINS": ""}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "vLLM has no other way to handle" in result.stderr


def test_a_family_that_vllm_lacks(llava: Callable[..., Path], tmp_path: Path) -> None:
    names = {"model_type": "shortv_vipllava", "architectures": ["ShortVVipLlavaForConditionalGeneration"]}
    package = edited(llava(), tmp_path / "edited", **names)
    for trust in (False, True):
        with (
            pytest.raises(ValueError, match="cannot serve packages of vipllava"),
            engine(package, trust_remote_code=trust),
        ):
            pass

"""What cannot be served is refused with one line before an engine starts; nothing is served densely by mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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


def options_of(package: Path, **options: Any) -> Any:
    """What vLLM makes of its options before it starts an engine."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(package), dtype="float32", max_model_len=256, **options).create_engine_config()


def test_every_refusal(package_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on its own, in the options of a model with experts. On a CPU, vLLM refuses some itself, or drops them."""
    from vllm.config import CompilationMode, KVTransferConfig
    from vllm.config.lora import LoRAConfig

    from tests.support import tiny_processors

    base = tiny_processors.build_tiny_base(tmp_path / "base", "aria")
    config = options_of(package_of(base))
    parallel, model = config.parallel_config, config.model_config
    asked: dict[str, list[tuple[Any, str, Any]]] = {
        "pipeline parallelism": [(parallel, "pipeline_parallel_size", 2)],
        "dual batch overlap": [(parallel, "enable_dbo", True), (parallel, "ubatch_size", 2)],
        "context parallelism": [
            (parallel, "decode_context_parallel_size", 2),
            (parallel, "prefill_context_parallel_size", 2),
        ],
        "expert parallelism": [(parallel, "enable_expert_parallel", True)],
        "data parallelism of experts": [(parallel, "data_parallel_size", 2)],
        "LoRA": [(config, "lora_config", LoRAConfig())],
        "prompt embeddings": [(model, "enable_prompt_embeds", True)],
        "KV connectors": [(config, "kv_transfer_config", KVTransferConfig())],
        "speculative decoding by a model": [
            (config, "speculative_config", SimpleNamespace(method=method))
            for method in ("eagle", "draft_model", "mtp")
        ],
        "torch.compile's stock mode": [(config.compilation_config, "mode", CompilationMode.STOCK_TORCH_COMPILE)],
        "linear attention or convolutions in compiled graphs": [(type(model), "is_hybrid", True)],
        "Model Runner V2": [(os.environ, "VLLM_USE_V2_MODEL_RUNNER", "1")],
        "breakable CUDA graphs": [(os.environ, "VLLM_USE_BREAKABLE_CUDAGRAPH", "1")],
    }
    assert set(asked) == {what.partition(";")[0] for what in checks.ways_to_run(config)}
    checks.check_config(config)
    for what, changes in asked.items():
        for holder, name, value in changes:
            with monkeypatch.context() as patch:
                if holder is os.environ:
                    patch.setenv(name, value)
                else:
                    patch.setattr(holder, name, value)
                with pytest.raises(ValueError, match=f"ShortV models do not run with {what}"):
                    checks.check_config(config)


def test_another_vllm(llava: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A release whose metadata has a field that nobody has thought about."""
    monkeypatch.setattr(checks, "_LEFT_OUT", checks._LEFT_OUT - {"req_idx"})
    with (
        pytest.raises(ValueError, match=r"fields of CommonAttentionMetadata are unknown \(req_idx\)"),
        engine(llava()),
    ):
        pass


def test_an_untested_release(llava: Callable[..., Path]) -> None:
    """It is refused before the plugin imports anything of it."""
    script = (
        "import sys, vllm; vllm.__version__ = '0.33.0'; sys.modules['vllm.v1.attention.backend'] = None\n"
        f"from shortv_export.vllm import register; register()\n"
        f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(llava())!r})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "ValueError: ShortV was not tried with vLLM 0.33.0; install one of 0.31, 0.32."
    )


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

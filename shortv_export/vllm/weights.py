"""The weights of packages that refer to their base's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub import snapshot_download
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader


def base_weights(base: Any, load_config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the base's repository, at the pinned commit: only safetensors files, no code.

    Args:
        base: `shortv_base` of `config.json`.
        load_config: vLLM's.

    Raises:
        ValueError: it does not name a repository and a commit.
    """
    repo_id, revision = (base.get("repo_id"), base.get("revision")) if isinstance(base, dict) else (None, None)
    if not isinstance(repo_id, str) or not re.fullmatch(
        r"(\w[\w.-]*/)?\w[\w.-]*@[0-9a-f]{40}", f"{repo_id}@{revision}", re.ASCII
    ):
        raise ValueError(f"`shortv_base` in config.json must name a repository on the Hub and a commit, not {base!r}.")
    folder = snapshot_download(
        repo_id,
        revision=revision,
        allow_patterns=["*.safetensors", "model.safetensors.index.json"],
        cache_dir=load_config.download_dir,
    )
    loader = DefaultModelLoader(replace(load_config, load_format="safetensors"))
    yield from loader._get_weights_iterator(DefaultModelLoader.Source(folder, None, fall_back_to_pt=False))

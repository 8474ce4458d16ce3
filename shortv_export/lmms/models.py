"""lmms-eval's `llava_hf`, which loads a package and stops at the first error.

Prompts and generation settings are inherited, so the results are comparable with those of the base under ``--model
llava_hf`` of the same lmms-eval. An error ends the process with status 1, since lmms-eval counts a failed `generate`
as an empty answer and exits with status 0 after other exceptions.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lmms_eval.models.chat.llava_hf import LlavaHf as LlavaHfChat
from lmms_eval.models.simple import llava_hf
from loguru import logger
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ..errors import ShortVError, one_line, shown
from ..evaluation import require_evaluable
from ..measure import this_process
from ..packaging import Package


class ShortVSimple(llava_hf.LlavaHf):
    """The model without a chat template, for ``--force_simple``.

    Args:
        pretrained: folder or repository of a package. `evaluation.require_evaluable` checks it before its code runs.
        revision: of the repository.
        device: default: the first GPU, or the CPU.
        options: of `llava_hf`.
    """

    def __init__(
        self, pretrained: str, revision: str | None = None, device: str | None = None, **options: Any
    ) -> None:
        with _errors_end_the_process():
            package = Package.open(pretrained, revision=revision)
            require_evaluable(package)
            config = AutoConfig.from_pretrained(package.folder, trust_remote_code=True)
            model_class: Any = get_class_from_dynamic_module(config.auto_map["AutoModel"], str(package.folder))
            # `llava_hf` loads the config without remote code and looks up the class of its model type in `model_map`.
            AutoConfig.register(config.model_type, model_class.config_class, exist_ok=True)
            llava_hf.model_map[config.model_type] = model_class
            options["trust_remote_code"] = True  # for the processor
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            if this_process().num_processes == 1:  # with several processes, `llava_hf` places each itself
                options.setdefault("device_map", device)
            super().__init__(str(package.folder), device=device, **options)
            report = self.model.shortv_report()
            if any(tuple(report[name]) != layers for name, layers in package.recipe.frozen.lists.items()):
                raise ShortVError(f"{pretrained} does not freeze the layers that its recipe names.")

    def generate_until(self, requests: Any) -> Any:
        with _errors_end_the_process():
            return super().generate_until(requests)

    def loglikelihood(self, requests: Any) -> Any:
        with _errors_end_the_process():
            return super().loglikelihood(requests)

    def generate_until_multi_round(self, requests: Any) -> Any:
        with _errors_end_the_process():
            return super().generate_until_multi_round(requests)


class ShortV(ShortVSimple, LlavaHfChat):
    """The model with the chat template of its processor, lmms-eval's default."""


@contextmanager
def _errors_end_the_process() -> Iterator[None]:
    """Ends the process with status 1 at an exception, or at an error that `llava_hf` only logs."""

    def end(message: Any) -> None:
        raise SystemExit(f"error: {shown(one_line(message))}")

    sink = logger.add(end, level="ERROR", format="{message}")
    try:
        yield
    except Exception as error:
        if not isinstance(error, ShortVError):
            traceback.print_exc()
        raise SystemExit(f"error: {shown(one_line(error))}") from None
    finally:
        logger.remove(sink)

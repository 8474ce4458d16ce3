"""What transformers' server loads and lists: the packages that it was started with, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from transformers import AutoModel, AutoProcessor
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import Modality

from ..packaging import Package


def manager_of(packages: Mapping[str, Package]) -> type[ModelManager]:
    """A class to put in the place of the server's `ModelManager`.

    Stock, a request may name any repository, and the server would run its code. With this class, a request may name
    what the server was started with. Repositories stay at the commit that was checked then.

    Args:
        packages: by the name that requests give.
    """

    class PackageManager(ModelManager):
        @staticmethod
        def process_model_name(model_id: str) -> str:
            if model_id not in packages:
                names = ", ".join(packages)
                raise HTTPException(status_code=404, detail=f"{model_id} is not served here; there are: {names}")
            return model_id

        def _load_processor(self, model_id_and_revision: str, gguf_file: str | None = None) -> Any:
            return AutoProcessor.from_pretrained(packages[model_id_and_revision].folder, trust_remote_code=True)

        def _load_model(
            self,
            model_id_and_revision: str,
            tqdm_class: type | None = None,
            progress_callback: Callable[..., Any] | None = None,
            gguf_file: str | None = None,
        ) -> Any:
            return AutoModel.from_pretrained(
                packages[model_id_and_revision].folder,
                trust_remote_code=True,
                dtype=self.dtype,
                device_map=self.device,
                attn_implementation=self.attn_implementation,
                quantization_config=self.get_quantization_config(),
            )

        @staticmethod
        def get_model_modality(model: Any, processor: Any = None) -> Modality:
            return Modality.VLM

        def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
            return [
                {
                    "id": name,
                    "object": "model",
                    "created": 0,
                    "owned_by": name.split("/")[0] if package.commit else "",
                    "status": {"value": "loaded" if name in self.loaded_models else "unloaded"},
                }
                for name, package in packages.items()
            ]

    return PackageManager

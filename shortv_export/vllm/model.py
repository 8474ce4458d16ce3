"""The mix-in that makes a multimodal model of vLLM a ShortV model.

vLLM flattens the scheduled tokens of all requests into rows. In a frozen layer, the plugin lets four modules work on
the rows of text tokens only, and leaves everything else to vLLM's own model:

| module | with visual rows in the step |
|---|---|
| `qkv_proj` | queries of the text rows; keys and values of all rows |
| the attention kernel | the text rows attend; keys and values of all rows go to the paged cache, as always |
| `o_proj` | the text rows; zeros elsewhere |
| feed-forward network or experts | the text rows; zeros elsewhere |

Zeros are what a decoder layer adds to visual rows, so these leave the layer as they entered it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import CUDAGraphMode
from vllm.forward_context import ForwardContext, get_forward_context, is_forward_context_available
from vllm.logger import init_logger

from .attention import metadata_of_text_rows
from .counter import Counter
from .freeze import freeze
from .plan import Plan, make_plan
from .rows import PLAN
from .weights import base_weights

logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is below its own name


class ShortVMixin:
    """Mixed in front of a multimodal model class of vLLM: freezes what the package's config names.

    The runner asks for the embeddings of a step right before its forward pass, and tells which rows are features of
    images. If there are any, the plan of the step stands in the forward context while the stock forward runs.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._load_config = vllm_config.load_config
        self._visual: torch.Tensor | None = None
        config: Any = vllm_config.model_config.hf_config
        self._base = getattr(config, "shortv_base", None)
        self._audio_token = getattr(config, "audio_token_id", None)
        layers = self.decoder_layers()
        self.shortv = freeze(layers, config, vllm_config.compilation_config.static_forward_context)
        self.shortv_counter = Counter()
        calls = self.shortv.calls
        logger.info_once(
            "ShortV: %d attention and %d feed-forward operators of %d decoder layers skip visual tokens.",
            *(calls.get("attention", 0), calls.get("ffn", 0), len(layers)),
        )

    def decoder_layers(self) -> Any:
        """The decoder layers of the language model."""
        model: Any = self.get_language_model()  # type: ignore[attr-defined]
        return getattr(model, "model", model).layers

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        if self._base is not None:
            weights = base_weights(self._base, self._load_config)
        return super().load_weights(weights)  # type: ignore[misc]

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        self._visual = is_multimodal
        if is_multimodal is not None and self._audio_token is not None and bool(is_multimodal.any()):
            self._visual = is_multimodal & (input_ids.cpu() != self._audio_token)  # audio counts as text
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal, **kwargs
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        visual, self._visual = self._visual, None
        context = get_forward_context() if is_forward_context_available() else None
        # Warm-up passes have no metadata.
        if visual is None or context is None or not context.attn_metadata or not bool(visual.any()):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with self._planned(context, visual) as plan:
            output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if plan.calls != self.shortv.calls:
            raise RuntimeError(f"ShortV: frozen modules ran {plan.calls} times, not {self.shortv.calls}.")
        self.shortv_counter.add(plan)
        return output

    @contextmanager
    def _planned(self, context: ForwardContext, visual: torch.Tensor) -> Iterator[Plan]:
        """Puts the plan of a step into the forward context."""
        metadata = context.attn_metadata
        common = next(stock.shortv[1] for stock in metadata.values() if hasattr(stock, "shortv"))
        plan = make_plan(visual.cpu(), common.query_start_loc_cpu, common.seq_lens.device)
        mode = context.cudagraph_runtime_mode
        context.attn_metadata = metadata_of_text_rows(plan, metadata, self.shortv.attention)
        context.additional_kwargs[PLAN] = plan
        context.cudagraph_runtime_mode = CUDAGraphMode.NONE  # captured graphs hold the stock modules
        try:
            yield plan
        finally:
            context.attn_metadata, context.cudagraph_runtime_mode = metadata, mode
            del context.additional_kwargs[PLAN]

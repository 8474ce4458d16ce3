"""Attention metadata of the text rows of a step."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata, subclass_attention_backend

from .plan import Plan


@cache
def shortv_backend(stock: Any) -> Any:
    """A backend class that is `stock`, but whose metadata can also be made for the text rows of its step."""

    class Builder(stock.get_builder_cls()):  # type: ignore[misc]
        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
            # A full graph replays without the model's forward, which finds the visual rows.
            return AttentionCGSupport.NEVER

        def build(
            self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False, **kwargs: Any
        ) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, fast_build, **kwargs)
            metadata.shortv = (self, common_attn_metadata)
            return metadata

        def update_block_table(self, metadata: Any, blk_table: torch.Tensor, slot_mapping: torch.Tensor) -> Any:
            new = super().update_block_table(metadata, blk_table, slot_mapping)
            common = metadata.shortv[1].replace(block_table_tensor=blk_table, slot_mapping=slot_mapping)
            new.shortv = (self, common)
            return new

        def of_text_rows(self, plan: Plan, common: CommonAttentionMetadata) -> Any:
            # By a second builder, since some keep state between a build and the forward pass.
            if not hasattr(self, "_of_text_rows"):
                self._of_text_rows = stock.get_builder_cls()(
                    self.kv_cache_spec, self.layer_names, self.vllm_config, self.device
                )
            return self._of_text_rows.build(0, text_metadata(plan, common))

    return subclass_attention_backend("ShortV", stock, Builder)


def metadata_of_text_rows(plan: Plan, metadata: dict[str, Any], layer_names: set[str]) -> dict[str, Any]:
    """The step's metadata by layer, in which layers that freeze attention have that of the text rows."""
    derived, built = dict(metadata), {}
    for name in layer_names:
        stock = metadata[name]  # layers of one kind share it
        if id(stock) not in built:
            builder, common = stock.shortv
            built[id(stock)] = builder.of_text_rows(plan, common)
        derived[name] = built[id(stock)]
    return derived


def text_metadata(plan: Plan, common: CommonAttentionMetadata) -> CommonAttentionMetadata:
    """Metadata in which each run of text rows is a sequence of its own.

    Its queries are the run's rows, and its keys all rows of the request up to the run's last. The block table is that
    of the request. The slots, into which keys and values of all rows are written, stay the same. Bidirectional
    attention within pictures is left out: only visual rows attend so.
    """
    device, request = common.seq_lens.device, plan.request.to(common.seq_lens.device, non_blocking=True)
    upper, prefilling = common.seq_lens_cpu_upper_bound, common.is_prefilling
    seq_lens = common.seq_lens[request] - plan.rows_after.to(device, non_blocking=True)
    return CommonAttentionMetadata(
        query_start_loc=plan.starts.to(device, non_blocking=True),
        query_start_loc_cpu=plan.starts,
        seq_lens=seq_lens.to(common.seq_lens.dtype),
        seq_lens_cpu_upper_bound=None if upper is None else (upper[plan.request] - plan.rows_after).to(upper.dtype),
        num_reqs=len(plan.request),
        num_actual_tokens=len(plan.rows),
        max_query_len=plan.longest,
        max_seq_len=common.max_seq_len,
        block_table_tensor=common.block_table_tensor[request],
        slot_mapping=common.slot_mapping,
        causal=True,
        is_prefilling=None if prefilling is None else prefilling[plan.request],
        positions=None if common.positions is None else common.positions[plan.rows],
    )

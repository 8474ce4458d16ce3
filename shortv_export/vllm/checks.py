"""What is refused at start, each with one line."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import vllm
from vllm import envs
from vllm.config import CompilationMode, CUDAGraphMode
from vllm.forward_context import ForwardContext
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata

from ..engines import VLLM_RELEASES
from .freeze import read_lists

logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is below its own name

# Fields of the metadata of a step, and what becomes of them for text rows; see `attention.text_metadata`.
_MADE = {
    *("query_start_loc", "query_start_loc_cpu", "seq_lens", "num_reqs", "num_actual_tokens", "max_query_len"),
    *("max_seq_len", "block_table_tensor", "slot_mapping", "causal"),
    *("is_prefilling", "positions", "seq_lens_cpu_upper_bound"),
}
_LEFT_OUT = {
    # Other kinds of models and what is refused here: fast prefill, encoders, context parallelism, one more window.
    *("logits_indices_padded", "num_logits_indices", "max_logits_per_req"),
    *("encoder_seq_lens", "encoder_seq_lens_cpu", "dcp_local_seq_lens", "dcp_local_seq_lens_cpu_upper_bound"),
    *("req_idx", "rswa_prefix_lens", "replayssm_decode_base_cpu"),
    # Pictures whose tokens attend to each other; only visual rows do.
    "mm_req_doc_ranges",
    # Remembered results.
    *("_num_computed_tokens_cache", "_token_to_req_indices_cache", "_seq_lens_cpu", "_num_computed_tokens_cpu"),
}


def check_vllm() -> None:
    """Compares what the plugin relies on with the installed vLLM, whose modules are no public interface.

    Raises:
        ValueError: it differs; says in what.
    """
    fields = {field.name for field in dataclasses.fields(CommonAttentionMetadata)}
    known = {field.name for field in dataclasses.fields(ForwardContext)}
    expected = {
        "fields of CommonAttentionMetadata are unknown": fields - _MADE - _LEFT_OUT,
        "fields of CommonAttentionMetadata are missing": _MADE - fields,
        "fields of ForwardContext are missing": {
            *("attn_metadata", "additional_kwargs", "cudagraph_runtime_mode", "no_compile_layers")
        }
        - known,
        "parameters of Attention.forward are missing": {"query", "key", "value"} - _parameters(Attention.forward),
        "parameters of AttentionMetadataBuilder.build are missing": {"common_prefix_len", "common_attn_metadata"}
        - _parameters(AttentionMetadataBuilder.build),
    }
    for what, names in expected.items():
        if names:
            raise ValueError(
                f"ShortV does not run with vLLM {vllm.__version__}: {what} ({', '.join(sorted(names))}). "
                f"Tested releases: {', '.join(VLLM_RELEASES)}."
            )


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def checked(stock: Any) -> Any:
    """vLLM's hook of a base that looks over the configuration, followed by the checks of this file."""

    class Checked(stock):
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            check_vllm()
            stock.verify_and_update_config(vllm_config)
            check_config(vllm_config)
            prepare_compilation(vllm_config)

    return Checked


def check_config(vllm_config: Any) -> None:
    """Refuses packages without a valid list, and ways to run that do not work or were not tried with ShortV models.

    Raises:
        ValueError: one line that says what, and what to do.
    """
    model = vllm_config.model_config
    read_lists(model.hf_config, model.hf_text_config.num_hidden_layers)
    for what, found in ways_to_run(vllm_config).items():
        if found:
            raise ValueError(f"ShortV models do not run with {what}.")


def ways_to_run(vllm_config: Any) -> dict[str, bool]:
    """The refused ways to run, with what to do instead -> whether the options ask for it."""
    parallel, speculative = vllm_config.parallel_config, vllm_config.speculative_config
    model = vllm_config.model_config
    return {
        "Model Runner V2; set VLLM_USE_V2_MODEL_RUNNER=0": vllm_config.use_v2_model_runner,
        "pipeline parallelism; use tensor parallelism": parallel.pipeline_parallel_size > 1,
        "dual batch overlap; leave out --enable-dbo and --ubatch-size": parallel.use_ubatching,
        "context parallelism": max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1,
        "expert parallelism": parallel.enable_expert_parallel,
        "data parallelism of experts; start a server for each part": parallel.data_parallel_size > 1 and model.is_moe,
        "LoRA; merge the adapter into the base before it is packaged": vllm_config.lora_config is not None,
        "prompt embeddings; leave out --enable-prompt-embeds": model.enable_prompt_embeds,
        "KV connectors": vllm_config.kv_transfer_config is not None,
        "speculative decoding by a model; use the method ngram": speculative is not None
        and speculative.method not in ("ngram", "suffix"),
        "torch.compile's stock mode; use another one": vllm_config.compilation_config.mode
        == CompilationMode.STOCK_TORCH_COMPILE,
        "linear attention or convolutions in compiled graphs; use --enforce-eager": model.is_hybrid
        and not model.enforce_eager,
        "breakable CUDA graphs; unset VLLM_USE_BREAKABLE_CUDAGRAPH": bool(envs.VLLM_USE_BREAKABLE_CUDAGRAPH),
    }


def prepare_compilation(vllm_config: Any) -> None:
    """Adapts compilation: compiled graphs call frozen modules as they are, and captured graphs must not hide them."""
    compilation = vllm_config.compilation_config
    mode = compilation.cudagraph_mode
    if current_platform.is_cuda_alike() and (mode is None or mode.has_full_cudagraphs()):
        # A full graph replays without the model's forward, which finds the visual rows.
        logger.info_once("ShortV: full CUDA graphs are switched off; decoding uses piecewise graphs.")
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    if compilation.mode == CompilationMode.NONE or "all" in compilation.custom_ops:
        return
    for name in ("silu_and_mul", "gelu_and_mul"):  # else frozen feed-forward networks get the slow native ones
        if f"-{name}" not in compilation.custom_ops and f"+{name}" not in compilation.custom_ops:
            compilation.custom_ops.append(f"+{name}")

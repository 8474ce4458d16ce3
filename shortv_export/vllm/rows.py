"""Modules of frozen layers that work on the text rows of a step only.

Each is mixed into a module of vLLM's own model. Without a plan, which is without visual rows in the step, it is the
stock module. Compiled graphs hold it as one operator, which asks for the plan when it runs: so one graph serves steps
with and without visual rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.utils.torch_utils import direct_register_custom_op

from .plan import Plan

PLAN = "shortv_plan"
"""Where a step's plan is in `ForwardContext.additional_kwargs`."""

logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is below its own name
_library = torch.library.Library("shortv", "FRAGMENT")


def current_plan() -> Plan | None:
    """The plan of the running step; None if no row is visual."""
    return get_forward_context().additional_kwargs.get(PLAN) if is_forward_context_available() else None


class TextRows:
    """Mixin for a module that maps rows to rows: computes the text rows; the others are zeros.

    Attributes:
        kind: what `Plan.calls` counts it as.
        shortv_name: its name among the layers of the forward context.
        width: of its output; None if that of its input.
    """

    kind = "ffn"
    shortv_name = ""
    width: int | None = None

    def forward(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() and not args and not kwargs:
            output = torch.ops.shortv.text_rows(states, self.shortv_name, self.width or states.shape[-1])
        else:
            output = self.of_text_rows(states, *args, **kwargs)
        return (output, None) if getattr(self, "return_bias", False) else output

    def of_text_rows(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plan = current_plan()
        if plan is None:
            return self.stock(states, *args, **kwargs)
        plan.count(self.kind)
        # Other tensors have a row for each token, too.
        args = tuple(plan.take(value) if isinstance(value, torch.Tensor) else value for value in args)
        return plan.put(self.stock(plan.take(states), *args, **kwargs), len(states))

    def stock(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the stock module makes of these rows."""
        output = super().forward(states, *args, **kwargs)  # type: ignore[misc]
        if not isinstance(output, tuple):
            return output
        output, bias = output
        if bias is not None:
            raise RuntimeError(f"{self.shortv_name} returns a bias, which ShortV layers do not handle.")
        return output


class TextOutput(TextRows):
    """Mixin for the output projection of attention."""

    kind = "output"


class TextQueries(TextRows):
    """Mixin for `QKVParallelLinear`: queries of the text rows, keys and values of all rows."""

    kind = "queries"
    parts: tuple[Any, Any] | None = None  # the projections of queries, and of keys and values

    def of_text_rows(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plan = current_plan()
        if plan is None:
            return self.stock(states)
        plan.count(self.kind)
        if self.parts is None:
            return self.stock(states)  # queries of all rows; the kernel drops those of visual rows
        query, key_value = self.parts
        method: Any = self.quant_method  # type: ignore[attr-defined]
        queries = method.apply(query, plan.take(states), query.bias)
        keys_and_values = method.apply(key_value, states, key_value.bias)
        size = queries.shape[1]
        output = keys_and_values.new_empty(len(states), size + keys_and_values.shape[1])
        output[:, :size] = 0
        output[:, :size].index_copy_(0, plan.rows, queries)
        output[:, size:] = keys_and_values
        return output

    def split_when_loaded(self) -> None:
        """Splits the weights into two projections when vLLM has loaded them, before it packs them for its kernels.

        Quantised weights cannot be sliced and stay whole.
        """
        method: Any = self.quant_method  # type: ignore[attr-defined]
        if type(method) is not UnquantizedLinearMethod:
            logger.warning_once(
                "ShortV: quantised QKV projections cannot be split; queries of visual tokens are computed and dropped."
            )
            return
        pack = method.process_weights_after_loading

        def split_and_pack(layer: torch.nn.Module) -> None:
            if layer is self:
                self._split(pack)
            pack(layer)

        method.process_weights_after_loading = split_and_pack

    def _split(self, pack: Any) -> None:
        module: Any = self
        size = module.num_heads * module.head_size
        bias = (None, None) if module.bias is None else (module.bias.data[:size], module.bias.data[size:])
        parts = []
        for weight, part_bias in zip((module.weight.data[:size], module.weight.data[size:]), bias, strict=True):
            part = torch.nn.Module()
            part.weight, part.bias = torch.nn.Parameter(weight, requires_grad=False), part_bias
            pack(part)
            parts.append(part)
        self.parts = (parts[0], parts[1])


def text_kernel(stock: Any) -> Any:
    """The forward of an attention kernel's implementation: text rows attend. Other rows of `output` stay undefined.

    The plan's metadata has replaced that of the layer, and keys and values are in the cache already.
    """

    def forward(
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        plan = current_plan()
        if plan is None:
            return stock(layer, query, key, value, kv_cache, attn_metadata, output=output, **kwargs)
        plan.count("attention")
        text = output.new_empty(len(plan.rows), *output.shape[1:])
        stock(layer, plan.take(query), key, value, kv_cache, attn_metadata, output=text, **kwargs)
        return output.index_copy_(0, plan.rows, text)

    return forward


def text_mixer(stock: Any) -> Any:
    """The forward of linear attention or a convolution in the place of attention: zeros at visual rows.

    It passes a state from token to token, so `stock` computes all rows.
    """

    def forward(hidden_states: torch.Tensor, output: torch.Tensor | None = None) -> torch.Tensor | None:
        if output is None:
            return torch.ops.shortv.without_visual_rows(stock(hidden_states))
        stock(hidden_states, output)
        output.copy_(torch.ops.shortv.without_visual_rows(output))
        return None

    return forward


def _text_rows(states: torch.Tensor, name: str, width: int) -> torch.Tensor:
    return get_forward_context().no_compile_layers[name].of_text_rows(states)


def _text_rows_shape(states: torch.Tensor, name: str, width: int) -> torch.Tensor:
    return states.new_empty(states.shape[0], width)


direct_register_custom_op("text_rows", _text_rows, fake_impl=_text_rows_shape, target_lib=_library)


def _without_visual_rows(states: torch.Tensor) -> torch.Tensor:
    plan = current_plan()
    if plan is None:
        return states.clone()
    plan.count("mixer")
    return plan.put(plan.take(states), len(states))


direct_register_custom_op("without_visual_rows", _without_visual_rows, fake_impl=torch.empty_like, target_lib=_library)


@cache
def _mixed(mixin: Any, stock: Any) -> Any:
    return type(stock.__name__, (mixin, stock), {"__module__": stock.__module__})


def mix_in(part: Any, mixin: type) -> None:
    """Puts `mixin` in front of an object's class."""
    stock: Any = type(part)
    part.__class__ = _mixed(mixin, stock)

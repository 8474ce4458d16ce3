"""Frozen decoder layers: vision-language models that skip visual tokens where they hardly matter.

ShortV ("ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective Layers",
https://arxiv.org/abs/2504.00502) freezes visual tokens in the decoder layers where they hardly change the answer. In
such a layer

- every token has a key and a value, computed from the layer's input;
- only text tokens have a query, pass the output projection and the feed-forward network, and are updated;
- visual tokens leave the layer as they entered it.

A layer can also freeze one of its two operators alone: attention (visual tokens have no query and get no update from
it, and pass the feed-forward network as usual) or the feed-forward network (all tokens attend, only text passes it).

Given the same input, text tokens come out exactly as from the stock layer. This file freezes layers of a stock model
in place and changes no weight:

1. `find_text_rows` runs once per forward pass and returns a `TextRows`: which rows (positions) are text.
2. `TextRows` reaches the decoder layers as a keyword argument, as attention masks do. There is no global state.
3. `FrozenLayer`, mixed into the layer's class, runs the layer's *own* forward: on the text rows only where the
   feed-forward network is frozen, else on all rows. Inside it, `FrozenAttention` computes the keys and values of all
   rows, and the queries of the text rows or, if attention is not frozen, of all rows.

Without visual tokens, and when decoding token by token, the layers run exactly as in the stock model. ShortV speeds
up the prefill; decoding and the size of the KV cache do not change.
"""

import copyreg
import inspect
import sys
from functools import cache, partial, wraps

import torch
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

# Text models whose attention `FrozenAttention` computes: q, k, v and o projections, a rotary embedding, and in some
# models norms of queries and keys.
# fmt: off
TEXT_MODELS = (
    "llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text",
    "gemma", "gemma3_text", "cohere", "cohere2", "glm4v_text", "glm4v_moe_text", "aria_text", "paddleocr_vl_text",
)
# fmt: on


LISTS = ("frozen_layers", "frozen_attention", "frozen_ffn")  # fields of the config


def check_lists(num_layers: int, frozen_layers, frozen_attention=None, frozen_ffn=None) -> dict[str, list[int]]:
    """Returns the lists by name, sorted.

    Raises:
        ValueError: a list is bad, or names a layer that another one names. It must never silently freeze nothing.
    """
    if frozen_layers is None:
        raise ValueError("config.json has no `frozen_layers`: this checkpoint is not a ShortV model.")
    named = {}
    for name, layers in zip(LISTS, (frozen_layers, frozen_attention, frozen_ffn), strict=True):
        layers = [] if layers is None else layers
        if not isinstance(layers, (list, tuple)) or any(type(index) is not int for index in layers):
            raise ValueError(f"`{name}` must be a list of integers, not {layers!r}.")
        if len(set(layers)) < len(layers):
            raise ValueError(f"`{name}` names a layer twice: {layers}.")
        if any(not 0 <= index < num_layers for index in layers):
            raise ValueError(f"`{name}` must lie in 0..{num_layers - 1}: {layers}.")
        for other, earlier in named.items():
            if common := sorted({*layers} & {*earlier}):
                raise ValueError(f"`{other}` and `{name}` both name these layers: {common}.")
        named[name] = sorted(layers)
    return named


class TextRows:
    """The rows that frozen layers compute in one forward pass.

    Attributes:
        rows: `(batch, text)` row numbers. Entries with less text than the longest are filled up with frozen rows.
        filler: `(batch, text, 1)`, True at these filler rows, whose results are dropped; None if there are none.
        num_rows: rows of the forward pass, per batch entry.
        num_visual: visual tokens in the batch.
        updates: layer index -> what attention adds to all rows, from there to the layer's end; None if it is frozen.
        skipped: (operator, layer index) -> number of row updates that the layer skipped.
    """

    def __init__(self, rows: torch.Tensor, filler: torch.Tensor | None, num_rows: int, num_visual: int) -> None:
        self.rows = rows
        self.filler = filler
        self.num_rows = num_rows
        self.num_visual = num_visual
        self.updates = {}
        self.skipped = {}
        self._memo = {}

    def to(self, device, non_blocking=False):
        """A copy on another device. accelerate calls this on arguments of a layer that is on another device."""
        if device is None or self.rows.device == torch.device(device):
            return self
        filler = None if self.filler is None else self.filler.to(device, non_blocking=non_blocking)
        moved = TextRows(self.rows.to(device, non_blocking=non_blocking), filler, self.num_rows, self.num_visual)
        moved.updates, moved.skipped = self.updates, self.skipped  # one of each for the whole pass
        return moved

    def skip(self, operator: str, layer_idx: int) -> None:
        """Records how many row updates a layer's "attention" or "ffn" skips."""
        self.skipped[operator, layer_idx] = self.rows.shape[0] * (self.num_rows - self.rows.shape[1])

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """Selects the text rows: `(..., batch or 1, rows, width)` -> `(..., batch, text, width)`."""
        outer, (rows, width) = states.shape[:-3], states.shape[-2:]
        states = states.expand(*outer, self.rows.shape[0], rows, width)
        return states.gather(-2, self.rows[..., None].expand(*outer, -1, -1, width))

    def put_back(self, hidden_states: torch.Tensor, text_states: torch.Tensor) -> torch.Tensor:
        """The layer's output: its input with the text rows replaced."""
        if self.filler is not None:
            text_states = torch.where(self.filler, self.take(hidden_states), text_states)
        index = self.rows[..., None].expand(-1, -1, hidden_states.shape[-1])
        return hidden_states.scatter(1, index, text_states)

    def rotary(self, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The text rows of the cosine and sine tables, `(batch or 1, rows, head_dim)` each."""
        return self._once(position_embeddings[0], lambda: tuple(map(self.take, position_embeddings)))

    def mask(
        self, attention_mask, num_keys: int, dtype: torch.dtype, sliding_window: int | None = None, causal: bool = True
    ) -> torch.Tensor:
        """The text rows of the attention mask: additive, `(batch, 1, text, keys)`.

        Takes every mask that transformers passes to layers: dense, a flex-attention block mask, and for kernels that
        apply causality themselves (the last row sees the last key) a padding mask (flash attention) or None.
        """

        def gather():
            rows = self.rows[:, None, :, None]
            keys = torch.arange(num_keys, device=rows.device)
            if hasattr(attention_mask, "mask_mod"):
                batch = torch.arange(rows.shape[0], device=rows.device)[:, None, None, None]
                visible = attention_mask.mask_mod(batch, torch.zeros_like(batch), rows, keys)
            elif attention_mask is not None and attention_mask.dim() == 4:
                dense = attention_mask.expand(rows.shape[0], -1, -1, -1)
                visible = dense.gather(2, rows.expand(-1, dense.shape[1], -1, dense.shape[-1]))
            else:
                own_key = rows + (num_keys - self.num_rows)  # cached keys of earlier passes come first
                visible = keys <= own_key if causal else torch.ones_like(keys <= own_key)
                if sliding_window is not None:
                    visible = visible & ((keys - own_key).abs() < sliding_window)
                if attention_mask is not None:
                    visible = visible & attention_mask[:, None, None].bool()
            if visible.dtype != torch.bool:
                return visible  # already additive
            # Kernels would convert a boolean mask on every call; this converts it once for all layers. The lowest
            # finite number replaces -inf because a filler row may see no key at all.
            return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)

        return self._once(attention_mask, gather, num_keys, dtype, sliding_window, causal)

    def _once(self, shared, make, *details):
        # Layers share masks and rotary tables, so each is gathered once. Holding `shared` keeps its id unique.
        if torch.compiler.is_compiling():
            return make()
        key = (id(shared), *details)
        if key not in self._memo:
            self._memo[key] = (shared, make())
        return self._memo[key][1]


@torch.compiler.disable  # how many rows are text depends on the data: compile `model.forward`, which runs afterwards
def find_text_rows(visual: torch.Tensor, padding: torch.Tensor | None = None, multiple: int = 1) -> TextRows | None:
    """Finds the rows that frozen layers compute.

    Args:
        visual: `(batch, rows)` bool, True at visual tokens.
        padding: `(batch, rows)` bool, True at padding that nothing reads and that is skipped too; or None.
        multiple: filler rows are added until the number of rows is a multiple of this, or all rows are taken.

    Returns:
        A `TextRows`, or None without visual tokens: every layer then runs as in the stock model.
    """
    frozen = visual if padding is None else visual | padding
    text = frozen.shape[1] - frozen.sum(1)
    # The host waits for the device here and nowhere else.
    num_visual, shortest, longest = torch.stack([visual.sum(), text.min(), text.max()]).tolist()
    if num_visual == 0:
        return None
    # A stable sort puts the text rows first, in order, and frozen rows after them as filler. A chunk of a long prompt
    # can be all image: it gets one filler row, so that no layer runs on zero rows.
    count = -(-max(longest, 1) // multiple) * multiple
    rows = torch.argsort(frozen.to(torch.uint8), dim=1, stable=True)[:, :count]
    filler = frozen.gather(1, rows)[..., None] if shortest < rows.shape[1] else None
    return TextRows(rows, filler, frozen.shape[1], num_visual)


class FrozenAttention:
    """Mixin for an attention class: queries of the text rows, keys and values of all rows.

    `FrozenLayer` passes `text_rows`. Where it runs on the text rows only, it also passes `all_rows`, attention's input
    of all rows, and `frozen`: False if only the feed-forward network is frozen.
    """

    def forward(self, hidden_states, *args, text_rows=None, all_rows=None, frozen=True, **kwargs):
        if text_rows is None:
            return super().forward(hidden_states, *args, **kwargs)
        text_rows.updates[self.layer_idx] = None
        if not frozen:
            update, weights = super().forward(all_rows, *args, **kwargs)
            text_rows.updates[self.layer_idx] = update
            return text_rows.take(update), weights
        text_rows.skip("attention", self.layer_idx)
        if all_rows is not None:
            return self._forward_text(hidden_states, all_rows, text_rows, *args, **kwargs)
        # Attention alone is frozen: it adds nothing to the other rows.
        text = text_rows.take(hidden_states)
        update, weights = self._forward_text(text, hidden_states, text_rows, *args, **kwargs)
        return text_rows.put_back(update.new_zeros(hidden_states.shape), update), weights

    def _forward_text(self, hidden_states, all_rows, text_rows, attention_mask, position_embeddings, **kwargs):
        # `hidden_states` has the text rows; the mask and the rotary tables have all rows.
        past = _take_cache(kwargs)
        queries, gates = self.queries(hidden_states, text_rows, position_embeddings, past)
        keys, values = self.keys_and_values(all_rows, position_embeddings)
        keys, values = self.cached(keys, values, past, kwargs)
        # A static cache is longer than the sequence; self-causal kernels must see only its filled part.
        filled, sliding_window = keys.shape[2], None
        if "flash" in self.config._attn_implementation:
            if kwargs.get("cu_seq_lens_q") is not None:
                raise ValueError("Frozen layers cannot tell packed sequences apart with flash attention; use 'sdpa'.")
            # Flash masks do not contain the window. Qwen2 keeps it on the module: only some layers have one.
            sliding_window = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
            filled = filled if attention_mask is None else attention_mask.shape[-1]
        elif attention_mask is None and text_rows.num_rows > 1:  # SDPA without a mask starts at the first key
            filled = text_rows.num_rows
        kwargs["position_ids"] = None  # for all rows; already applied in the rotary tables and the mask
        output, weights = self._attention_function()(
            self,
            queries,
            keys[:, :, :filled],
            values[:, :, :filled],
            text_rows.mask(attention_mask, filled, keys.dtype, sliding_window, getattr(self, "is_causal", True)),
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = output.reshape(*hidden_states.shape[:-1], -1)
        # With `output_attentions`, the weights of the text rows: (batch, heads, text, keys).
        return self.output(output if gates is None else output * gates), weights

    # Models differ in the following methods.

    def queries(self, hidden_states, text_rows, position_embeddings, past) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, text, hidden)` -> rotated queries, `(batch, heads, text, head_dim)`, and gates that multiply the
        output of all heads, `(batch, text, heads * head_dim)`, or None."""
        return self._rotate(self._heads("q", hidden_states), text_rows.rotary(position_embeddings)), None

    def keys_and_values(self, all_rows, position_embeddings) -> tuple[torch.Tensor, torch.Tensor]:
        """`(batch, rows, hidden)` -> rotated keys and values, `(batch, key heads, rows, head_dim)` each."""
        keys = self._rotate(self._heads("k", all_rows), position_embeddings)
        return keys, self.v_proj(all_rows).view(*all_rows.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def cached(self, keys, values, past, kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds keys and values to the cache, if any; returns those of this and all earlier passes."""
        if past is None:
            return keys, values
        return past.update(keys, values, self.layer_idx, {"cache_position": kwargs.get("cache_position")})

    def output(self, attended) -> torch.Tensor:
        """Output projection: `(batch, text, heads * head_dim)` -> `(batch, text, hidden)`."""
        return self.o_proj(attended)

    def _heads(self, name, hidden_states):
        # Queries ("q") or keys ("k") before rotation, normalised if the model does so.
        states = getattr(self, f"{name}_proj")(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim)
        norm = getattr(self, f"{name}_norm", None)
        return (states if norm is None else norm(states)).transpose(1, 2)

    def _rotate(self, states, position_embeddings):
        if self.config.model_type == "cohere2" and self.sliding_window is None:
            return states  # its layers without a window have no rotary embedding
        rotate = _own_function(self, "apply_rotary_pos_emb")
        if rotate is None:  # before transformers 5.20, Qwen2-VL mixes its position axes here
            sections = self.config.rope_parameters["mrope_section"]
            rotate = partial(_own_function(self, "apply_multimodal_rotary_pos_emb"), mrope_section=sections)
        # `rotate` takes a query and a key; the second argument is an empty one.
        cos, sin = position_embeddings
        return rotate(states, states[:, :0], cos=cos, sin=sin)[0]

    def _attention_function(self):
        implementation = self.config._attn_implementation
        if implementation == "eager":
            return _own_function(self, "eager_attention_forward")
        # Fewer queries than keys need a dense mask. Flash kernels take none; SDPA does.
        if implementation in ("sdpa", "flex_attention") or "flash" in implementation:
            return ALL_ATTENTION_FUNCTIONS["sdpa"]
        raise ValueError(f"Frozen layers cannot run with attn_implementation={implementation!r}; use 'sdpa'.")


class FrozenMixer:
    """Mixin for a module that replaces attention in some layers: linear attention or a convolution.

    It carries state from token to token, so it runs on all rows and returns the text rows. It cannot be frozen alone.
    """

    def forward(self, hidden_states, *args, text_rows=None, all_rows=None, frozen=True, **kwargs):
        if text_rows is None:
            return super().forward(hidden_states, *args, **kwargs)
        update = super().forward(all_rows, *args, **kwargs)
        text_rows.updates[self.layer_idx] = None if frozen else update
        return text_rows.take(update)


class FrozenLayer:
    """Mixin for a decoder layer class: what is frozen adds nothing to visual rows."""

    frozen_attention = frozen_ffn = False
    index = None  # number of the decoder layer

    def forward(self, hidden_states, *args, text_rows=None, **kwargs):
        if text_rows is None or not (self.frozen_attention or self.frozen_ffn):
            return super().forward(hidden_states, *args, **kwargs)
        if self.frozen_ffn:
            return self._forward_text(hidden_states, text_rows, *args, **kwargs)
        output = super().forward(hidden_states, *args, text_rows=text_rows, **kwargs)
        self._update(text_rows)
        return output

    def _forward_text(self, hidden_states, text_rows, *args, **kwargs):
        # The layer's own forward runs on the text rows; its attention also gets all rows.
        text_states = super().forward(
            text_rows.take(hidden_states),
            *args,
            all_rows=self.normed(hidden_states),
            text_rows=text_rows,
            frozen=self.frozen_attention,
            **kwargs,
        )
        text_rows.skip("ffn", self.index)
        update = self._update(text_rows)
        if update is not None:
            hidden_states = self.without_ffn(hidden_states, update)
        return text_rows.put_back(hidden_states, text_states)

    def _update(self, text_rows):
        if self.index not in text_rows.updates:
            raise ValueError("The attention of a frozen layer saw no visual rows: unsupported transformers version.")
        return text_rows.updates.pop(self.index)

    # Models differ in the following methods.

    def normed(self, hidden_states):
        """The input of attention."""
        return self.input_layernorm(hidden_states)

    def without_ffn(self, hidden_states, update):
        """The layer's output if its FFN adds nothing; `update` comes from attention. Both `(batch, rows, hidden)`."""
        if hasattr(self, "post_self_attn_layernorm"):  # GLM-4V normalises the output of attention, too
            update = self.post_self_attn_layernorm(update)
        elif hasattr(self, "pre_feedforward_layernorm"):  # so does Gemma; elsewhere, this is the FFN's own norm
            update = self.post_attention_layernorm(update)
        return hidden_states + update


class ShortVMixin:
    """Mixin for a stock `...ForConditionalGeneration` class: freezes what the lists of its config name.

    These are `frozen_layers` (both operators), `frozen_attention` and `frozen_ffn` (one operator alone).

    `forward` also takes `visual_mask`: `(batch, rows)` bool, True at visual tokens. It is needed only if
    `inputs_embeds` already contains image features, because then no placeholder token marks them.

    Name `GenerationMixin` as a base, too: else transformers adds it in a class of its own, which cannot be pickled.
    """

    # See `find_text_rows`. Where each shape is compiled for itself, as for CUDA graphs, a larger number means fewer.
    text_rows_multiple = 1

    # Overridden for text models that are not in `TEXT_MODELS`.
    text_models = TEXT_MODELS
    frozen_layer = FrozenLayer
    frozen_parts = {"self_attn": FrozenAttention}  # name of the attention module -> its mixin

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # `generate` and `Trainer` read the signature of `forward`: the stock one with `visual_mask` added.
        stock = super().forward
        signature = inspect.signature(stock)
        *parameters, rest = signature.parameters.values()
        extra = inspect.Parameter("visual_mask", inspect.Parameter.KEYWORD_ONLY, default=None)

        @wraps(stock)
        def forward(self, *args, **kwargs):
            return stock(self, *args, **kwargs)

        forward.__signature__ = signature.replace(parameters=[*parameters, extra, rest])
        cls.forward = forward

    def __init__(self, config):
        super().__init__(config)
        text_model = config.text_config.model_type
        if text_model not in self.text_models:
            raise ValueError(f"Frozen layers support {', '.join(self.text_models)} text models, not {text_model!r}.")
        # All layers, frozen or not, because later hooks (offloading, for example) keep the `forward` they find.
        for layer in self._decoder_layers():
            _mix_in(layer, self.frozen_layer)
            for name, mixin in self.frozen_parts.items():
                if hasattr(layer, name):
                    _mix_in(getattr(layer, name), mixin)
        self._last_pass = None
        # Text rows are found before this model runs, so that its `forward` can be compiled; or before its inner model
        # runs, if only that is called. Unpickling the handles keeps the hooks' numbers from being given away again.
        models = dict.fromkeys((self, getattr(self, "model", self)))  # Llama 4 has no inner `model`
        self._hooks = [each.register_forward_pre_hook(self._add_text_rows, with_kwargs=True) for each in models]
        self.freeze_layers(*(getattr(config, name, None) for name in LISTS))

    def __setstate__(self, state):
        super().__setstate__(state)
        if not vars(getattr(self, "model", self)):
            return  # the inner model is unpickled on its own, and needs this one for its hook
        # `PreTrainedModel.__init__` notes which outputs a class can return; unpickling does not run it.
        for part in self.modules():
            if isinstance(part, PreTrainedModel):
                PreTrainedModel.__init__(part.__new__(type(part)), part.config)

    def freeze_layers(
        self,
        frozen_layers: list[int],
        frozen_attention: list[int] | None = None,
        frozen_ffn: list[int] | None = None,
    ) -> None:
        """Freezes exactly these operators from now on, and records them in the config.

        Args:
            frozen_layers: numbers of the decoder layers that freeze both operators.
            frozen_attention, frozen_ffn: numbers of those that freeze attention or the feed-forward network alone.

        Raises:
            ValueError: a list is bad, or attention shall be frozen in a layer that has none. Nothing is changed then.
        """
        layers = self._decoder_layers()
        lists = check_lists(len(layers), frozen_layers, frozen_attention, frozen_ffn)
        for index in lists["frozen_attention"]:
            if not isinstance(getattr(layers[index], "self_attn", None), FrozenAttention):
                raise ValueError(f"`frozen_attention` names layer {index}, which has no attention to freeze.")
        for name, numbers in lists.items():
            vars(self.config).pop(name, None)
            if numbers or name == "frozen_layers":  # a config without single operators is saved without their lists
                setattr(self.config, name, numbers)
        for index, layer in enumerate(layers):
            layer.index, both = index, index in lists["frozen_layers"]
            layer.frozen_attention = both or index in lists["frozen_attention"]
            layer.frozen_ffn = both or index in lists["frozen_ffn"]

    def shortv_report(self) -> dict:
        """Reports what is frozen and what the last prefill skipped; decoding steps, which skip nothing, do not count.

        Returns:
            A dict: `frozen_layers`, `frozen_attention`, `frozen_ffn`; `visual_tokens` in the last prefill;
            `skipped_attention` and `skipped_ffn`, updates that it skipped, one per token and layer; `skipped_updates`,
            their sum; `total_updates`, those of the stock model, two per token and layer. The last five are 0 if there
            was nothing to freeze. Linear attention and convolutions run for all tokens and skip nothing.
        """
        num_visual, num_rows, skipped = self._last_pass or (0, 0, {})
        report = {name: list(getattr(self.config, name, None) or []) for name in LISTS}
        report["visual_tokens"] = num_visual
        for operator in ("attention", "ffn"):
            report[f"skipped_{operator}"] = sum(rows for (name, _), rows in skipped.items() if name == operator)
        report["skipped_updates"] = sum(skipped.values())
        report["total_updates"] = 2 * num_rows * len(self._decoder_layers())
        return report

    def _decoder_layers(self):
        decoder = self.get_decoder()
        return getattr(decoder, "model", decoder).layers  # Llama 4 returns its decoder with the head

    def _visual_tokens(self, device):
        """Ids of the placeholder tokens of images and videos."""
        ids = (getattr(self.config, name, None) for name in ("image_token_id", "video_token_id"))
        return torch.tensor([token for token in ids if token is not None], device=device)

    def _add_text_rows(self, model, args, kwargs):
        """Forward pre-hook of this and the inner model: finds the text rows and passes them to the decoder layers."""
        inner = getattr(self, "model", self)
        if "text_rows" in kwargs or (model is not inner and len(args) > 1):  # found already; or inner gets all by name
            return args, kwargs
        input_ids = args[0] if args else kwargs.get("input_ids")
        inputs_embeds = kwargs.get("inputs_embeds")
        visual = kwargs.pop("visual_mask", None)
        given = input_ids if input_ids is not None else inputs_embeds
        # In decoding, a single new token without an image is text, even if the model generated its image token.
        pixels = (kwargs.get(name) for name in ("pixel_values", "pixel_values_videos"))
        has_image = any(value is not None for value in pixels) or kwargs.get("mm_encoder_outputs")
        decoding = given is not None and given.shape[1] == 1 and not has_image
        if decoding:
            return args, kwargs
        self._last_pass = None
        if given is None or not any(getattr(self.config, name, None) for name in LISTS):
            return args, kwargs
        if visual is None and input_ids is not None:
            visual = torch.isin(input_ids, self._visual_tokens(input_ids.device))
        elif visual is None:
            placeholders = self.get_input_embeddings()(self._visual_tokens(inputs_embeds.device))
            visual = (inputs_embeds[:, :, None] == placeholders).all(-1).any(-1)
            if not visual.any():
                raise ValueError(
                    "`inputs_embeds` holds no image placeholder: pass `visual_mask`, (batch, tokens) bool, True at "
                    "visual tokens (all False for text only), so that the frozen layers know them."
                )
        elif visual.shape != given.shape[:2]:
            raise ValueError(f"`visual_mask` has shape {tuple(visual.shape)}; the input has {tuple(given.shape[:2])}.")
        mask = kwargs.get("attention_mask")
        is_padding_mask = isinstance(mask, torch.Tensor) and mask.shape == visual.shape
        # Left padding is skipped: nothing reads it, unless a loss makes it predict the first token. Right padding is
        # computed, because `generate` reads it.
        padding = mask.cumsum(1) == 0 if is_padding_mask else None
        text_rows = find_text_rows(visual.to(torch.bool), padding, self.text_rows_multiple)
        if text_rows is not None:
            if kwargs.get("output_router_logits") and any(layer.frozen_ffn for layer in self._decoder_layers()):
                raise ValueError("Frozen layers route text only: their router logits are not those of all tokens.")
            self._last_pass = (text_rows.num_visual, visual.numel(), text_rows.skipped)
        return args, kwargs | {"text_rows": text_rows}


def _take_cache(kwargs):
    """Removes the cache from a layer's keyword arguments and returns it; None if there is none.

    transformers 5.24 renamed `past_key_values` to `cache`; in case of another rename, the class counts too.
    """
    names = [name for name in ("cache", "past_key_values") if kwargs.get(name) is not None]
    names += [name for name, value in kwargs.items() if isinstance(value, Cache)]
    name = names[0] if names else None
    if name is None and kwargs.get("use_cache"):
        raise ValueError("Frozen layers were given no cache to fill; this transformers version is not supported.")
    return kwargs.pop(name, None)


@cache
def _mixed_class(mixin, stock):
    # Keeps the stock class name, which device maps, output capture and quantisers look up. By this name, pickle would
    # find the stock class, so it is told how to mix again.
    mixed = type(stock.__name__, (mixin, stock), {"__module__": stock.__module__})
    copyreg.pickle(mixed, _reduce)
    return mixed


def _reduce(module):
    _, (mixed, *_), *state = module.__reduce_ex__(2)
    return _new, mixed.__bases__, *state


def _new(mixin, stock):
    return object.__new__(_mixed_class(mixin, stock))


def _mix_in(module, mixin):
    """Puts `mixin` in front of the module's class."""
    module.__class__ = _mixed_class(mixin, type(module))


def _own_function(module, name):
    """The function of this name in the transformers file that defines the module's class, or None."""
    return getattr(sys.modules[type(module).__module__], name, None)

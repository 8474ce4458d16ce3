"""Frozen decoder layers: vision-language inference without the visual-token work that does not matter.

ShortV ("ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective Layers",
https://arxiv.org/abs/2504.00502) freezes the visual tokens in the decoder layers that hardly change the answer. In
such a layer

- every token gives a key and a value, computed from the layer's input;
- only text tokens ask a query, pass the output projection and the feed-forward network, and are updated;
- visual tokens leave the layer as they entered it.

Text tokens therefore come out exactly as the stock layer computes them. This file turns the chosen layers of a stock
model into frozen ones in place, without touching a weight:

1. `find_text_rows` runs once per forward pass and decides which rows (positions) are text: a `TextRows`.
2. `TextRows` travels to the decoder layers as a keyword argument, as attention masks do. There is no global state.
3. `FrozenLayer` is mixed in front of the layer's own class, and runs the layer's *own* forward on the text rows
   alone. `FrozenAttention`, inside, computes the keys and values of all rows.

Without visual tokens, and when decoding token by token, the layers run exactly as in the stock model: ShortV makes
the prefill faster, decoding and the KV cache stay what they were.
"""

import inspect
import sys
from functools import cache, partial, wraps

import torch
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Text models whose attention is what `FrozenAttention` computes: q, k, v and o projections, perhaps norms of queries
# and keys, and a rotary embedding. Each was compared with its own forward.
TEXT_MODELS = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"),
    *("gemma", "gemma3_text", "cohere", "cohere2", "glm4v_text", "glm4v_moe_text", "aria_text", "paddleocr_vl_text"),
)


def check_frozen_layers(frozen_layers: list[int], num_layers: int) -> list[int]:
    """Returns `frozen_layers` as a sorted list, or raises a ValueError: a bad list must never freeze nothing."""
    if frozen_layers is None:
        raise ValueError("config.json has no `frozen_layers`: this checkpoint is not a ShortV model.")
    if not isinstance(frozen_layers, (list, tuple)) or any(type(index) is not int for index in frozen_layers):
        raise ValueError(f"`frozen_layers` must be a list of integers, not {frozen_layers!r}.")
    if len(set(frozen_layers)) < len(frozen_layers):
        raise ValueError(f"`frozen_layers` names a layer twice: {frozen_layers}.")
    if any(not 0 <= index < num_layers for index in frozen_layers):
        raise ValueError(f"`frozen_layers` must lie in 0..{num_layers - 1}: {frozen_layers}.")
    return sorted(frozen_layers)


class TextRows:
    """The rows that frozen layers compute in one forward pass, and the row-wise view of everything layers share.

    Attributes:
        rows: `(batch, text)` row numbers. Where a batch entry has less text than the longest one, frozen rows fill up.
        filler: `(batch, text, 1)`, True where `rows` is such a filler, whose result is dropped; None if there is none.
        num_rows: number of rows of the forward pass, per batch entry.
        num_visual: number of visual tokens in the batch.
        skipped: layer index -> number of row updates that the frozen layer did not compute.
    """

    def __init__(self, rows: torch.Tensor, filler: torch.Tensor | None, num_rows: int, num_visual: int) -> None:
        self.rows = rows
        self.filler = filler
        self.num_rows = num_rows
        self.num_visual = num_visual
        self.skipped = {}
        self._memo = {}

    def to(self, device, non_blocking=False):
        """A copy on another device: what accelerate calls on every argument of a layer that lives elsewhere."""
        if device is None or self.rows.device == torch.device(device):
            return self
        filler = None if self.filler is None else self.filler.to(device, non_blocking=non_blocking)
        moved = TextRows(self.rows.to(device, non_blocking=non_blocking), filler, self.num_rows, self.num_visual)
        moved.skipped = self.skipped  # one count for the whole pass
        return moved

    def skip(self, layer_idx: int) -> None:
        """Counts what a layer leaves out."""
        self.skipped[layer_idx] = self.rows.shape[0] * (self.num_rows - self.rows.shape[1])

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., batch or 1, rows, width)` -> `(..., batch, text, width)`."""
        outer, (rows, width) = states.shape[:-3], states.shape[-2:]
        states = states.expand(*outer, self.rows.shape[0], rows, width)
        return states.gather(-2, self.rows[..., None].expand(*outer, -1, -1, width))

    def put_back(self, hidden_states: torch.Tensor, text_states: torch.Tensor) -> torch.Tensor:
        """The layer's output: its input, with the text rows replaced."""
        if self.filler is not None:
            text_states = torch.where(self.filler, self.take(hidden_states), text_states)
        index = self.rows[..., None].expand(-1, -1, hidden_states.shape[-1])
        return hidden_states.scatter(1, index, text_states)

    def rotary(self, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The cosine and sine tables, `(batch or 1, rows, head_dim)` each, of the text rows."""
        return self._once(position_embeddings[0], lambda: tuple(map(self.take, position_embeddings)))

    def mask(
        self, attention_mask, num_keys: int, dtype: torch.dtype, sliding_window: int | None = None, causal: bool = True
    ) -> torch.Tensor:
        """The text rows of the attention mask: additive, `(batch, 1, text, keys)`.

        Handles what transformers hands to its layers: a dense mask, a flex-attention block mask, and where the kernel
        itself knows whether it is causal, the last row seeing the last key, a padding mask (flash attention) or None.
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
                own_key = rows + (num_keys - self.num_rows)  # the keys of earlier passes come first
                visible = keys <= own_key if causal else torch.ones_like(keys <= own_key)
                if sliding_window is not None:
                    visible = visible & ((keys - own_key).abs() < sliding_window)
                if attention_mask is not None:
                    visible = visible & attention_mask[:, None, None].bool()
            if visible.dtype != torch.bool:
                return visible  # additive already
            # Kernels turn a boolean mask into this one on every call; here it is done once for all layers. The lowest
            # finite number instead of -inf: a filler row may see no key at all.
            return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)

        return self._once(attention_mask, gather, num_keys, dtype, sliding_window, causal)

    def _once(self, shared, make, *details):
        # Layers share masks and rotary tables: each is gathered once. Keeping `shared` keeps its id unique.
        if torch.compiler.is_compiling():
            return make()
        key = (id(shared), *details)
        if key not in self._memo:
            self._memo[key] = (shared, make())
        return self._memo[key][1]


def find_text_rows(visual: torch.Tensor, padding: torch.Tensor | None = None) -> TextRows | None:
    """Decides which rows frozen layers compute.

    Args:
        visual: `(batch, rows)` bool, True at visual tokens.
        padding: `(batch, rows)` bool, True at rows that nothing reads and need not be computed either; or None.

    Returns:
        A `TextRows`, or None if there is no visual token: then every layer runs as in the stock model.
    """
    frozen = visual if padding is None else visual | padding
    text = frozen.shape[1] - frozen.sum(1)
    # The only point at which the host waits for the device.
    num_visual, shortest, longest = torch.stack([visual.sum(), text.min(), text.max()]).tolist()
    if num_visual == 0:
        return None
    # A stable sort puts the text rows first, in order, and distinct frozen rows after them as filler.
    # A piece of a long prompt can be all image: one filler row spares every layer the case of no rows.
    rows = torch.argsort(frozen.to(torch.uint8), dim=1, stable=True)[:, : max(longest, 1)]
    filler = frozen.gather(1, rows)[..., None] if shortest < rows.shape[1] else None
    return TextRows(rows, filler, frozen.shape[1], num_visual)


class FrozenAttention:
    """Mixed in front of an attention class: queries of the text rows against the keys and values of all rows."""

    def forward(self, hidden_states, *args, all_rows=None, text_rows=None, **kwargs):
        if all_rows is None:
            return super().forward(hidden_states, *args, **kwargs)
        return self._forward_text(hidden_states, all_rows, text_rows, *args, **kwargs)

    def _forward_text(self, hidden_states, all_rows, text_rows, attention_mask, position_embeddings, **kwargs):
        # `hidden_states` are those of the text rows; the mask and the rotary tables are those of all rows.
        text_rows.skip(self.layer_idx)
        past = _take_cache(kwargs)
        queries, gates = self.queries(hidden_states, text_rows, position_embeddings, past)
        keys, values = self.keys_and_values(all_rows, position_embeddings)
        keys, values = self.cached(keys, values, past, kwargs)
        # Of a static cache, a kernel that is causal itself sees the filled part.
        filled, sliding_window = keys.shape[2], None
        if "flash" in self.config._attn_implementation:
            if kwargs.get("cu_seq_lens_q") is not None:
                raise ValueError("Frozen layers cannot tell packed sequences apart with flash attention; use 'sdpa'.")
            # Its masks do not contain the window. Qwen2 keeps it on the module, as some layers have none.
            sliding_window = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
            filled = filled if attention_mask is None else attention_mask.shape[-1]
        elif attention_mask is None and text_rows.num_rows > 1:  # SDPA without a mask starts at the first key
            filled = text_rows.num_rows
        kwargs["position_ids"] = None  # they are of all rows; the rotary tables and the mask have what they decide
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
        # The weights that `output_attentions` asks for are those of the text rows: (batch, heads, text, keys).
        return self.output(output if gates is None else output * gates), weights

    # What differs between models: how queries, keys and values are made.

    def queries(self, hidden_states, text_rows, position_embeddings, past) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, text, hidden)` -> rotated queries, `(batch, heads, text, head_dim)`, and what the output of all
        heads, `(batch, text, heads * head_dim)`, is multiplied with, or None."""
        return self._rotate(self._heads("q", hidden_states), text_rows.rotary(position_embeddings)), None

    def keys_and_values(self, all_rows, position_embeddings) -> tuple[torch.Tensor, torch.Tensor]:
        """`(batch, rows, hidden)` -> rotated keys and values, `(batch, key heads, rows, head_dim)` each."""
        keys = self._rotate(self._heads("k", all_rows), position_embeddings)
        return keys, self.v_proj(all_rows).view(*all_rows.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def cached(self, keys, values, past, kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives keys and values to the cache, if there is one; returns those of this pass and of earlier ones."""
        if past is None:
            return keys, values
        return past.update(keys, values, self.layer_idx, {"cache_position": kwargs.get("cache_position")})

    def output(self, attended) -> torch.Tensor:
        """`(batch, text, heads * head_dim)` -> `(batch, text, hidden)`."""
        return self.o_proj(attended)

    def _heads(self, name, hidden_states):
        # Queries ("q") or keys ("k") before their rotation, normed where the model does that.
        states = getattr(self, f"{name}_proj")(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim)
        norm = getattr(self, f"{name}_norm", None)
        return (states if norm is None else norm(states)).transpose(1, 2)

    def _rotate(self, states, position_embeddings):
        if self.config.model_type == "cohere2" and self.sliding_window is None:
            return states  # its layers without a window know no positions
        rotate = _own_function(self, "apply_rotary_pos_emb")
        if rotate is None:  # Qwen2-VL's, before transformers 5.20, mixes the axes of its positions here
            sections = self.config.rope_parameters["mrope_section"]
            rotate = partial(_own_function(self, "apply_multimodal_rotary_pos_emb"), mrope_section=sections)
        # It rotates a query and a key; the other one is given without heads.
        cos, sin = position_embeddings
        return rotate(states, states[:, :0], cos=cos, sin=sin)[0]

    def _attention_function(self):
        implementation = self.config._attn_implementation
        if implementation == "eager":
            return _own_function(self, "eager_attention_forward")
        # A few queries against many keys need a mask, which flash kernels do not take: SDPA does.
        if implementation in ("sdpa", "flex_attention") or "flash" in implementation:
            return ALL_ATTENTION_FUNCTIONS["sdpa"]
        raise ValueError(f"Frozen layers cannot run with attn_implementation={implementation!r}; use 'sdpa'.")


class FrozenMixer:
    """Mixed in front of what some layers have in the place of attention, as linear attention or a convolution.

    Each token changes what the next ones see, so it runs on all rows. Those of the text go on.
    """

    def forward(self, hidden_states, *args, all_rows=None, text_rows=None, **kwargs):
        if all_rows is None:
            return super().forward(hidden_states, *args, **kwargs)
        text_rows.skip(self.layer_idx)
        return text_rows.take(super().forward(all_rows, *args, **kwargs))


class FrozenLayer:
    """Mixed in front of a decoder layer class: while `frozen`, text rows pass the layer and visual rows pass it by."""

    frozen = False
    index = None  # its number among the decoder layers

    def forward(self, hidden_states, *args, text_rows=None, **kwargs):
        if text_rows is None or not self.frozen:
            return super().forward(hidden_states, *args, **kwargs)
        return self._forward_text(hidden_states, text_rows, *args, **kwargs)

    def _forward_text(self, hidden_states, text_rows, *args, **kwargs):
        # The layer's own forward, on the text rows alone. The attention inside is given all rows as well.
        text_states = super().forward(
            text_rows.take(hidden_states),
            *args,
            all_rows=self.normed(hidden_states),
            text_rows=text_rows,
            **kwargs,
        )
        if self.index not in text_rows.skipped:
            raise ValueError(
                "The attention of a frozen layer saw text only: this transformers version is unsupported."
            )
        return text_rows.put_back(hidden_states, text_states)

    def normed(self, hidden_states):
        """What the attention is given."""
        return self.input_layernorm(hidden_states)


class ShortVMixin:
    """Mixed in front of a stock `...ForConditionalGeneration` class: freezes `config.frozen_layers`.

    Its `forward` is the stock one, and takes `visual_mask` too: `(batch, rows)` bool, True at visual tokens. Only
    `inputs_embeds` in which image features are merged already need it: no placeholder token is left there to find.
    """

    # A family whose text model is none of `TEXT_MODELS` has its own of these.
    text_models = TEXT_MODELS
    frozen_layer = FrozenLayer
    frozen_parts = {"self_attn": FrozenAttention}  # what mixes tokens in a layer -> what is mixed in front of it

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # `generate` and `Trainer` read the signature to learn what the model takes: the stock one, and `visual_mask`.
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
        # Every layer, now: later, offloading hooks and the like hold on to the `forward` that they found.
        for layer in self._decoder_layers():
            _mix_in(layer, self.frozen_layer)
            for name, mixin in self.frozen_parts.items():
                if hasattr(layer, name):
                    _mix_in(getattr(layer, name), mixin)
        self._last_pass = None
        # Llama 4 has no `model` below it.
        getattr(self, "model", self).register_forward_pre_hook(self._add_text_rows, with_kwargs=True)
        self.freeze_layers(config.frozen_layers)

    def freeze_layers(self, frozen_layers: list[int]) -> None:
        """Freezes exactly these decoder layers from now on, and records them in the config."""
        layers = self._decoder_layers()
        self.config.frozen_layers = check_frozen_layers(frozen_layers, len(layers))
        for index, layer in enumerate(layers):
            layer.index, layer.frozen = index, index in self.config.frozen_layers

    def shortv_report(self) -> dict:
        """What is frozen, and what the last forward pass skipped.

        Returns:
            A dict: `frozen_layers`; `visual_tokens` in the last forward pass; `skipped_updates`, the token updates
            (one per token and layer) that it did not compute; `total_updates`, those of the stock model. The last
            three are 0 if nothing was there to freeze, as in every decoding step.
        """
        num_visual, num_rows, skipped = self._last_pass or (0, 0, {})
        return {
            "frozen_layers": list(self.config.frozen_layers),
            "visual_tokens": num_visual,
            "skipped_updates": sum(skipped.values()),
            "total_updates": num_rows * len(self._decoder_layers()),
        }

    def _decoder_layers(self):
        decoder = self.get_decoder()
        return getattr(decoder, "model", decoder).layers  # Llama 4 gives its decoder together with the head

    def _visual_tokens(self, device):
        """The ids of the tokens that image and video features take the place of."""
        ids = (getattr(self.config, name, None) for name in ("image_token_id", "video_token_id"))
        return torch.tensor([token for token in ids if token is not None], device=device)

    def _add_text_rows(self, model, args, kwargs):
        """Forward pre-hook of the multimodal model: makes the plan and sends it along to the decoder layers."""
        input_ids = args[0] if args else kwargs.get("input_ids")
        inputs_embeds = kwargs.get("inputs_embeds")
        visual = kwargs.pop("visual_mask", None)
        given = input_ids if input_ids is not None else inputs_embeds
        self._last_pass = None
        # Decoding: one new token without an image is text, even if the model writes its own image token.
        pixels = (kwargs.get(name) for name in ("pixel_values", "pixel_values_videos"))
        has_image = any(value is not None for value in pixels) or kwargs.get("mm_encoder_outputs")
        decoding = given is not None and given.shape[1] == 1 and not has_image
        if given is None or decoding or not self.config.frozen_layers:
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
        # Nothing reads what stands left of the first token, unless a loss makes padding predict that token. (Right of
        # the last one, `generate` reads.)
        padding = mask.cumsum(1) == 0 if is_padding_mask else None
        text_rows = find_text_rows(visual.to(torch.bool), padding)
        if text_rows is not None:
            if kwargs.get("output_router_logits"):
                raise ValueError("Frozen layers route text only: their router logits are not those of all tokens.")
            kwargs["text_rows"] = text_rows
            self._last_pass = (text_rows.num_visual, visual.numel(), text_rows.skipped)
        return args, kwargs


def _take_cache(kwargs):
    """Takes the cache out of a layer's keyword arguments; None if there is none.

    Its name has changed, from `past_key_values` to `cache` in transformers 5.24, and may again: it goes by class, too.
    """
    names = [name for name in ("cache", "past_key_values") if kwargs.get(name) is not None]
    names += [name for name, value in kwargs.items() if isinstance(value, Cache)]
    name = names[0] if names else None
    if name is None and kwargs.get("use_cache"):
        raise ValueError("Frozen layers were given no cache to fill; this transformers version is not supported.")
    return kwargs.pop(name, None)


@cache
def _mixed_class(mixin, stock):
    # The class keeps its stock name: device maps, output capture and quantisers go by it.
    return type(stock.__name__, (mixin, stock), {"__module__": stock.__module__})


def _mix_in(module, mixin):
    """Puts `mixin` in front of the module's class."""
    module.__class__ = _mixed_class(mixin, type(module))


def _own_function(module, name):
    """A function from the transformers file that defines the module's class; None if it has none of that name."""
    return getattr(sys.modules[type(module).__module__], name, None)

"""A tiny LLaVA with random weights, complete with processor, in the layout of the llava-hf repositories.

File names, tensor names (`language_model.model.layers.0...`) and processor files are those of the real checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCABULARY_TEXT = (
    "USER ASSISTANT what is in this picture ? describe the image in one sentence . a person wears an orange suit , "
    "a cat looks at us , there are how many cups of coffee on table ; which colour yes no and rocket tower sky answer "
    "question using single word or phrase provide one-sentence caption for"
)

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ content['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tiny_llava(
    folder: Path,
    *,
    model_type: str = "llava",
    num_layers: int = 4,
    hidden_size: int = 64,
    image_size: int = 56,
    num_key_value_heads: int = 4,
    text_model: str = "llama",
    num_shards: int = 1,
    seed: int = 0,
    **config_fields: Any,
) -> Path:
    """Writes a tiny base model: config, safetensors, processor and tokenizer.

    Args:
        folder: created if missing.
        model_type: ``"llava"`` or ``"llava_next"``.
        num_layers: decoder layers.
        hidden_size: of the text model, which has four attention heads.
        image_size: pixels; patches are 14 pixels wide, so 56 gives 16 visual tokens per image (LLaVA-NeXT: per tile).
        num_key_value_heads: 4 for multi-head attention, fewer for grouped-query attention.
        text_model: ``"llama"``, ``"mistral"`` or ``"qwen2"``.
        num_shards: weight files; more than one adds an index.
        seed: of the weights.
        config_fields: further config fields, such as ``vision_feature_layer``.

    Returns:
        `folder`.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForImageTextToText, CLIPVisionConfig

    processor = _build_processor(model_type, image_size)
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=14,
        projection_dim=32,
    )
    text = AutoConfig.for_model(
        text_model,
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=config_fields.get("tie_word_embeddings", False),
    )
    config = AutoConfig.for_model(
        model_type,
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(image_size // 14) ** 2,
        **({"image_grid_pinpoints": _grid(image_size)} if model_type == "llava_next" else {}),
        **config_fields,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        # With the small stock initialisation, layers would hardly change anything.
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)

    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)

    tied = model.config.tie_word_embeddings
    tensors = {
        hub_tensor_name(name): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    names = sorted(tensors)
    shards = [names[start::num_shards] for start in range(num_shards)]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if num_shards == 1 else f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        save_file({name: tensors[name] for name in shard}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    if num_shards > 1:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\n"
        "pipeline_tag: image-text-to-text\nlibrary_name: transformers\n---\n\n"
        "# A tiny LLaVA\n\nRandom weights; it demonstrates the tool and knows nothing.\n",
        encoding="utf-8",
    )
    return folder


def hub_tensor_name(name: str) -> str:
    """The name of a tensor in the llava-hf repositories, given its name in a transformers model."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def _grid(image_size: int) -> list[list[int]]:
    """LLaVA-NeXT's tile layouts, in units of `image_size`."""
    return [[image_size * height, image_size * width] for height, width in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def word_tokenizer(model: Any, *, model_max_length: int, special: Sequence[str] = ("<image>",), **named: str) -> Any:
    """A fast tokenizer around a word model that has `SPECIAL_TOKENS`.

    Args:
        model: of the `tokenizers` package.
        model_max_length: tokens.
        special: further special tokens.
        named: attributes of the tokenizer that name some of them.
    """
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=model_max_length,
        additional_special_tokens=[*special],
        **named,
    )


def _build_processor(model_type: str, image_size: int) -> Any:
    from tokenizers import models
    from transformers import CLIPImageProcessor, LlavaNextImageProcessor, LlavaNextProcessor, LlavaProcessor

    words = sorted({*VOCABULARY_TEXT.split(), ":", "\n"})
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = word_tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"), model_max_length=4096)
    size = {"shortest_edge": image_size}
    crop = {"height": image_size, "width": image_size}
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": CHAT_TEMPLATE,
    }
    if model_type == "llava":
        return LlavaProcessor(image_processor=CLIPImageProcessor(size=size, crop_size=crop), **common)
    images = LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=_grid(image_size))
    return LlavaNextProcessor(image_processor=images, **common)

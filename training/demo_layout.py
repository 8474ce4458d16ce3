"""The bundled demo model: its processor, its config, and its folder in the llava-hf layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortv_export.demo import scenes
from tests.support.tiny_llava import CHAT_TEMPLATE, SPECIAL_TOKENS, hub_tensor_name, word_tokenizer


@dataclass(frozen=True)
class Sizes:
    """The shape of the language model; the defaults are those of the bundled model."""

    layers: int = 12
    hidden: int = 128
    heads: int = 4
    ffn: int = 256

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


ROPE_THETA = 10000.0
VISION_SIZE, VISION_LAYERS, VISION_HEADS = 96, 3, 3


def build_processor() -> Any:
    """The processor. Images of `scenes.IMAGE_SIZE` keep their size; words are tokens, signs are spelled in letters."""
    from tokenizers import decoders, models
    from transformers import CLIPImageProcessor, LlavaProcessor

    letters = sorted({*scenes.CONSONANTS, *scenes.VOWELS})
    words = sorted({*scenes.VOCABULARY, "USER", "ASSISTANT", ":", *letters, *(f"##{letter}" for letter in letters)})
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *words])}
    model = models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="##")
    tokenizer = word_tokenizer(model, model_max_length=2048)
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    size = scenes.IMAGE_SIZE
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=scenes.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: Any, sizes: Sizes) -> Any:
    """An untrained ``LlavaForConditionalGeneration``."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=VISION_SIZE,
        intermediate_size=2 * VISION_SIZE,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=VISION_HEADS,
        image_size=scenes.IMAGE_SIZE,
        patch_size=scenes.PATCH,
        projection_dim=VISION_SIZE,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(scenes.IMAGE_SIZE // scenes.PATCH) ** 2,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def save(model: Any, processor: Any, folder: Path) -> Path:
    """Writes model (bfloat16) and processor, with the file and tensor names of the llava-hf repositories."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(folder)
    tensors = {
        hub_tensor_name(name): tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def answers(model: Any, processor: Any, image: Any, questions: list[str]) -> list[str]:
    """The model's answers to questions about one image (an array or a PIL image), one conversation each."""
    import torch

    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    inputs = processor(images=[image] * len(texts), text=texts, padding=True, return_tensors="pt")
    inputs = inputs.to(model.device, model.dtype)
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    said: list[str] = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said

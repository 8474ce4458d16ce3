"""Inference Endpoints: answers questions about images with the model of this repository.

A request, in JSON: `{"inputs": {"text": QUESTION, "images": [IMAGE, ...]}, "parameters": {"max_new_tokens": 64}}`.
IMAGE is base64 or a data URL. The answer is `[{"generated_text": ANSWER}]`. The handler opens no address and no file
that a request names. `parameters` go to `generate`; without them, decoding is greedy.
"""

import base64
import binascii
import io

import torch
from PIL import Image, UnidentifiedImageError
from transformers import AutoModel, AutoProcessor


class EndpointHandler:
    """What Inference Endpoints make once and call for each request. `path` is the folder of the repository."""

    def __init__(self, path=""):
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        device = "auto" if torch.cuda.is_available() else None
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True, dtype="auto", device_map=device).eval()

    def __call__(self, data):
        inputs = data.get("inputs")
        inputs = {"text": inputs} if isinstance(inputs, str) else inputs
        if not isinstance(inputs, dict) or not isinstance(inputs.get("text"), str):
            raise ValueError('"inputs" must be a text, or an object with "text" and "images".')
        images = inputs.get("images", [])
        if not isinstance(images, list):
            raise ValueError('"images" must be a list.')
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError('"parameters" must be an object.')
        images = [self._image(image) for image in images]
        prompt = self._prompt(inputs["text"], len(images))
        encoded = self.processor(text=prompt, images=images or None, return_tensors="pt")
        encoded = encoded.to(self.model.device, self.model.dtype)
        options = {"max_new_tokens": 256, "do_sample": False, **parameters}
        with torch.inference_mode():
            output = self.model.generate(**encoded, **options)
        answer = output[0, encoded["input_ids"].shape[1] :]
        return [{"generated_text": self.processor.decode(answer, skip_special_tokens=True)}]

    def _image(self, image):
        if isinstance(image, Image.Image):  # the server has opened it
            return image.convert("RGB")
        if not isinstance(image, str):
            raise ValueError("an image must be base64 or a data URL.")
        _, _, content = image.rpartition(",")
        try:
            return Image.open(io.BytesIO(base64.b64decode(content, validate=True))).convert("RGB")
        except (binascii.Error, UnidentifiedImageError, OSError) as error:
            raise ValueError("an image must be base64 or a data URL; addresses are not opened.") from error

    def _prompt(self, text, images):
        template = self.processor.chat_template or getattr(self.processor.tokenizer, "chat_template", None)
        if template is None:  # of the base, too: the text is the prompt, with the placeholders of its images
            return text
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
        if isinstance(template, dict):
            template = template["default"]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, add_generation_prompt=True
        )

"""Loads a published repository and asks it a question, with transformers and without this project.

``python -I client.py REPO_ID REVISION IMAGE QUESTION`` prints one JSON object.
"""

import json
import sys

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

sys.modules["shortv_export"] = None  # type: ignore[assignment]  # importing it fails, so the load proves that it is not needed

repo_id, revision, image, question = sys.argv[1:]

processor = AutoProcessor.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
model = AutoModel.from_pretrained(repo_id, revision=revision, trust_remote_code=True).eval()

conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
inputs = processor(images=[Image.open(image)], text=[prompt], return_tensors="pt")

with torch.inference_mode():
    model(**inputs)
    report = model.shortv_report()
    generated = model.generate(**inputs, max_new_tokens=12, do_sample=False)
answer = processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

print(json.dumps({"model": type(model).__name__, "answer": answer, "report": report}))

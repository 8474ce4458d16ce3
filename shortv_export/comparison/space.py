"""The files of a Space that shows the page for a published package."""

from __future__ import annotations

import json
from pathlib import Path

from ..packaging import Package
from ..records import CARD_NAME
from .run import words

PAGE_NAME = "shortv_page.py"
"""By this file a Space of this tool is known."""

GRADIO = "6.31.0"
"""The release of gradio that a Space gets; the page is tested with it."""

_README = """\
---
title: {title}
emoji: ⚡
colorFrom: yellow
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
app_file: app.py
models:
- {repo_id}
tags:
- shortv-export
short_description: ShortV beside its base, on the same picture
---

The same picture and question for [{repo_id}](https://huggingface.co/{repo_id}) and its base, side by side.
{private}
"""

_APP = '''\
"""Loads the model and shows the page of {module}.py."""

import torch
from transformers import AutoModel, AutoProcessor

from {module} import LOOK, Asked, build

MODEL_ID, REVISION = {repo_id}, {revision}

processor = AutoProcessor.from_pretrained(MODEL_ID, revision=REVISION, trust_remote_code=True)
device = "auto" if torch.cuda.is_available() else None
model = AutoModel.from_pretrained(MODEL_ID, revision=REVISION, trust_remote_code=True, dtype="auto", device_map=device)
page = build(
    Asked(model.eval(), processor, plain_prompt={prompt}),
    title={title},
    description={description},
)

if __name__ == "__main__":
    page.launch(**LOOK)
'''


def space_files(package: Package, repo_id: str, *, private: bool) -> dict[str, bytes]:
    """The files of a Space.

    Args:
        package: what is published.
        repo_id: where.
        private: whether people need a token to load it.

    Returns:
        File name -> content.
    """
    title, description = words(package, repo_id)
    app = _APP.format(
        module=PAGE_NAME.removesuffix(".py"),
        repo_id=json.dumps(repo_id),
        revision=json.dumps(package.tag),
        prompt=json.dumps(package.family.prompt),
        title=json.dumps(title),
        description=json.dumps(description),
    )
    readme = _README.format(
        title=json.dumps(f"{repo_id.split('/')[-1]} beside its base"),
        gradio=GRADIO,
        repo_id=repo_id,
        private="\nThe model is private: give this Space a secret HF_TOKEN that may read it.\n" if private else "",
    )
    requirements = [
        "accelerate",
        "pillow",
        "torch",
        "torchvision",
        f"transformers>={package.recipe.versions['transformers']}",
    ]
    return {
        "app.py": app.encode(),
        PAGE_NAME: Path(__file__).with_name("page.py").read_bytes(),
        CARD_NAME: readme.rstrip().encode() + b"\n",
        "requirements.txt": ("\n".join(requirements) + "\n").encode(),
    }

"""A base model: its properties, and how it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError, one_line
from ..files import file_sha256
from ..hub import hub_error
from ..records import CONFIG_NAME, MOST_NAMES, WEIGHT_FILES, BaseRecord
from .families import Family
from .listing import told
from .shapes import LayerShape, layer_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

# Visual tokens are counted in a picture of this size if the config does not tell their number: LLaVA-1.5's input.
_REFERENCE_PICTURE = (336, 336)
# Packages that some processors need and that this package does not require.
_PROCESSOR_PACKAGES = ("torchvision", "num2words", "sentencepiece", "tiktoken")


@dataclass(frozen=True)
class BaseModel:
    """A resolved, pinned and checked base.

    Attributes:
        name: the base as the user wrote it.
        repo_id: on the Hub; None for a local folder.
        revision: the commit, 40 hex digits; None for a local folder.
        path: the folder of its files: a snapshot in the Hub's cache, or the local folder.
        config: its ``config.json`` as it is; fields with default values may be missing.
        family: its architecture.
        files: sorted names of the files that a package takes over, but for ``config.json`` and the card.
        left_out: sorted names of everything else (see `listing`); None if they are not known.
    """

    name: str
    repo_id: str | None
    revision: str | None
    path: Path
    config: dict[str, Any]
    family: Family
    files: tuple[str, ...]
    left_out: tuple[str, ...] | None = None

    @cached_property
    def complete_config(self) -> dict[str, Any]:
        """`config` with the defaults of the stock class filled in.

        Raises:
            ShortVError: the config is not valid.
        """
        from transformers import AutoConfig

        try:  # `for_model` never runs code of the base
            return AutoConfig.for_model(**copy.deepcopy(self.config)).to_dict()
        except Exception as error:  # the config classes raise many kinds
            raise ShortVError(f"{self.name}: its {CONFIG_NAME} is not valid: {one_line(error)}") from error

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of `complete_config`."""
        return self.complete_config["text_config"]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers of the language model."""
        return self.text_config["num_hidden_layers"]

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]:
        """The widths of every decoder layer."""
        return layer_shapes(self.text_config)

    @cached_property
    def visual_tokens(self) -> int:
        """Number of visual tokens of one image, or of one tile if the family cuts images into tiles.

        If the config does not tell, they are counted in the processor's output for a square picture.

        Raises:
            ShortVError: the processor cannot be loaded, or gives no visual tokens.
        """
        tokens = self.configured_visual_tokens
        return _processed_visual_tokens(self) if tokens is None else tokens

    @property
    def prompt_visual_tokens(self) -> int:
        """Number of visual tokens in the paper's cost model: 576 for LLaVA-1.5, 2880 for LLaVA-NeXT."""
        return self.family.tiles * self.visual_tokens

    @property
    def image_token_id(self) -> int:
        """The id of an image's visual tokens in ``input_ids``."""
        return find_image_token(self.config)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the weight files and of their index."""
        return tuple(name for name in self.files if name.endswith(WEIGHT_FILES))

    @cached_property
    def weight_sizes(self) -> dict[str, int]:
        """Name and size in bytes of the safetensors files, also before they are downloaded.

        Raises:
            ShortVError: they are not downloaded, and the Hub cannot be reached.
        """
        names = [name for name in self.files if name.endswith(".safetensors")]
        if self.repo_id is None or all((self.path / name).exists() for name in names):
            return {name: (self.path / name).stat().st_size for name in names}
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        try:
            info = HfApi().model_info(self.repo_id, revision=self.revision, files_metadata=True)
        except (HTTPError, OSError) as error:
            raise hub_error(error, f"model {self.name}") from error
        return {file.rfilename: file.size or 0 for file in info.siblings or () if file.rfilename in names}

    @property
    def weight_bytes(self) -> int:
        """The sum of `weight_sizes`."""
        return sum(self.weight_sizes.values())

    @property
    def configured_visual_tokens(self) -> int | None:
        """`visual_tokens` according to the config; None if it does not tell."""
        if type(self.config.get("image_seq_length")) is int:
            return self.config["image_seq_length"]
        vision = self.complete_config.get("vision_config") or {}
        strategy = self.complete_config.get("vision_feature_select_strategy")
        image_size, patch_size = (vision.get(name) for name in ("image_size", "patch_size"))
        if strategy is None or image_size is None or patch_size is None or isinstance(image_size, list | tuple):
            return None
        if self.complete_config.get("downsample_factor"):  # merges several patches into a token
            return None
        patches = (image_size // patch_size) ** 2
        # CLIP puts a class token before the patches, which "full" keeps. Other vision models have no class token.
        return patches + (strategy == "full" and vision["model_type"] == "clip_vision_model")

    def record(self, known: Mapping[str, str] | None = None) -> BaseRecord:
        """The base as a recipe names it.

        Args:
            known: the sha256 of files that were just read. The others of `files` are hashed; hashes of large files
                are cached.
        """

        def entry(name: str) -> dict[str, Any]:
            path = self.path / name
            sha256 = (known or {}).get(name) or file_sha256(path, remembered=True, folder=self.path)
            return {"sha256": sha256, "size": path.stat().st_size}

        # One file keeps one core busy; with more files at once, the disk is the limit.
        with ThreadPoolExecutor(max_workers=4) as workers:
            files = dict(zip(self.files, workers.map(entry, self.files), strict=True))
        others = self.left_out
        return BaseRecord(
            repo_id=self.repo_id,
            revision=self.revision,
            config_sha256=file_sha256(self.path / CONFIG_NAME, folder=self.path),
            files=files,
            left_out=None if others is None else {"number": len(others), "names": told(others[:MOST_NAMES])},
        )


def load_base(
    base: BaseModel, *, dtype: Any = "auto", device_map: Any = None, max_memory: Any = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The stock model of a base, in eval mode, and its processor. The options are those of ``from_pretrained``.

    Raises:
        ShortVError: the base cannot be loaded, or its weights do not match its config.
    """
    from transformers import AutoModelForImageTextToText

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            base.path,
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and torch raise many kinds
        raise ShortVError(f"{base.name} cannot be loaded: {one_line(error)}") from error
    model, loading = loaded
    for kind, keys in loading.items():
        if keys:
            what = f"{len(keys)} {kind.replace('_', ' ')}, such as {min(map(str, keys))}"
            raise ShortVError(f"{base.name}: its weights do not match its config ({what}); use a complete base.")
    return model.eval(), load_processor(base)


def load_processor(base: BaseModel) -> ProcessorMixin:
    """The processor of a base.

    Raises:
        ShortVError: the processor cannot be loaded.
    """
    from transformers import AutoProcessor

    try:
        processor: ProcessorMixin = AutoProcessor.from_pretrained(
            base.path, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # tokenizers raises bare Exception
        message = str(error).lower()
        for package in _PROCESSOR_PACKAGES:
            if package in message and find_spec(package) is None:
                raise ShortVError(
                    f"{base.name}: its processor needs {package}, which is not installed: pip install {package}."
                ) from error
        raise ShortVError(f"{base.name}: its processor cannot be loaded: {one_line(error)}") from error
    if not hasattr(processor, "tokenizer"):  # without a processor's class, transformers gives a tokenizer
        raise ShortVError(
            f"{base.name}: its processor cannot be loaded: transformers knows no class for it; name the right "
            "processor_class in its processor_config.json."
        )
    return processor


def find_image_token(config: Mapping[str, Any], name: str = "the base") -> int:
    """The image token id in a config.

    Raises:
        ShortVError: there is none.
    """
    for field in ("image_token_id", "image_token_index", "image_patch_id"):
        if type(config.get(field)) is int and config[field] >= 0:
            return config[field]
    raise ShortVError(
        f"{name}: its {CONFIG_NAME} names no image token, so visual tokens cannot be found; add image_token_id."
    )


def _processed_visual_tokens(base: BaseModel) -> int:
    """Number of visual tokens in the processor's output for one picture."""
    from PIL import Image
    from transformers import AutoConfig

    from .definition import visual_tokens

    processor: Any = load_processor(base)
    try:
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": "?"}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        else:
            prompt = processor.image_token
        picture = Image.new("RGB", _REFERENCE_PICTURE)
        inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
        config = AutoConfig.for_model(**copy.deepcopy(base.config))
        count = int(visual_tokens(config, inputs["input_ids"]).sum())
    except Exception as error:  # the processor classes raise many kinds
        raise ShortVError(f"{base.name}: its processor cannot be used: {one_line(error)}") from error
    if not count:
        raise ShortVError(f"{base.name}: its processor puts no image token into a prompt; use a complete base.")
    return count

"""A base model: its properties, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShortVError, one_line
from ..files import file_sha256
from ..hub import hub_error
from ..records import CONFIG_NAME, MOST_NAMES, WEIGHT_FILES, BaseRecord
from .config import Description, Skeleton, describe
from .families import Family
from .listing import told
from .shapes import LayerShape, layer_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    @property
    def state(self) -> list[Any]:
        """What tells a later run whether this is still the same base, as JSON values."""
        stats: dict[str, list[int]] = {}
        if self.revision is None:  # a folder's files may change between two runs
            stats = {name: [(stat := (self.path / name).stat()).st_size, stat.st_mtime_ns] for name in self.files}
        return [self.repo_id, self.revision, stats, self.config]

    @property
    def complete_config(self) -> dict[str, Any]:
        """`config` with the defaults of the stock class filled in.

        Raises:
            ShortVError: the config is not valid.
        """
        return self._description.complete

    @property
    def skeleton(self) -> Skeleton:
        """The size of its stock model.

        Raises:
            ShortVError: transformers cannot build the model.
        """
        if isinstance(found := self._description.skeleton, ShortVError):
            raise found
        return found

    @cached_property
    def _description(self) -> Description:
        return describe(self.name, self.config, self.family.base_class)

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
        from .processor import Processor

        if (tokens := self.configured_visual_tokens) is not None:
            return tokens
        with Processor(self) as processor:
            return processor.reference.visual_tokens

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

    def record(self, known: Mapping[str, str] | None = None, *, weights: bool = True) -> BaseRecord:
        """The base as a recipe names it.

        Args:
            known: the sha256 of files that were just read. The others of `files` are hashed; hashes of large files
                are cached.
            weights: whether to hash the weight files, too; else they are left out.
        """
        names = [name for name in self.files if weights or not name.endswith(".safetensors")]

        def entry(name: str) -> dict[str, Any]:
            path = self.path / name
            sha256 = (known or {}).get(name) or file_sha256(path, remembered=True, folder=self.path)
            return {"sha256": sha256, "size": path.stat().st_size}

        # One file keeps one core busy; with more files at once, the disk is the limit.
        with ThreadPoolExecutor(max_workers=4) as workers:
            files = dict(zip(names, workers.map(entry, names), strict=True))
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
) -> PreTrainedModel:
    """The stock model of a base, in eval mode. The options are those of ``from_pretrained``.

    It runs here and not in a worker: its config was built in one, and `check_weights` compared it with the files.

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
    stock: PreTrainedModel = model.eval()
    return stock


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

"""Resolving, checking and loading base models, from folders and from a loopback Hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shortv_export.base.families import FAMILIES
from shortv_export.base.model import BaseModel, load_base
from shortv_export.base.processor import Processor, load_processor
from shortv_export.base.resolve import fetch_weights, resolve_base, resolve_pinned
from shortv_export.base.shapes import LayerShape
from shortv_export.errors import ShortVError, one_line
from shortv_export.files.copies import copies_are_clones
from shortv_export.loopback import LoopbackHub
from shortv_export.options import Contents
from shortv_export.packaging.build import Draft
from shortv_export.selection.presets import given_selection
from tests.support.packages import make_package
from tests.support.tiny_llava import SPECIAL_TOKENS, word_tokenizer

# A config.json in the manner of the llava-hf repositories: whatever is at its default is left out.
LLAVA_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
SMALL_FILES = ("chat_template.jinja", "generation_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def base_folder(tiny_base: Callable[..., Path], tmp_path: Path) -> Path:
    """A base in two shards that a test may damage."""
    return shutil.copytree(tiny_base(num_shards=2), tmp_path / "base")


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def refusal(base: str | Path, **arguments: Any) -> str:
    """The message with which a base is refused: one line, and its folder is as it was."""
    before = sorted(Path(base).glob("**/*")) if base else []
    with pytest.raises(ShortVError) as caught:
        resolve_base(base, **arguments)
    assert not base or sorted(Path(base).glob("**/*")) == before
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def with_config(config: dict[str, Any]) -> BaseModel:
    return BaseModel("a base", None, None, Path("nowhere"), config, FAMILIES[config["model_type"]], ())


# What a base is


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_local_folder(tiny_base: Callable[..., Path], model_type: str) -> None:
    folder = tiny_base(model_type, num_shards=2, num_key_value_heads=2)
    base = resolve_base(folder)
    assert (base.name, base.repo_id, base.revision, base.path) == (str(folder), None, None, folder)
    assert base.family is FAMILIES[model_type]
    assert base.files == tuple(sorted((*SMALL_FILES, *TOKENIZER_FILES, *SHARDS, INDEX)))
    assert base.num_layers == 4
    assert base.layer_shapes == (LayerShape(64, 128, 64, 32),) * 4
    assert base.visual_tokens == 16
    assert base.config == json.loads((folder / "config.json").read_text(encoding="utf-8"))
    record = base.record()
    assert (record.repo_id, record.revision) == (None, None)
    assert list(record.files) == list(base.files)
    for name, entry in record.files.items():
        content = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    assert str(folder) not in repr(record)


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_load_is_the_stock_model(tiny_base: Callable[..., Path], model_type: str) -> None:
    import torch

    base = resolve_base(tiny_base(model_type))
    model, processor = load_base(base, dtype="bfloat16"), load_processor(base.path)
    assert type(model).__name__ == FAMILIES[model_type].base_class
    assert type(model).__module__.startswith("transformers.")
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert processor.image_token == "<image>"
    assert resolve_base(tiny_base(model_type)).image_token_id == model.config.image_token_id


def test_published_config_without_defaults_is_completed() -> None:
    base = with_config(LLAVA_7B)
    assert base.num_layers == 32
    assert base.layer_shapes == (LayerShape(4096, 11008, 4096, 4096),) * 32
    assert base.visual_tokens == 576
    assert base.image_token_id == 32000
    assert "num_hidden_layers" not in base.config["text_config"]


def test_visual_tokens() -> None:
    vision = {**LLAVA_7B["vision_config"], "image_size": 224}  # type: ignore[dict-item]
    config: dict[str, Any] = {**LLAVA_7B, "vision_config": vision}
    assert with_config(config).visual_tokens == 256
    assert with_config({**config, "vision_feature_select_strategy": "full"}).visual_tokens == 257
    assert with_config({**config, "image_seq_length": 144}).visual_tokens == 144


def test_visual_tokens_by_the_processor(tmp_path: Path) -> None:
    """A config without fields for them: what this family's own processor makes of a picture is counted."""
    from tokenizers import models
    from transformers import Gemma3Config, Gemma3Processor, PreTrainedTokenizerFast
    from transformers.models.gemma3 import Gemma3ImageProcessorPil

    tokens = {"boi_token": "<start>", "eoi_token": "<end>", "image_token": "<soft>"}
    words = [*SPECIAL_TOKENS, "?", *tokens.values()]
    model = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(model, model_max_length=64).backend_tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=tokens,
    )
    template = "{% for part in messages[0]['content'] %}{{ '<start>' if part['type'] == 'image' else part['text'] }}"
    Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        image_seq_length=6,
        chat_template=template + "{% endfor %}",
    ).save_pretrained(tmp_path)
    Gemma3Config(image_token_index=words.index("<soft>")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    base = BaseModel("a base", None, None, tmp_path, config, FAMILIES["gemma3"], ())
    assert (base.visual_tokens, base.prompt_visual_tokens) == (6, 6)

    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    base = BaseModel("a base", None, None, tmp_path, config, FAMILIES["gemma3"], ())
    with pytest.raises(ShortVError, match="a base: its processor cannot be loaded: ") as caught:
        base.visual_tokens  # noqa: B018
    assert "\n" not in str(caught.value)


def test_config_tells_without_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortv_export.base.processor.Processor", None)
    assert with_config(LLAVA_7B).prompt_visual_tokens == 576
    assert with_config({**LLAVA_7B, "model_type": "llava_next"}).prompt_visual_tokens == 5 * 576


def test_files_are_all_that_a_user_needs_and_nothing_else(base_folder: Path) -> None:
    wanted = ("LICENSE", "LICENSE.txt", "NOTICE.md", "USE_POLICY.md", "tokenizer.model", "added_tokens.json")
    wanted += (
        "special_tokens_map.json",
        "preprocessor_config.json",
        "chat_template.json",
        "vocab.json",
        "merges.txt",
    )
    unwanted = (
        "pytorch_model.bin",
        "training_args.bin",
        "flax_model.msgpack",
        "tf_model.h5",
        "model.onnx",
        "code.py",
    )
    unwanted += (
        ".gitattributes",
        "LICENSE.py",
        "consolidated.safetensors",
        "trainer_state.json",
        "image.png",
    )
    for name in (*wanted, *unwanted):
        (base_folder / name).write_text("{}", encoding="utf-8")
    (base_folder / "folder").mkdir()
    (base_folder / "folder" / "tokenizer.json").write_text("{}", encoding="utf-8")
    files = resolve_base(base_folder).files
    assert set(files) == {*SMALL_FILES, *TOKENIZER_FILES, *SHARDS, INDEX, *wanted}


# Refusals


def test_no_such_folder(tmp_path: Path) -> None:
    for base in ("./nowhere", tmp_path / "nowhere", str(tmp_path / "nowhere"), "~/no where", "~nobody/x", "", "./\0"):
        with pytest.raises(ShortVError, match=r"^there is no folder "):
            resolve_base(base)
    file = tmp_path / "file"
    file.touch()
    assert refusal(str(file)).startswith("there is no folder ")


def test_revision_of_a_folder(base_folder: Path) -> None:
    assert "has no revisions" in refusal(base_folder, revision="main")


def test_folder_without_config(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "not a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\x00", "not valid JSON"),
    ],
)
def test_config_that_is_no_object(base_folder: Path, text: str, reason: str) -> None:
    (base_folder / "config.json").write_text(text, encoding="utf-8")
    assert reason in refusal(base_folder)


@pytest.mark.parametrize(
    ("name", "mebibytes"),
    [
        ("config.json", 4),
        ("tokenizer_config.json", 4),
        ("chat_template.jinja", 1),
        (INDEX, 64),
        ("tokenizer.json", 256),
    ],
)
def test_oversized_file(base_folder: Path, name: str, mebibytes: int) -> None:
    os.truncate(base_folder / name, (mebibytes << 20) + 1)
    assert f"{name} is larger than {mebibytes << 20:,} bytes" in refusal(base_folder)


# Fields that no Llama has, but that would be read.
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "mllama"}, "mllama"),
        ({"model_type": "shortv_llava"}, "is a ShortV model already"),
        ({"model_type": ["llava"]}, "not supported"),
        ({"text_config": {"model_type": "gemma2"}}, "'gemma2' text model"),
        ({"text_config": {"num_hidden_layers": "4"}}, "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": 4.0}}, "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": True}}, "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": 0}}, "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": -1}}, "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": 1 << 40}}, "num_hidden_layers"),
        ({"text_config": {"num_experts": 8}}, "intermediate_size 0"),
        ({"text_config": {**EXPERTS, "num_experts": "8"}}, "router_size '8'"),
        ({"text_config": {**EXPERTS, "moe_intermediate_size": [48]}}, "is not valid"),
        ({"text_config": {**EXPERTS, "moe_intermediate_size": [48, -48]}}, "visual_intermediate_size -96"),
        ({"text_config": {**EXPERTS, "decoder_sparse_step": 0}}, "is not valid"),
        ({"text_config": {**EXPERTS, "mlp_layer_types": ["sparse"]}}, "is not valid"),
        ({"text_config": {**EXPERTS, "moe_layers": 3}}, "is not valid"),
        ({"text_config": []}, "is not valid"),
        ({"vision_config": "clip"}, "is not valid"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "original LLaVA code's layout"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "original LLaVA code's layout"),
        ({"image_token_index": None}, "names no image token"),
        ({"image_token_index": True}, "names no image token"),
        ({"image_token_index": "<image>"}, "names no image token"),
        ({"image_token_index": ...}, "names no image token"),
    ],
)
def test_unusable_config(base_folder: Path, change: dict[str, Any], reason: str) -> None:
    config = base_folder / "config.json"
    edit_json(config, lambda value: value.update({k: v for k, v in change.items() if v is not ...}))
    edit_json(config, lambda value: [value.pop(k) for k, v in change.items() if v is ...])
    assert reason in refusal(base_folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=9), values, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_config_is_accepted_or_refused(
    base_folder: Path, tiny_base: Callable[..., Path], data: st.DataObject
) -> None:
    """Whatever stands in a field: a base with sound numbers or a one-line refusal, never a crash."""
    config = json.loads((tiny_base(num_shards=2) / "config.json").read_text(encoding="utf-8"))
    part = data.draw(st.sampled_from([config, config["text_config"], config["vision_config"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(JSON)
    (base_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    try:
        base = resolve_base(base_folder)
    except ShortVError:
        refusal(base_folder)
        return
    numbers = (
        base.num_layers,
        base.visual_tokens,
        base.image_token_id + 1,
        *(
            number
            for shape in base.layer_shapes
            for number in vars(
                replace(shape, router_size=1, visual_intermediate_size=1, gate_size=1, mixer_flops=1)
            ).values()
        ),
    )
    assert all(type(number) is int and number > 0 for number in numbers)


def test_adapter(base_folder: Path) -> None:
    (base_folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "merge it" in refusal(base_folder)


@pytest.mark.parametrize(
    ("missing", "kind"), [(("processor_config.json",), "no processor"), (TOKENIZER_FILES, "no tokenizer")]
)
def test_missing_processor_or_tokenizer(base_folder: Path, missing: tuple[str, ...], kind: str) -> None:
    for name in missing:
        (base_folder / name).unlink()
    assert kind in refusal(base_folder)


def test_processor_with_code_of_its_own(base_folder: Path) -> None:
    """A package is loaded with trust_remote_code=True: such an entry would run somebody's code there."""
    entry = {"auto_map": {"AutoImageProcessor": "someone/else--code.Processor"}}
    edit_json(base_folder / "processor_config.json", lambda value: value["image_processor"].update(entry))
    assert "auto_map" in refusal(base_folder)


def test_weights_only_as_pickle(base_folder: Path) -> None:
    for name in (*SHARDS, INDEX):
        (base_folder / name).unlink()
    assert "has no weights" in refusal(base_folder)
    for name in ("pytorch_model.bin", "model.pt", "model.pth"):
        (base_folder / name).write_bytes(b"\x80\x04N.")
        message = refusal(base_folder)
        assert name in message
        assert "convert to safetensors" in message
        (base_folder / name).unlink()


def test_missing_shard(base_folder: Path) -> None:
    (base_folder / SHARDS[1]).unlink()
    assert f"{SHARDS[1]}, which its {INDEX} names, is missing" in refusal(base_folder)


def test_shard_without_a_tensor_of_the_index(base_folder: Path) -> None:
    edit_json(base_folder / INDEX, lambda index: index["weight_map"].update({"no.such.tensor": SHARDS[0]}))
    assert "lacks the tensor 'no.such.tensor'" in refusal(base_folder)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": {}}, {"weight_map": [SHARDS[0]]}])
def test_index_without_map(base_folder: Path, index: Any) -> None:
    (base_folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    assert "has no weight_map" in refusal(base_folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(
        st.sampled_from(
            [
                "../x.safetensors",
                "/x.safetensors",
                "a/x.safetensors",
                "..",
                ".hidden.safetensors",
                "x.bin",
                "*.safetensors",
            ]
        ),
        st.builds("{}/{}.safetensors".format, st.text(max_size=5), st.text(max_size=5)),
        st.text(max_size=20).filter(lambda name: not name.isascii() or not name.endswith(".safetensors")),
        st.none() | st.integers() | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_index_with_a_name_that_is_no_plain_file(base_folder: Path, name: Any) -> None:
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": name}})
    (base_folder / INDEX).write_text(index, encoding="utf-8")
    assert "is not a safetensors file beside it" in refusal(base_folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_shard(base_folder: Path, tiny_base: Callable[..., Path], data: st.DataObject) -> None:
    """Cut anywhere, grown, or with a header that says anything else about the file: refused."""
    content = (tiny_base(num_shards=2) / SHARDS[0]).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensor = data.draw(st.sampled_from([name for name in header if name != "__metadata__"]))
    start, end = header[tensor]["data_offsets"]

    def with_header(change: dict[str, Any]) -> bytes:
        text = json.dumps({**header, tensor: {**header[tensor], **change}}).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    damaged = data.draw(
        st.one_of(
            st.integers(0, len(content) - 1).map(lambda size: content[:size]),
            st.binary(min_size=1, max_size=9).map(lambda rest: content + rest),
            st.integers(0, 2**64 - 1)
            .filter(lambda wrong: wrong != length)
            .map(lambda wrong: struct.pack("<Q", wrong) + content[8:]),
            st.integers(0, length - 1).map(lambda at: content[: 8 + at] + b"\xff" + content[9 + at :]),
            st.integers(1, 64).map(lambda more: with_header({"data_offsets": [start, end + more]})),
            st.integers(1, 64).map(lambda more: with_header({"shape": [*header[tensor]["shape"], 1 + more]})),
            st.just(with_header({"dtype": "F64"})),
        )
    )
    (base_folder / SHARDS[0]).write_bytes(damaged)
    assert f"{SHARDS[0]} is truncated or damaged" in refusal(base_folder)


def test_a_link_that_leads_nowhere(base_folder: Path) -> None:
    (base_folder / "LICENSE").symlink_to("LICENSE")
    (base_folder / "NOTICE").symlink_to("nothing")
    assert not {"LICENSE", "NOTICE"} & {*resolve_base(base_folder).files}


def test_links(base_folder: Path, tmp_path: Path) -> None:
    inside = base_folder / "other.safetensors"
    (base_folder / SHARDS[0]).rename(inside)
    (base_folder / SHARDS[0]).symlink_to(inside.name)
    assert resolve_base(base_folder).files
    for name in ("tokenizer.json", "config.json", INDEX, SHARDS[1]):
        outside = tmp_path / name
        (base_folder / name).rename(outside)
        (base_folder / name).symlink_to(outside)
        assert f"{name} is a link out of its folder" in refusal(base_folder)
        outside.rename(base_folder / name)


def test_weights_that_do_not_match_the_config(base_folder: Path) -> None:
    config = base_folder / "config.json"
    for layers in (3, 5):
        edit_json(config, lambda value, layers=layers: value["text_config"].update(num_hidden_layers=layers))
        with pytest.raises(ShortVError, match=r"weights do not match its config .*layers\.[34]\.") as caught:
            load_base(resolve_base(base_folder))
        assert "\n" not in str(caught.value)
    edit_json(config, lambda value: value["text_config"].update(num_hidden_layers=4, intermediate_size=64))
    with pytest.raises(ShortVError, match="base") as caught:
        load_base(resolve_base(base_folder))
    assert "\n" not in str(caught.value)


def test_processor_that_cannot_be_loaded(base_folder: Path) -> None:
    (base_folder / "tokenizer.json").write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(ShortVError, match="processor cannot be loaded") as caught:
        _ = Processor(resolve_base(base_folder)).reference
    assert "\n" not in str(caught.value)


@given(st.text())
def test_one_line(text: str) -> None:
    line = one_line(ValueError(text))
    assert 0 < len(line) <= 300
    assert len(line.splitlines()) == 1


# On the Hub


def contents(folder: Path) -> dict[str, bytes | Path]:
    return {path.name: path for path in folder.iterdir()}


def downloaded(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").glob("**/snapshots/*/*")}


def test_hub_repository(hub: LoopbackHub, tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    extra: dict[str, bytes | Path] = {
        "pytorch_model.bin": b"x",
        "code.py": b"x",
        ".gitattributes": b"x",
        "a/b.json": b"x",
    }
    first = hub.create_repo("acme/base", files={**contents(tiny_base(num_shards=2)), **extra})
    base = resolve_base("acme/base")
    assert (base.name, base.repo_id, base.revision) == ("acme/base", "acme/base", first)
    assert base.files == resolve_base(tiny_base(num_shards=2)).files
    assert base.record().files == resolve_base(tiny_base(num_shards=2)).record().files
    assert downloaded(tmp_path) == {*base.files, "config.json", "README.md"}
    assert load_base(base).config.model_type == "llava"
    # The snapshot's files are links into the cache's blobs: fine as a folder, too.
    assert resolve_base(base.path).files == base.files

    hub.commit("acme/base", {"generation_config.json": b"{}"})
    assert resolve_base("acme/base", revision=first).record() == base.record()
    assert resolve_base("acme/base").record() != base.record()


@pytest.mark.parametrize("decoy", ["folder", "link", "file", "nothing"])
def test_a_pinned_base_is_never_a_folder(
    hub: LoopbackHub, tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoy: str
) -> None:
    base, other = tiny_base(), tiny_base(seed=1)
    revision = hub.create_repo("acme/base", files={path.name: path for path in base.iterdir()})
    hub.commit("acme/base", {"model.safetensors": other / "model.safetensors"})
    place = tmp_path / "here" / "acme" / "base"
    place.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    if decoy == "folder":
        shutil.copytree(other, place)
    elif decoy == "link":
        place.symlink_to(other)
    elif decoy == "file":
        place.touch()
    pinned = resolve_pinned("acme/base", revision)
    assert (pinned.name, pinned.repo_id, pinned.revision) == ("acme/base", "acme/base", revision)
    assert (pinned.path / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["../x", "/x", "~", "x/y/z", ""])
def test_a_pinned_base_has_a_hub_id(hub: LoopbackHub, name: str) -> None:
    with pytest.raises(ShortVError) as caught:
        resolve_pinned(name, "0" * 40)
    assert "\n" not in str(caught.value)


def test_hub_offline(hub: LoopbackHub, tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.create_repo("acme/base", files=contents(tiny_base(num_shards=2)))
    online = resolve_base("acme/base")
    requests = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_base("acme/base") == online
    assert resolve_base("acme/base", revision=online.revision) == online
    assert "is not in the cache" in refusal("acme/other")
    (online.path / SHARDS[1]).unlink()
    assert f"{SHARDS[1]}, which its {INDEX} names, is missing" in refusal("acme/base")
    assert len(hub.requests) == requests


def test_hub_refusals_come_before_the_weights(hub: LoopbackHub, base_folder: Path, tmp_path: Path) -> None:
    edit_json(base_folder / "config.json", lambda value: value.update(model_type="blip"))
    hub.create_repo("acme/blip", files=contents(base_folder))
    assert "supported: llava, llava_next" in refusal("acme/blip")

    original = {"model_type": "llava", "mm_vision_tower": "x", "architectures": ["LlavaLlamaForCausalLM"]}
    hub.create_repo("liuhaotian/llava-v1.5-13b", files={"config.json": json.dumps(original).encode()})
    assert "llava-hf/llava-1.5-13b-hf" in refusal("liuhaotian/llava-v1.5-13b")

    hub.create_repo("acme/empty", files={"README.md": b"nothing"})
    assert "has no config.json" in refusal("acme/empty")
    assert not [name for name in downloaded(tmp_path) if name.endswith(".safetensors")]


def test_hub_errors_are_told_apart(
    hub: LoopbackHub, tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo("acme/base", files=contents(tiny_base(num_shards=2)))
    hub.create_repo("other/gated", files=contents(tiny_base(num_shards=2)), gated=True)
    assert "not on the Hub, or is private" in refusal("acme/none")
    assert "is gated" in refusal("other/gated")
    assert "neither a folder here nor a Hub id" in refusal("a/b/c")
    assert "at revision v9 has no such revision" in refusal("acme/base", revision="v9")
    hub.fail(lambda request: request.path.startswith("/api/models"), status=503, times=100)
    message = refusal("acme/base")
    assert "acme/base was refused by the Hub, try again later" in message
    assert "503" in message
    hub.stop()
    assert "could not be reached" in refusal("acme/base")
    assert hub.token not in message


def test_hub_shard_that_breaks_off(hub: LoopbackHub, base_folder: Path) -> None:
    shard = base_folder / SHARDS[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    hub.create_repo("acme/base", files=contents(base_folder))
    assert f"{SHARDS[0]} is truncated or damaged" in refusal("acme/base")


def free_space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Every disk has this much left: a real one cannot be filled here."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=free))


def test_weights_that_do_not_fit_are_not_downloaded(
    hub: LoopbackHub, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.create_repo("acme/base", files=contents(base_folder))
    sizes = {shard: (base_folder / shard).stat().st_size for shard in SHARDS}
    free_space(monkeypatch, sum(sizes.values()) - 1)
    needed = "downloading the weights of acme/base needs 0.0 GB, and 0.0 GB are free in "
    with pytest.raises(ShortVError, match=needed) as caught:
        resolve_base("acme/base")
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "cache") in message
    assert message.endswith("; make room there, or set HF_HOME to a folder on another disk.")
    assert not {*SHARDS} & downloaded(tmp_path)
    outline = resolve_base("acme/base", weights=False)
    assert outline.weight_bytes == sum(sizes.values())
    # The last byte.
    free_space(monkeypatch, sum(sizes.values()))
    assert resolve_base("acme/base").weight_bytes == sum(sizes.values())

    # Nothing more to download, by this commit or by another with the same weights.
    free_space(monkeypatch, 0)
    assert resolve_base("acme/base", revision=commit).files
    hub.commit("acme/base", {"NOTICE": b"changed"})
    assert resolve_base("acme/base").revision != commit
    # One shard is new.
    content = (base_folder / SHARDS[0]).read_bytes()
    hub.commit("acme/base", {SHARDS[0]: content[:-4] + b"\1\2\3\4"})
    free_space(monkeypatch, len(content) - 1)
    with pytest.raises(ShortVError, match="downloading the weights of acme/base needs"):
        resolve_base("acme/base")
    free_space(monkeypatch, len(content))
    assert resolve_base("acme/base").files


def test_copies_that_do_not_fit_are_not_begun(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if copies_are_clones(base_folder / SHARDS[0], tmp_path):
        pytest.skip("copies take no room on this file system")
    base, selection = resolve_base(base_folder), given_selection([1], 4)
    out = tmp_path / "new" / "out"
    free_space(monkeypatch, base.weight_bytes - 1)
    with pytest.raises(ShortVError) as caught:
        make_package(base, out, selection)
    message = str(caught.value)
    assert message.startswith(f"copying the weights of {base.name} needs 0.0 GB, and 0.0 GB are free in {tmp_path}; ")
    assert message.endswith("choose `weights` reference.")
    assert not out.parent.exists()
    free_space(monkeypatch, base.weight_bytes)
    make_package(base, out, selection)
    assert (out / SHARDS[0]).read_bytes() == (base_folder / SHARDS[0]).read_bytes()


def test_room_for_download_and_copy(
    hub: LoopbackHub, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the download, the disk must have room for both; a reference takes none."""
    if copies_are_clones(base_folder / SHARDS[0], tmp_path):
        pytest.skip("copies take no room on this file system")
    hub.create_repo("acme/base", files=contents(base_folder))
    base = resolve_base("acme/base", weights=False)
    free_space(monkeypatch, 2 * base.weight_bytes - 1)
    with pytest.raises(ShortVError, match=r"^downloading and copying the weights of acme/base needs"):
        Draft.of(base, tmp_path / "out")
    Draft.of(base, tmp_path / "out", Contents(weights="reference"))
    free_space(monkeypatch, 2 * base.weight_bytes)
    Draft.of(base, tmp_path / "out")
    fetch_weights(base)
    free_space(monkeypatch, base.weight_bytes)
    Draft.of(resolve_base("acme/base"), tmp_path / "out")

"""Loading, placing, copying and saving ShortV models; wrong ways are refused."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from tests.support.definition import LISTS, MIXED, RAGGED, TOLERANCE, edit_config, frozen_lists, relative_error

AUTO_CLASSES = ["AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"]


def logits(model: Any, inputs: Any) -> Any:
    with torch.no_grad():
        return model.eval()(**inputs).logits


def run_fresh(program: str, *arguments: Any, expect: int = 0) -> dict[str, Any]:
    """Runs Python code in a new process; returns the last line of its output, which is JSON."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    process = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=120,
    )
    assert process.returncode == expect, process.stderr[-3000:]
    return json.loads(process.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_auto_classes_load_the_generative_model(load_pair, name):
    auto = getattr(transformers, name, None)
    if auto is None:
        pytest.skip(f"this transformers version has no {name}")
    pair = load_pair()
    model, report = auto.from_pretrained(pair.folder, trust_remote_code=True, output_loading_info=True)
    assert type(model).__name__ == "ShortVLlavaForConditionalGeneration"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = pair.inputs(RAGGED[0])
    assert torch.equal(logits(model, inputs), logits(pair.shortv, inputs))
    assert model.generate(**inputs, max_new_tokens=2).shape[1] >= inputs["input_ids"].shape[1] + 1


def test_processor_and_pipeline(load_pair, photos):
    from transformers import pipeline

    pair = load_pair()
    processor = AutoProcessor.from_pretrained(pair.folder, trust_remote_code=True)
    assert type(processor) is type(pair.processor)
    pipe = pipeline("image-text-to-text", model=str(pair.folder), trust_remote_code=True, device="cpu")
    assert type(pipe.model).__name__ == "ShortVLlavaForConditionalGeneration"
    content = [{"type": "image", "image": photos["astronaut"]}, {"type": "text", "text": "what is in this picture ?"}]
    messages = [{"role": "user", "content": content}]
    options = {"generate_kwargs": {"max_new_tokens": 4, "do_sample": False}}
    answer = pipe(text=messages, return_full_text=False, **options)[0]["generated_text"]
    stock = pipeline("image-text-to-text", model=pair.stock, processor=pair.processor, device="cpu")
    with pair.oracle():
        assert stock(text=messages, return_full_text=False, **options)[0]["generated_text"] == answer


class TestPlacement:
    def test_dtype(self, load_pair):
        pair = load_pair()
        for dtype in (torch.bfloat16, "bfloat16"):
            model = AutoModel.from_pretrained(pair.folder, trust_remote_code=True, dtype=dtype)
            assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        model = AutoModel.from_pretrained(pair.folder, trust_remote_code=True, torch_dtype="auto")
        assert model.dtype == torch.float32

    @pytest.mark.parametrize("model_type", ["llava", "llava_next"])
    def test_offload_to_disk(self, load_pair, model_type, tmp_path):
        pair = load_pair(model_type)
        device_map = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
        device_map |= {"model.image_newline": "cpu"} if model_type == "llava_next" else {}
        device_map |= {f"model.language_model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb")}
        device_map |= {f"model.language_model.layers.{index}": "cpu" if index == 1 else "disk" for index in range(4)}
        model = AutoModel.from_pretrained(
            pair.folder, trust_remote_code=True, device_map=device_map, offload_folder=tmp_path
        )
        assert model.model.language_model.layers[0].mlp.up_proj.weight.device.type == "meta"
        inputs = pair.inputs(*RAGGED)
        assert torch.equal(logits(model, inputs), logits(pair.shortv, inputs))
        assert model.shortv_report()["skipped_updates"] > 0
        for each in (pair.shortv, model):  # works after hooks have wrapped the layers
            each.freeze_layers([3], frozen_attention=[0], frozen_ffn=[1])
        assert torch.equal(logits(model, inputs), logits(pair.shortv, inputs))
        assert model.shortv_report() == pair.shortv.shortv_report()

    def test_device_map_auto(self, load_pair):
        pair = load_pair()
        model = AutoModel.from_pretrained(pair.folder, trust_remote_code=True, device_map="auto")
        inputs = pair.inputs(*RAGGED)
        assert torch.equal(logits(model, inputs), logits(pair.shortv, inputs))

    def test_cpu_offload(self, load_pair):
        from accelerate import cpu_offload

        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        expected = logits(pair.shortv, inputs)
        model = cpu_offload(copy.deepcopy(pair.shortv), execution_device=torch.device("cpu"))
        assert torch.equal(logits(model, inputs), expected)

    def test_text_rows_move_between_devices(self):
        """The copy on another device counts into the same report."""
        sys.path.insert(0, str(Path(__file__).parents[2] / "modeling"))
        try:
            from shortv_layers import find_text_rows
        finally:
            sys.path.pop(0)
        rows = find_text_rows(torch.tensor([[False, True, False], [True, True, False]]))
        assert rows.to("cpu") is rows
        moved = rows.to("meta")
        assert moved.rows.device.type == moved.filler.device.type == "meta"
        moved.skip("ffn", 0)
        assert rows.skipped == {("ffn", 0): 2}
        assert moved.updates is rows.updates

    def test_built_on_the_meta_device(self, load_pair):
        pair = load_pair()
        config = AutoConfig.from_pretrained(pair.folder, trust_remote_code=True)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=True)
        model.load_state_dict(pair.shortv.state_dict(), assign=True)
        assert frozen_lists(model.config) == MIXED
        assert not any(parameter.is_meta for parameter in model.parameters())


class TestCopies:
    def test_deepcopy(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        twin = copy.deepcopy(pair.shortv)
        assert torch.equal(logits(twin, inputs), logits(pair.shortv, inputs))
        twin.freeze_layers([1])
        assert frozen_lists(pair.shortv.config) == MIXED
        logits(twin, inputs)
        assert frozen_lists(twin.config) == {"frozen_layers": [1], "frozen_attention": [], "frozen_ffn": []}
        assert twin.shortv_report()["skipped_updates"] * 2 == pair.shortv.shortv_report()["skipped_updates"]

    def test_freezing_other_layers_or_none(self, load_pair):
        pair = load_pair()
        inputs = pair.inputs(*RAGGED)
        rows = inputs["attention_mask"].bool()
        for frozen_layers, *operators in (([3, 1, 0], [2]), ([], [3], [1, 0]), ([],), ([2],)):
            pair.shortv.freeze_layers(frozen_layers, *operators)
            assert pair.shortv.config.frozen_layers == sorted(frozen_layers)
            with pair.oracle():
                assert relative_error(logits(pair.shortv, inputs), logits(pair.stock, inputs), rows) <= TOLERANCE

    def test_module_and_class_names_are_the_stock_models(self, load_pair):
        """Weights, device maps, LoRA targets and quantisers depend on them."""
        pair = load_pair()
        assert list(pair.shortv.state_dict()) == list(pair.stock.state_dict())
        for (name, mine), (_, theirs) in zip(
            pair.shortv.model.named_modules(), pair.stock.model.named_modules(), strict=True
        ):
            assert type(mine).__name__ == type(theirs).__name__, name
            assert isinstance(mine, type(theirs)), name


# New processes: the registry of weight conversions is global, and must not hold entries of other tests.

LOAD = """
import json, sys, torch
from transformers import AutoModelForImageTextToText as Auto
out, kept = [], []
for line in sys.argv[1:]:
    folder, inputs = line.split("|")
    model, report = Auto.from_pretrained(folder, trust_remote_code="shortv" in folder, output_loading_info=True)
    bad = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind]]
    with torch.no_grad():
        logits = model.eval()(**torch.load(inputs)).logits
    torch.save(logits, inputs + ".logits")
    out.append([type(model).__name__, bad, model.shortv_report() if "shortv" in folder else None])
print(json.dumps(out))
"""


def test_weights_in_the_hub_layout_load_bit_for_bit(load_pair, tmp_path):
    """Without frozen layers, the logits equal the stock model's bit for bit."""
    jobs, names = [], []
    for model_type in ("llava", "llava_next"):
        pair = load_pair(model_type, frozen=[])
        tensors = _tensor_names(pair.folder)
        assert "language_model.lm_head.weight" in tensors
        assert "language_model.model.layers.0.self_attn.q_proj.weight" in tensors
        for kind, folder in (("shortv", pair.folder), ("stock", pair.base)):
            names.append(tmp_path / f"{kind}-{model_type}")
            torch.save(dict(pair.inputs(*RAGGED)), names[-1])
            jobs.append(f"{folder}|{names[-1]}")
    results = run_fresh(LOAD, *jobs)
    assert [result[0].removesuffix("ForConditionalGeneration") for result in results] == [
        "ShortVLlava",
        "Llava",
        "ShortVLlavaNext",
        "LlavaNext",
    ]
    assert all(result[1] == [] for result in results)
    saved = [torch.load(f"{name}.logits") for name in names]
    assert torch.equal(saved[0], saved[1])
    assert torch.equal(saved[2], saved[3])


def _tensor_names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_saved_and_loaded_in_a_fresh_process(load_pair, tmp_path):
    jobs, reports, expected, names = [], [], [], []
    for arguments in ({}, {"model_type": "llava_next", "tie_word_embeddings": True}):
        pair = load_pair(**arguments)
        with torch.no_grad():  # weights other than those of the folder, as after training
            pair.shortv.model.language_model.layers[1].mlp.up_proj.weight.mul_(1.5)
        frozen = {"frozen_layers": [1, 2], **({"frozen_attention": [0], "frozen_ffn": [3]} if jobs else {})}
        pair.shortv.freeze_layers(**frozen)
        inputs = pair.inputs(*RAGGED)
        saved = tmp_path / f"shortv-{len(jobs)}"
        expected.append(logits(pair.shortv, inputs))
        reports.append(pair.shortv.shortv_report())
        pair.shortv.save_pretrained(saved)
        config, original = (
            json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (saved, pair.folder)
        )
        assert {name: config[name] for name in LISTS if name in config} == frozen  # no list that is empty
        for field in ("model_type", "architectures"):
            assert config[field] == original[field]
        assert set(original["auto_map"]) >= set(config["auto_map"]) >= {"AutoConfig", "AutoModelForImageTextToText"}
        for code in pair.folder.glob("*.py"):
            assert (saved / code.name).read_bytes() == code.read_bytes()
        names.append(tmp_path / f"inputs-{len(jobs)}")
        torch.save(dict(inputs), names[-1])
        jobs.append(f"{saved}|{names[-1]}")
    for result, report, logits_before, name in zip(run_fresh(LOAD, *jobs), reports, expected, names, strict=True):
        assert result[1] == []
        assert result[2] == report
        assert report["skipped_updates"] > 0
        assert torch.equal(torch.load(f"{name}.logits"), logits_before)


WITHOUT_TRUST = """
import json, sys, logging, transformers
folder = sys.argv[1]
errors = {}
for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "pipeline"):
    try:
        if name == "pipeline":
            transformers.pipeline("image-text-to-text", model=folder)
        else:
            getattr(transformers, name).from_pretrained(folder)
        errors[name] = None
    except Exception as error:
        errors[name] = str(error)
records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
try:
    transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    errors["stock class"] = None
except Exception as error:
    errors["stock class"] = str(error)
errors["stock class says"] = " ".join(records)
print("\\n" + json.dumps(errors))
"""


def test_forgetting_to_trust_the_code_is_an_error(tiny_base, shortv_folder):
    result = run_fresh(WITHOUT_TRUST, shortv_folder(tiny_base(), [0, 2]))
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "pipeline"):
        assert result[name] is not None, f"{name} loaded without trust_remote_code"
        assert "trust_remote_code" in result[name], name
    # The stock class loads the stock model; transformers warns that the types differ.
    assert result["stock class"] is None
    assert "model of type `shortv_llava` to instantiate a model of type `llava`" in result["stock class says"].replace(
        "type shortv_llava", "type `shortv_llava`"
    ).replace("type llava.", "type `llava`.")


class TestRefusals:
    """A folder with a bad list of frozen layers must not load."""

    @pytest.mark.parametrize(
        ("frozen_layers", "message"),
        [
            (..., "no `frozen_layers`"),
            (None, "no `frozen_layers`"),
            ("0,2", "frozen_layers"),
            (2, "frozen_layers"),
            ({"0": 2}, "frozen_layers"),
            ([0, 4], "0..3"),
            ([-1], "0..3"),
            ([0, 0], "twice"),
            ([0.0, 2.0], "integers"),
            ([True], "integers"),
            (["0"], "integers"),
            ([[0]], "integers"),
            ([None], "integers"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
    def test_bad_lists(self, tiny_base, shortv_folder, frozen_layers, message, auto):
        folder = edit_config(shortv_folder(tiny_base(), []), frozen_layers=frozen_layers)
        with pytest.raises(Exception, match=message) as error:
            auto.from_pretrained(folder, trust_remote_code=True)
        assert isinstance(error.value, ValueError), type(error.value)
        assert "\n" not in str(error.value).strip()

    @pytest.mark.parametrize(
        ("lists", "message"),
        [
            ({"frozen_attention": "0,2"}, "`frozen_attention` must be a list of integers, not '0,2'."),
            ({"frozen_ffn": [True]}, "`frozen_ffn` must be a list of integers, not [True]."),
            ({"frozen_ffn": 0}, "`frozen_ffn` must be a list of integers, not 0."),
            ({"frozen_ffn": [4]}, "`frozen_ffn` must lie in 0..3: [4]."),
            ({"frozen_attention": [1, 1]}, "`frozen_attention` names a layer twice: [1, 1]."),
            ({"frozen_attention": [2]}, "`frozen_layers` and `frozen_attention` both name these layers: [2]."),
            ({"frozen_ffn": [3, 2, 0]}, "`frozen_layers` and `frozen_ffn` both name these layers: [0, 2]."),
            (
                {"frozen_attention": [1, 3], "frozen_ffn": [3]},
                "`frozen_attention` and `frozen_ffn` both name these layers: [3].",
            ),
            ({"frozen_layers": ..., "frozen_ffn": [3]}, "config.json has no `frozen_layers`: this checkpoint is "),
        ],
        ids=str,
    )
    def test_bad_lists_of_operators(self, tiny_base, shortv_folder, lists, message):
        folder = edit_config(shortv_folder(tiny_base(), [0, 2]), **lists)
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert "\n" not in str(error.value)

    def test_bad_lists_later(self, load_pair):
        pair = load_pair()
        for lists in ((None,), ([7],), ([1, 1],), ("1",), ([True],), ([0], [0]), ([0], [], [-1]), (None, [1])):
            with pytest.raises(ValueError, match="frozen_"):
                pair.shortv.freeze_layers(*lists)
            assert frozen_lists(pair.shortv.config) == MIXED

    def test_other_text_models(self, tiny_base, shortv_folder):
        base = tiny_base()
        folder = shortv_folder(base, [0])
        text = {"model_type": "olmo2", "architectures": None, "head_dim": 16}
        edit_config(folder, text)
        assert AutoConfig.from_pretrained(folder, trust_remote_code=True).text_config.model_type == "olmo2"
        with pytest.raises(ValueError, match="olmo2") as error:
            AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert "\n" not in str(error.value)

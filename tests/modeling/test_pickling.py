"""ShortV models in pickles: saved whole, copied, sent to other processes.

Models are pickled before their first forward pass: after it, transformers 5.24 cannot pickle the stock model either.
"""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.modeling.test_loading import logits, run_fresh
from tests.support.definition import MIXED, RAGGED, frozen_lists


def through_a_file(model: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file, **options)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "oldest protocol": lambda model: pickle.loads(pickle.dumps(model, 2)),
    "pickle in Python": lambda model: pickle._loads(pickle._dumps(model)),
    "torch.save": through_a_file,
    "torch.save, old format": lambda model: through_a_file(model, _use_new_zipfile_serialization=False),
    "deepcopy": copy.deepcopy,
    "twice": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(model)))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_computes_the_same(load_pair, way):
    pair = load_pair()
    inputs = pair.inputs(*RAGGED)
    twin = WAYS[way](pair.shortv)
    for (name, mine), (_, theirs) in zip(pair.shortv.named_modules(), twin.named_modules(), strict=True):
        assert type(mine) is type(theirs), name
    assert twin.shortv_report() == pair.shortv.shortv_report()
    assert frozen_lists(twin.config) == MIXED
    twin.freeze_layers([1])  # the copy's alone
    logits(twin, inputs)
    assert pair.shortv.shortv_report()["skipped_updates"] == 0
    twin.freeze_layers(**MIXED)
    assert torch.equal(logits(twin, inputs), logits(pair.shortv, inputs))
    assert twin.shortv_report() == pair.shortv.shortv_report()
    assert twin.shortv_report()["skipped_updates"] > 0


def test_parts(load_pair):
    """A decoder layer, and the multimodal model, whose hook belongs to the whole one."""
    pair = load_pair()
    layer = pair.shortv.model.language_model.layers[0]
    assert type(pickle.loads(pickle.dumps(layer))) is type(layer)
    inputs = pair.inputs(*RAGGED)
    for inner in (pickle.loads(pickle.dumps(pair.shortv.model)), copy.deepcopy(pair.shortv.model)):
        with torch.no_grad():
            assert torch.equal(inner(**inputs)[0], pair.shortv.model(**inputs)[0])


def test_with_lora(load_pair):
    from peft import LoraConfig, get_peft_model

    pair = load_pair()
    inputs = pair.inputs(*RAGGED)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    model = get_peft_model(pair.shortv, config).eval()
    twins = pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
    expected = logits(model, inputs)
    for twin in twins:
        assert torch.equal(logits(twin, inputs), expected)
        assert twin.shortv_report() == model.shortv_report()


def test_with_hooks_of_accelerate(load_pair):
    """The hooks wrap each layer's `forward`; those of the copy call the copy's."""
    from accelerate import cpu_offload

    pair = load_pair()
    inputs = pair.inputs(*RAGGED)
    expected = logits(copy.deepcopy(pair.shortv), inputs)
    twin = copy.deepcopy(cpu_offload(pair.shortv, execution_device=torch.device("cpu")))
    assert torch.equal(logits(twin, inputs), expected)
    assert twin.shortv_report()["skipped_updates"] > 0
    assert pair.shortv.shortv_report()["skipped_updates"] == 0


def compute(model: Any, inputs: Any, out: Path) -> None:
    """Saves logits and report. New hooks, which a new process numbers from 0, must not replace an unpickled one."""
    for _ in range(max(model.model._forward_pre_hooks) + 1):
        model.model.register_forward_pre_hook(lambda *arguments: None)
    torch.save([logits(model, inputs), model.shortv_report()], out)


def test_in_a_spawned_process(load_pair, tmp_path):
    pair = load_pair()
    inputs = dict(pair.inputs(*RAGGED))
    process = multiprocessing.get_context("spawn").Process(
        target=compute, args=(pair.shortv, inputs, tmp_path / "out")
    )
    process.start()
    process.join(120)
    assert process.exitcode == 0
    found, report = torch.load(tmp_path / "out")
    assert torch.equal(found, logits(pair.shortv, inputs))
    assert report == pair.shortv.shortv_report()


FRESH = """
import json, sys, torch
from transformers import AutoConfig
folder, saved, out = sys.argv[1:]
try:
    torch.load(saved, weights_only=False)
except ModuleNotFoundError as error:
    missing = error.name
AutoConfig.from_pretrained(folder, trust_remote_code=True)
model, inputs = torch.load(saved, weights_only=False)
with torch.no_grad():
    torch.save(model(**inputs).logits, out)
print(json.dumps([missing, model.shortv_report()]))
"""


def test_in_a_fresh_process(load_pair, tmp_path):
    """It must load the package's code first, as for any model of remote code."""
    pair = load_pair()
    inputs = dict(pair.inputs(*RAGGED))
    torch.save([pair.shortv, inputs], tmp_path / "saved")
    missing, report = run_fresh(FRESH, pair.folder, tmp_path / "saved", tmp_path / "out")
    assert missing == "transformers_modules"
    assert torch.equal(torch.load(tmp_path / "out"), logits(pair.shortv, inputs))
    assert report == json.loads(json.dumps(pair.shortv.shortv_report()))

"""Drawing samples from files, and encoding them."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortv_export.base.model import load_base
from shortv_export.base.processor import load_processor
from shortv_export.base.resolve import resolve_base
from shortv_export.options import Samples
from shortv_export.samples.decode import Sample
from shortv_export.samples.draw import draw_samples
from shortv_export.samples.encode import encode_samples
from shortv_export.samples.source import DEFAULT_PROMPT, PAPER, Source
from tests.support.sample_data import (
    draw,
    picture,
    png,
    refusal,
    snapshot,
    write_rows,
)

NUMBER = 12


@pytest.fixture
def photos_folder(tmp_path: Path) -> Path:
    """Twelve images 00.png ... 11.png, with questions and answers."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(NUMBER):
        (folder / f"{index:02d}.png").write_bytes(png(index))
    rows = [
        {"file_name": f"{index:02d}.png", "question": f"what is {index} ?", "answer": str(index)}
        for index in range(NUMBER)
    ]
    write_rows(folder / "metadata.jsonl", rows)
    return folder


def check(sample: Sample, index: int) -> None:
    """The sample is exactly the one of that number, digest included."""
    (image,) = sample.images
    assert (image.mode, image.tobytes()) == ("RGB", picture(index).tobytes())
    assert (sample.question, sample.answer) == (f"what is {index} ?", str(index))
    assert sample.digest == hashlib.sha256(b"12x9:" + picture(index).tobytes() + sample.question.encode()).hexdigest()


# Local data


def test_folder(photos_folder: Path) -> None:
    before = snapshot(photos_folder)
    result = draw(photos_folder, num_samples=NUMBER)
    drawn = [int(str(sample.answer)) for sample in result.samples]
    assert sorted(drawn) == list(range(NUMBER))
    for index, sample in zip(drawn, result.samples, strict=True):
        check(sample, index)
    assert snapshot(photos_folder) == before

    record = result.record
    digests = [sample.digest for sample in result.samples]
    assert record["sample_digests"] == digests
    assert record["digest"] == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert (record["seed"], record["num_samples"], record["skipped"]) == (0, NUMBER, 0)
    assert record["data"] == "local files"
    assert json.loads(json.dumps(record)) == record
    assert str(photos_folder.parent) not in json.dumps(record)


def test_the_seed_decides_the_draw(photos_folder: Path) -> None:
    def digest(**arguments: Any) -> str:
        return draw(photos_folder, num_samples=4, **arguments).record["digest"]

    assert digest() == digest(seed=0)
    assert len({digest(seed=seed) for seed in range(5)}) > 1
    # A draw, not the head of the file: over a few seeds, most of the rows turn up.
    drawn = {s.answer for seed in range(8) for s in draw(photos_folder, num_samples=4, seed=seed).samples}
    assert len(drawn) >= NUMBER - 3


def test_a_larger_draw_has_the_smaller_one_in_it(photos_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    names = sorted(path.name for path in photos_folder.glob("*.png"))
    write_rows(table, [{"image": f"photos/{name}", "question": "?"} for name in names])
    for data in (photos_folder, table):
        draws = [draw(data, num_samples=count, seed=3).record["sample_digests"] for count in (1, 4, 6, 9)]
        for smaller, larger in itertools.pairwise(draws):
            assert larger[: len(smaller)] == smaller


def test_excluded_samples_are_not_drawn(photos_folder: Path) -> None:
    used = draw(photos_folder, num_samples=5).record["sample_digests"]
    for seed in (0, 1):
        held_out = draw(photos_folder, num_samples=7, seed=seed, exclude=used).record["sample_digests"]
        assert len({*held_out, *used}) == NUMBER
    message = refusal(photos_folder, num_samples=8, exclude=used)
    assert "7 usable samples besides the 5 that are set apart" in message


def test_fewer_samples_where_allowed(photos_folder: Path) -> None:
    result = draw(photos_folder, num_samples=2 * NUMBER, allow_fewer=True)
    assert len(result.samples) == result.record["num_samples"] == NUMBER
    assert result.record["sources"][0]["num_samples"] == NUMBER
    used = result.record["sample_digests"]
    assert "has 0 usable samples" in refusal(photos_folder, num_samples=1, exclude=used, allow_fewer=True)


def test_folder_without_metadata(photos_folder: Path) -> None:
    (photos_folder / "metadata.jsonl").unlink()
    result = draw(photos_folder, num_samples=3)
    assert {sample.question for sample in result.samples} == {DEFAULT_PROMPT}
    assert {sample.answer for sample in result.samples} == {None}
    assert result.record["sources"][0]["prompt"] == DEFAULT_PROMPT


def test_folder_with_glob_characters_and_colon(photos_folder: Path) -> None:
    odd = photos_folder.rename(photos_folder.parent / "a:split=b [1]*")
    assert len(draw(odd, num_samples=NUMBER).samples) == NUMBER


@pytest.mark.parametrize("kind", ["parquet", "parquet of bytes", "parquet of paths", "jsonl", "json", "metadata"])
def test_files(photos_folder: Path, kind: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Image

    rows = [{"question": f"what is {index} ?", "answer": str(index)} for index in range(NUMBER)]
    paths = [f"photos/{index:02d}.png" for index in range(NUMBER)]
    columns = {key: [row[key] for row in rows] for key in ("question", "answer")}
    data = tmp_path / f"data.{kind.split()[0]}"
    if kind == "parquet":
        cells = [{"bytes": png(index), "path": None} for index in range(NUMBER)]
        Dataset.from_dict({"image": cells, **columns}).cast_column("image", Image()).to_parquet(data)
    elif kind == "parquet of bytes":
        pq.write_table(pa.table({"image": [png(index) for index in range(NUMBER)], **columns}), data)
    elif kind == "parquet of paths":
        pq.write_table(pa.table({"image": paths, **columns}), data)
    elif kind == "metadata":
        data = photos_folder / "metadata.jsonl"
    else:
        rows = [{"image": f"photos/{index:02d}.png", **row} for index, row in enumerate(rows)]
        write_rows(data, rows)
        if kind == "json":
            data.write_text(json.dumps(rows), encoding="utf-8")
    result = draw(data, num_samples=NUMBER)
    for sample in result.samples:
        check(sample, int(str(sample.answer)))
    assert len({sample.digest for sample in result.samples}) == NUMBER
    assert str(tmp_path) not in json.dumps(result.record)


def test_folder_of_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number in (0, 1):
        row = {"image": png(number), "question": f"what is {number} ?", "answer": str(number)}
        pq.write_table(pa.table({key: [value] for key, value in row.items()}), tmp_path / f"{number}.parquet")
    for sample in draw(tmp_path, num_samples=2).samples:
        check(sample, int(str(sample.answer)))


def test_several_images_of_a_sample(photos_folder: Path) -> None:
    rows = [
        {"file_names": ["00.png", "01.png"], "question": "both ?"},
        {"file_names": ["02.png"], "question": "one ?"},
    ]
    write_rows(photos_folder / "metadata.jsonl", rows)
    samples = {sample.question: sample for sample in draw(photos_folder, num_samples=2).samples}
    assert [image.tobytes() for image in samples["both ?"].images] == [picture(0).tobytes(), picture(1).tobytes()]
    assert len(samples["one ?"].images) == 1


def test_columns_and_prompts(photos_folder: Path) -> None:
    (sample,) = draw(f"{photos_folder}:question=answer,suffix=One word, please.", num_samples=1).samples
    assert sample.question == f"{sample.answer}\nOne word, please."
    (sample,) = draw(f"{photos_folder}:prompt=Hm, what?", num_samples=1).samples
    assert sample.question == "Hm, what?"


def test_list_of_answers(tmp_path: Path) -> None:
    (tmp_path / "00.png").write_bytes(png(0))
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": "00.png", "question": "?", "answer": ["a", "b"]}])
    assert draw(tmp_path, num_samples=1).samples[0].answer == "a"


# Refusals


def test_no_such_data(tmp_path: Path) -> None:
    for data in (tmp_path / "nowhere", "./nowhere", f"{tmp_path}/nowhere:prompt=x"):
        assert "there is no file or folder" in refusal(data)
    assert "has no name" in refusal("")
    assert "neither a file or folder here nor a Hub id" in refusal("a/b/c")


def test_without_images(tmp_path: Path) -> None:
    assert "holds no images" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    assert "holds no images" in refusal(tmp_path)
    assert "is no data set" in refusal(tmp_path / "notes.txt")
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": "gone.png", "question": "?"}])
    assert "holds no images" in refusal(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [{"question": "?"}])
    assert "has no column 'image'; there are: question." in refusal(tmp_path / "rows.jsonl")
    write_rows(tmp_path / "rows.jsonl", [{"question": "?", "image": None}])
    assert "the row has no image" in refusal(tmp_path / "rows.jsonl", num_samples=1)
    write_rows(tmp_path / "rows.jsonl", [{"question": "?", "image": []}])
    assert "the row has no image" in refusal(tmp_path / "rows.jsonl", num_samples=1)
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    assert str(tmp_path / "rows.jsonl") in refusal(tmp_path / "rows.jsonl")


def test_wrong_columns(photos_folder: Path) -> None:
    message = refusal(f"{photos_folder}:question=caption")
    assert "has no column 'caption'; there are: image, question, answer." in message
    assert "has no column 'photo'; there are: image, question, answer." in refusal(f"{photos_folder}:image=photo")
    assert "has no column 'label'" in refusal(f"{photos_folder}:answer=label")
    assert "holds dict, not text" in refusal(f"{photos_folder}:question=image", num_samples=1)


def test_column_of_something_else(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"image": 1, "question": 2}])
    assert "holds int, not images" in refusal(tmp_path / "rows.jsonl", num_samples=1)


def test_broken_metadata(photos_folder: Path) -> None:
    metadata = photos_folder / "metadata.jsonl"
    write_rows(metadata, [{"name": "00.png", "question": "?"}])
    assert "`file_name`" in refusal(photos_folder, num_samples=1)
    metadata.write_text('{"file_name": \n', encoding="utf-8")
    assert "cannot be read" in refusal(photos_folder, num_samples=1)


@pytest.mark.parametrize("damage", [b"not an image", b"", png(3)[:45], ...])
def test_unreadable_images_are_skipped_and_counted(photos_folder: Path, damage: Any) -> None:
    for name in ("03.png", "07.png"):
        if damage is ...:
            (photos_folder / name).unlink()
        else:
            (photos_folder / name).write_bytes(damage)
    result = draw(photos_folder, num_samples=10)
    assert {str(sample.answer) for sample in result.samples} == {str(i) for i in range(NUMBER)} - {"3", "7"}
    assert result.record["skipped"] == result.record["sources"][0]["skipped"]
    assert 1 <= result.record["skipped"] <= 2

    for index in range(0, 10):
        (photos_folder / f"{index:02d}.png").write_bytes(b"not an image")
    assert "have no readable image; the last one: cannot identify" in refusal(photos_folder, num_samples=10)


def test_too_few_samples(photos_folder: Path) -> None:
    message = refusal(photos_folder, num_samples=NUMBER + 1)
    assert f"has {NUMBER} usable samples (0 unreadable), fewer than the {NUMBER + 1} asked for" in message
    assert "at least 1" in refusal(photos_folder, num_samples=0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("acme/photos:colour=red", "unknown key 'colour'"),
        ("acme/photos:split=a,split=b", "repeated or empty"),
        ("acme/photos:split=", "repeated or empty"),
        ("acme/photos:question=a,prompt=b", "both question and prompt"),
        ("acme/photos:images=a", "needs images and image_id"),
        ("acme/photos:image_id=a", "needs images and image_id"),
        ("acme/photos:images=a,image_id=b,image=c", "needs images and image_id"),
        ("acme/photos:images=a,image_id=b,video=c", "needs images and image_id"),
        ("acme/photos:video=a,frames=0", "the key 'frames' in the data 'acme/photos:video=a,frames=0' is"),
        ("acme/photos:video=a,frames=1.5", "is '1.5'; give a number above zero"),
        ("acme/photos:video=a,fps=nan", "is 'nan'; give a number above zero"),
    ],
)
def test_unusable_options(text: str, reason: str) -> None:
    assert reason in refusal(text)


@given(
    options=st.dictionaries(
        st.sampled_from(["config", "split", "revision", "image", "question", "answer", "suffix"]),
        st.text(min_size=1).filter(lambda value: "=" not in value),
    )
)
def test_options_are_read_back(options: dict[str, str]) -> None:
    text = "acme/photos" + ":" * bool(options) + ",".join(f"{key}={value}" for key, value in options.items())
    assert Source.parse(text) == Source("acme/photos", **options)


def test_the_papers_mix_is_what_the_paper_says() -> None:
    gqa, flickr = (Source.parse(text) for text in PAPER)
    assert (gqa.path, gqa.config, gqa.split) == ("lmms-lab/GQA", "testdev_balanced_instructions", "testdev")
    assert gqa.suffix == "Answer the question using a single word or phrase."
    assert (flickr.path, flickr.split) == ("lmms-lab/flickr30k", "test")
    assert flickr.prompt == "Provide a one-sentence caption for the provided image."


# Encoding


@pytest.fixture(params=["llava", "llava_next"])
def model_and_processor(request: pytest.FixtureRequest, tiny_base: Callable[..., Path]) -> tuple[Any, Any]:
    base = resolve_base(tiny_base(request.param))
    return load_base(base, dtype="float32"), load_processor(base.path)


def samples_of(photos: dict[str, Any]) -> list[Sample]:
    astronaut, coffee, chelsea, rocket = photos.values()
    return [
        Sample((astronaut,), "is there a rocket ?", None, ""),
        Sample((coffee, chelsea), "which colour in the picture ? answer using a single word or phrase .", None, ""),
        Sample((rocket,), "yes", None, ""),
    ]


def test_batch_equals_single_samples(model_and_processor: tuple[Any, Any], photos: dict[str, Any]) -> None:
    """Left padding: the last position is every sample's last token, and nothing depends on its neighbours."""
    import torch

    model, processor = model_and_processor
    samples = samples_of(photos)
    batch = encode_samples(processor, samples)
    lengths = batch["attention_mask"].sum(1)
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        for row, sample in enumerate(samples):
            single = encode_samples(processor, [sample])
            assert single["attention_mask"].all()
            assert torch.equal(batch["input_ids"][row, -lengths[row] :], single["input_ids"][0])
            assert not batch["attention_mask"][row, : -lengths[row]].any()
            alone = model(**single).logits[0, -1]
            assert (together[row] - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_prompt_is_the_chat_templates(model_and_processor: tuple[Any, Any], photos: dict[str, Any]) -> None:
    """The same ids as transformers' own one-step call gives, here asked with the images in the conversation."""
    import torch

    _, processor = model_and_processor
    for sample in samples_of(photos):
        images = [{"type": "image", "image": image} for image in sample.images]
        conversation = [{"role": "user", "content": [*images, {"type": "text", "text": sample.question}]}]
        expected = processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        actual = encode_samples(processor, [sample])
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "template", [..., None, "{{ bos_token }}USER: <image>\n{{ messages[0]['content'][1]['text'] }}"]
)
def test_first_token_comes_once(model_and_processor: tuple[Any, Any], photos: dict[str, Any], template: Any) -> None:
    _, processor = model_and_processor
    if template is not ...:
        processor.chat_template = template
    tokens = processor.tokenizer.convert_ids_to_tokens(
        encode_samples(processor, samples_of(photos)[:1])["input_ids"][0]
    )
    assert tokens[0] == "<s>"
    assert tokens.count("<s>") == 1
    assert tokens[1] == "USER"


def test_without_a_template_the_prompt_is_vicunas(
    model_and_processor: tuple[Any, Any], photos: dict[str, Any]
) -> None:
    _, processor = model_and_processor
    processor.chat_template = None
    batch = encode_samples(processor, samples_of(photos))
    for row, sample in zip(batch["input_ids"], samples_of(photos), strict=True):
        tokens = [
            token for token in processor.tokenizer.convert_ids_to_tokens(row) if token not in ("<pad>", "<image>")
        ]
        assert tokens == ["<s>", "USER", ":", *sample.question.split(), "ASSISTANT", ":"]


def test_placeholder_in_the_question(model_and_processor: tuple[Any, Any], photos: dict[str, Any]) -> None:
    import torch

    _, processor = model_and_processor
    plain, *_ = samples_of(photos)
    marked = Sample(plain.images, f"<image>\n{plain.question}", None, "")
    assert torch.equal(
        encode_samples(processor, [marked])["input_ids"], encode_samples(processor, [plain])["input_ids"]
    )


@pytest.mark.parametrize("count", [6, 30])
def test_tasks_come_by_turns(photos_folder: Path, tmp_path: Path, count: int) -> None:
    """One task has most of the rows: each gives as many samples, until its rows are used up."""
    rows = [line for line in (photos_folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines() if line]
    folder = shutil.copytree(photos_folder, tmp_path / "tasks")
    name = json.loads(rows[0])["file_name"]
    tasks = ["colour"] * 20 + ["count"] * 6 + ["caption"] * 4
    lines = [{"file_name": name, "question": f"question {at}", "task": task} for at, task in enumerate(tasks)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    asked = Samples(str(folder), num_samples=count)
    drawn = draw_samples(asked, group_by="task", stratify=True)
    found = Counter(sample.group for sample in drawn.samples)
    assert found == ({"colour": 2, "count": 2, "caption": 2} if count == 6 else Counter(tasks))
    assert [source["stratified_by"] for source in drawn.record["sources"]] == ["task"]
    # A larger draw has the smaller one in it; other seeds give others; without a column, nothing changes.
    larger = draw_samples(replace(asked, num_samples=30), group_by="task", stratify=True)
    assert larger.samples[:count] == drawn.samples
    other = draw_samples(replace(asked, seed=1), group_by="task", stratify=True)
    assert [sample.digest for sample in other.samples] != [sample.digest for sample in drawn.samples]
    plain = Samples(str(photos_folder), num_samples=2)
    assert draw_samples(plain, stratify=True) == draw_samples(plain)

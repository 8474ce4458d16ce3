"""The scenes: answers derived from the image, determinism, disjoint seeds; and the model trained on them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shortv_export.demo import scenes
from shortv_export.demo.scenes import (
    CALIBRATION_SEEDS,
    CELL,
    COLOURS,
    EVALUATION_SEEDS,
    GRID,
    IMAGE_SIZE,
    NUMBERS,
    SHAPES,
    TASKS,
    TRAINING_SEEDS,
    VOCABULARY,
    WORDS,
)

MODEL = Path(scenes.__file__).parent / "model"
SEEDS = [TRAINING_SEEDS[index] for index in range(60)] + [EVALUATION_SEEDS[index] for index in range(20)]


def cells(image: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    for row, column in itertools.product(range(GRID), repeat=2):
        area = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        yield row, column, area.astype(int)


def seen_colour(cell: np.ndarray) -> tuple[str, np.ndarray] | None:
    """The colour whose pixels differ most from the background, and their mask; None for an empty cell."""
    background = np.median(np.concatenate([cell[0], cell[-1]]), axis=0)
    differs = np.abs(cell - background).max(-1) > 45
    if differs.sum() < 15:
        return None
    strongest = np.abs(cell - background).sum(-1)
    colour = np.median(cell[strongest > 0.8 * strongest.max()], axis=0)
    name = min(COLOURS, key=lambda name: float(np.linalg.norm(colour - COLOURS[name])))
    return name, differs


def seen_shape(differs: np.ndarray) -> str:
    """The shape, recognised by how it fills its bounding box."""
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    box = differs[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape
    if not box[height // 2 - 1 : height // 2 + 2, width // 2 - 1 : width // 2 + 2].any():
        return "ring"
    top, bottom = box[: height // 4].mean(), box[-(height // 4) :].mean()
    if bottom > 2 * top:
        return "triangle"
    if box.mean() > 0.92:
        return "square"
    return "circle" if box.mean() > 0.65 else "cross"


def is_sign(cell: np.ndarray) -> bool:
    """Whether there is paper from edge to edge; shapes leave the outermost columns of their cell free."""
    middle = cell[CELL // 2]
    return bool(middle[0].min() > 150 and middle[-1].min() > 150)


def look(image: np.ndarray) -> tuple[list[tuple[str, str, int, int]], tuple[int, int]]:
    """(colour, shape, row, column) of every thing, and the sign's cell, found from the pixels alone."""
    things, sign = [], None
    for row, column, cell in cells(image):
        if is_sign(cell):
            sign = (row, column)
        elif (seen := seen_colour(cell)) is not None:
            things.append((seen[0], seen_shape(seen[1]), row, column))
    assert sign is not None
    return things, sign


def quarter(row: int, column: int) -> str:
    return ("top", "bottom")[row // 2] + " " + ("left", "right")[column // 2]


def answer(question: str, things: list[tuple[str, str, int, int]], sign: tuple[int, int], word: str) -> str:
    """Answers a question by its wording, independently of the code in `scenes`."""

    def matching(words: str) -> list[tuple[str, str, int, int]]:
        wanted = words.split()
        singular = {plural: shape for shape, plural in SHAPES.items()}
        wanted = [singular.get(word, word) for word in wanted if word not in ("object", "objects", "shapes")]
        return [thing for thing in things if all(word in thing[:2] for word in wanted)]

    if match := re.fullmatch(r"is there a (.+)\?", question):
        return "yes" if matching(match[1]) else "no"
    if match := re.fullmatch(r"what colour is the (.+)\?", question):
        [thing] = matching(match[1])
        return thing[0]
    if match := re.fullmatch(r"what shape is the (.+) object\?", question):
        [thing] = matching(match[1])
        return thing[1]
    if match := re.fullmatch(r"how many (.+) are there\?", question):
        return NUMBERS[len(matching(match[1]))]
    if question == "where is the sign?":
        return quarter(*sign)
    if match := re.fullmatch(r"where is the (.+)\?", question):
        [thing] = matching(match[1])
        return quarter(*thing[2:])
    if match := re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?", question):
        [(_, _, row, column)], [(_, _, other_row, other_column)] = matching(match[1]), matching(match[3])
        holds = {
            "left of": column < other_column,
            "right of": column > other_column,
            "above": row < other_row,
            "below": row > other_row,
        }
        return "yes" if holds[match[2]] else "no"
    if question == "what does the sign say?":
        return word
    assert question == "describe the image in one sentence."
    names = [f"a {colour} {shape}" for colour, shape, *_ in sorted(things, key=lambda thing: thing[2:])]
    return ", ".join(names[:-1]) + " and " + names[-1] + "."


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_follow_from_the_pixels(seed: int) -> None:
    scene = scenes.make_scene(seed)
    things, sign = look(scenes.draw(scene))
    for question in scenes.ask(scene, TASKS * 4):
        assert answer(question.text, things, sign, scene.word) == question.answer, question


def test_signs_differ_by_their_letters_only_where_the_words_do() -> None:
    panels = {word: scenes._panel(word, 0).tobytes() for word in WORDS}
    assert len(set(panels.values())) == len(WORDS)
    assert all(set(word) <= {*scenes.CONSONANTS, *scenes.VOWELS} for word in WORDS)
    assert not VOCABULARY & set(WORDS)


def test_everything_follows_from_the_seed() -> None:
    for seed in SEEDS[:5]:
        one, other = scenes.make_scene(seed), scenes.make_scene(seed)
        assert one == other
        assert scenes.ask(one) == scenes.ask(other)
        assert np.array_equal(scenes.draw(one), scenes.draw(other))
    assert len({scenes.draw(scenes.make_scene(seed)).tobytes() for seed in SEEDS}) == len(SEEDS)


def test_pictures_are_of_the_models_size() -> None:
    image = scenes.draw(scenes.make_scene(0))
    assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert image.dtype == np.uint8


def test_seed_ranges_do_not_overlap() -> None:
    ranges = (TRAINING_SEEDS, CALIBRATION_SEEDS, EVALUATION_SEEDS)
    for one, other in itertools.combinations(ranges, 2):
        assert one[-1] < other[0] or other[-1] < one[0]


def test_yes_and_no_are_balanced() -> None:
    answers = [
        question.answer
        for seed in range(300)
        for question in scenes.ask(scenes.make_scene(seed), ["existence", "relation"] * 4)
        if question.task in ("existence", "relation")
    ]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_a_folder_holds_images_and_metadata(tmp_path: Path) -> None:
    from PIL import Image

    folder = scenes.write_folder(tmp_path / "data", CALIBRATION_SEEDS[:3], ("colour", "caption"))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["file_name"] for row in rows} == {f"{seed}.png" for seed in CALIBRATION_SEEDS[:3]}
    assert {row["task"] for row in rows} <= {"colour", "caption"}
    for row in rows:
        assert set(row) == {"file_name", "question", "answer", "task"}
        scene = scenes.make_scene(int(row["file_name"].removesuffix(".png")))
        with Image.open(folder / row["file_name"]) as image:
            assert np.array_equal(np.asarray(image), scenes.draw(scene))


shipped = pytest.mark.skipif(not (MODEL / "model.safetensors").exists(), reason="the weights are not here")


@shipped
def test_the_shipped_model_is_a_stock_llava() -> None:
    from transformers import LlavaForConditionalGeneration

    model, report = LlavaForConditionalGeneration.from_pretrained(MODEL, output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.text_config.num_hidden_layers >= 12
    assert model.config.image_seq_length >= 144
    assert (MODEL / "model.safetensors").stat().st_size <= 12e6


@shipped
def test_the_processor_passes_pictures_through() -> None:
    from PIL import Image
    from transformers import AutoProcessor

    image = scenes.draw(scenes.make_scene(EVALUATION_SEEDS[0]))
    processor = AutoProcessor.from_pretrained(MODEL)
    pixels = processor(images=Image.fromarray(image), text="<image>", return_tensors="pt")["pixel_values"][0]
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), image / 127.5 - 1, atol=1e-5)


@shipped
def test_every_word_is_a_token_and_comes_back() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for seed in range(20):
        for question in scenes.ask(scenes.make_scene(seed)):
            for text in (question.text, question.answer):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text


@shipped
def test_the_shipped_model_answers() -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from training.demo_layout import answers

    model = LlavaForConditionalGeneration.from_pretrained(MODEL).eval()
    processor = AutoProcessor.from_pretrained(MODEL)
    verdicts = []
    for seed in EVALUATION_SEEDS[-12:]:
        scene = scenes.make_scene(seed)
        questions = scenes.ask(scene)
        given = answers(model, processor, scenes.draw(scene), [question.text for question in questions])
        verdicts += [text == question.answer for text, question in zip(given, questions, strict=True)]
    assert np.mean(verdicts) >= 0.8

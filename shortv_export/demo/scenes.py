"""Drawn scenes with questions, on which the bundled demonstration model is trained, calibrated and evaluated.

A scene is a 4 x 4 grid of cells on a dark background. Three to five cells hold a coloured shape, all of
them different, and one cell holds a sign with a three-letter word. A scene is determined by its seed. The seeds for
training, calibration and evaluation come from three ranges that do not overlap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

GRID = 4  # rows, and columns
PATCH = 7  # pixels per side, of a patch of the vision tower and of a letter
CELL = 3 * PATCH  # pixels per side
IMAGE_SIZE = GRID * CELL

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (165, 60, 200),
    "white": (235, 235, 235),
}
SHAPES: dict[str, str] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "ring": "rings",
}  # singular -> plural
NUMBERS = ("zero", "one", "two", "three", "four", "five")
RELATIONS = ("left of", "right of", "above", "below")
CONSONANTS = "bdgklmprst"
VOWELS = "aeio"

TRAINING_SEEDS = range(0, 1_000_000_000)
CALIBRATION_SEEDS = range(1_000_000_000, 1_001_000_000)
EVALUATION_SEEDS = range(2_000_000_000, 2_001_000_000)

TASKS = ("existence", "colour", "shape", "count", "position", "relation", "reading", "caption")

QUESTION_WORDS = (
    "is there a an the how many are what colour shape where does sign say describe image in one sentence of left "
    "right above below object objects shapes yes no and top bottom ? . ,"
)
"""The words of the questions and answers, without those in `COLOURS`, `SHAPES`, `NUMBERS` and on the signs."""

VOCABULARY = frozenset([*QUESTION_WORDS.split(), *COLOURS, *SHAPES, *SHAPES.values(), *NUMBERS])
WORDS = tuple(
    word
    for word in (a + b + c for a in CONSONANTS for b in VOWELS for c in CONSONANTS)
    if word not in VOCABULARY and word[:2] not in VOCABULARY
)
"""What signs can say: consonant, vowel, consonant; never a word of the questions."""

_GLYPHS = {
    "a": "01110 10001 10001 11111 10001 10001",
    "b": "11110 10001 11110 10001 10001 11110",
    "d": "11100 10010 10001 10001 10010 11100",
    "e": "11111 10000 11110 10000 10000 11111",
    "g": "01111 10000 10000 10011 10001 01111",
    "i": "01110 00100 00100 00100 00100 01110",
    "k": "10001 10010 11100 10100 10010 10001",
    "l": "10000 10000 10000 10000 10000 11111",
    "m": "10001 11011 10101 10101 10001 10001",
    "o": "01110 10001 10001 10001 10001 01110",
    "p": "11110 10001 10001 11110 10000 10000",
    "r": "11110 10001 10001 11110 10010 10001",
    "s": "01111 10000 01110 00001 00001 11110",
    "t": "11111 00100 00100 00100 00100 00100",
}


@dataclass(frozen=True)
class Thing:
    """A coloured shape in a cell. Rows count from the top and columns from the left, from 0."""

    colour: str
    shape: str
    row: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What an image shows."""

    seed: int  # also of the pixel noise
    things: tuple[Thing, ...]  # three to five, in reading order, all different
    word: str  # on the sign
    sign_row: int
    sign_column: int


@dataclass(frozen=True)
class Question:
    """A question about a scene; `task` is one of `TASKS`."""

    task: str
    text: str
    answer: str


def make_scene(seed: int) -> Scene:
    random = Random(seed)
    cells = random.sample(range(GRID * GRID), random.randint(3, 5) + 1)
    sign = cells.pop()
    # Only four colours and shapes, so that some occur twice and there is something to count.
    colours = random.sample(list(COLOURS), 4)
    shapes = random.sample(list(SHAPES), 4)
    looks = random.sample([(colour, shape) for colour in colours for shape in shapes], len(cells))
    things = tuple(Thing(*look, *divmod(cell, GRID)) for look, cell in zip(looks, sorted(cells), strict=True))
    return Scene(seed, things, random.choice(WORDS), *divmod(sign, GRID))


def draw(scene: Scene) -> Pixels:
    """The image of a scene, ``(IMAGE_SIZE, IMAGE_SIZE, 3)`` RGB.

    Sizes, offsets in the cell, hues, the background and the pixel noise vary with the seed.
    """
    random = np.random.default_rng(scene.seed)
    background = random.integers(15, 60) + random.integers(-6, 7, 3)
    image = np.empty((GRID, CELL, GRID, CELL, 3))
    image[:] = background
    for thing in scene.things:
        radius, down, right = random.integers(7, 10), random.integers(-1, 2), random.integers(-1, 2)
        mask = _mask(thing.shape, int(radius), int(down), int(right))[..., None]
        colour = np.asarray(COLOURS[thing.colour]) + random.integers(-18, 19, 3)
        cell = image[thing.row, :, thing.column]
        image[thing.row, :, thing.column] = cell + mask * (colour - cell)
    panel = _panel(scene.word, int(random.integers(-1, 2)))[..., None]
    paper, ink = random.integers(190, 230), random.integers(0, 30)
    image[scene.sign_row, :, scene.sign_column] = np.where(panel < 0, background, np.where(panel > 0, ink, paper))
    image += random.integers(-6, 7, (GRID, CELL, GRID, CELL, 1))
    pixels: Pixels = image.reshape(IMAGE_SIZE, IMAGE_SIZE, 3).clip(0, 255).astype(np.uint8)
    return pixels


@cache
def _mask(shape: str, radius: int, down: int, right: int) -> npt.NDArray[np.float64]:
    """The share of each pixel of a cell that a shape covers, from 0 to 1."""
    fine = 4
    axis = (np.arange(CELL * fine) + 0.5) / fine - CELL / 2
    y, x = (axis - down)[:, None], (axis - right)[None, :]
    distance = np.hypot(x, y)
    box = np.maximum(abs(x), abs(y))
    inside = {
        "circle": distance < radius,
        "square": box < radius * 0.9,
        "triangle": (abs(x) < (y + radius) / 2) & (y < radius * 0.9),
        "cross": (box < radius) & (np.minimum(abs(x), abs(y)) < radius * 0.3),
        "ring": (distance < radius) & (distance > radius * 0.55),
    }[shape]
    covered: npt.NDArray[np.float64] = inside.reshape(CELL, fine, CELL, fine).mean((1, 3))
    return covered


@cache
def _panel(word: str, down: int) -> npt.NDArray[np.int8]:
    """A sign: 1 for ink, 0 for paper, -1 around it."""
    panel = np.full((CELL, CELL), -1, np.int8)
    panel[PATCH - 3 : 2 * PATCH + 3] = 0
    for place, letter in enumerate(word):
        rows = [[int(dot) for dot in row] for row in _GLYPHS[letter].split()]
        panel[PATCH + down : PATCH + down + len(rows), PATCH * place + 1 : PATCH * place + 6] = rows
    return panel


def caption(scene: Scene) -> str:
    """One sentence that names the coloured shapes in reading order."""
    names = [f"a {thing.name}" for thing in scene.things]
    return f"{', '.join(names[:-1])} and {names[-1]}."


def place(row: int, column: int) -> str:
    """The quarter of the image in which a cell lies."""
    return f"{'top' if row < GRID // 2 else 'bottom'} {'left' if column < GRID // 2 else 'right'}"


def related(relation: str, one: Thing, other: Thing) -> bool:
    """Whether `one` is, for example, left of `other`, by row or column."""
    return {
        "left of": one.column < other.column,
        "right of": one.column > other.column,
        "above": one.row < other.row,
        "below": one.row > other.row,
    }[relation]


def _existence(scene: Scene, random: Random) -> Question:
    thing = random.choice(scene.things)
    name, wanted = thing.name, random.random() < 0.5
    kind = random.randrange(3)  # of question: about colour and shape, shape only, colour only
    names = {other.name for other in scene.things}
    if kind == 0 and not wanted:
        # Half of the time, the colour and the shape are in the scene, but not together.
        mixed = random.random() < 0.5
        colours = [other.colour for other in scene.things] if mixed else list(COLOURS)
        shapes = [other.shape for other in scene.things] if mixed else list(SHAPES)
        absent = [f"{c} {s}" for c in colours for s in shapes if f"{c} {s}" not in names]
        name, wanted = (random.choice(absent), False) if absent else (name, True)
    elif kind == 1:
        absent = [shape for shape in SHAPES if all(shape != other.shape for other in scene.things)]
        name = thing.shape if wanted or not absent else random.choice(absent)
        wanted = wanted or not absent
    elif kind == 2:
        absent = [colour for colour in COLOURS if all(colour != other.colour for other in scene.things)]
        name = f"{thing.colour if wanted else random.choice(absent)} object"
    return Question("existence", f"is there a {name}?", "yes" if wanted else "no")


def _colour(scene: Scene, random: Random) -> Question | None:
    thing = _unique(scene, random, "shape")
    return Question("colour", f"what colour is the {thing.shape}?", thing.colour) if thing else None


def _shape(scene: Scene, random: Random) -> Question | None:
    thing = _unique(scene, random, "colour")
    return Question("shape", f"what shape is the {thing.colour} object?", thing.shape) if thing else None


def _unique(scene: Scene, random: Random, attribute: str) -> Thing | None:
    """A thing that shares its colour (or shape) with no other; None if there is none."""
    values = [getattr(thing, attribute) for thing in scene.things]
    things = [thing for thing, value in zip(scene.things, values, strict=True) if values.count(value) == 1]
    return random.choice(things) if things else None


def _count(scene: Scene, random: Random) -> Question:
    counts = {plural: sum(thing.shape == shape for thing in scene.things) for shape, plural in SHAPES.items()}
    counts |= {f"{colour} objects": sum(thing.colour == colour for thing in scene.things) for colour in COLOURS}
    counts["shapes"] = len(scene.things)
    number = random.choice(sorted(set(counts.values())))
    what = random.choice([what for what, count in counts.items() if count == number])
    return Question("count", f"how many {what} are there?", NUMBERS[number])


def _position(scene: Scene, random: Random) -> Question:
    thing = random.choice([None, *scene.things])
    if thing is None:
        return Question("position", "where is the sign?", place(scene.sign_row, scene.sign_column))
    return Question("position", f"where is the {thing.name}?", place(thing.row, thing.column))


def _relation(scene: Scene, random: Random) -> Question | None:
    one, other = random.sample(scene.things, 2)
    true = [relation for relation in RELATIONS if related(relation, one, other)]
    false = [relation for relation in RELATIONS if related(relation, other, one)]
    answer = random.random() < 0.5
    relation = random.choice(true if answer else false)
    return Question("relation", f"is the {one.name} {relation} the {other.name}?", "yes" if answer else "no")


_MAKERS: dict[str, Callable[[Scene, Random], Question | None]] = {
    "existence": _existence,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "position": _position,
    "relation": _relation,
    "reading": lambda scene, _: Question("reading", "what does the sign say?", scene.word),
    "caption": lambda scene, _: Question("caption", "describe the image in one sentence.", caption(scene)),
}


def ask(scene: Scene, tasks: Iterable[str] = TASKS) -> list[Question]:
    """Questions about a scene, one for each of `tasks`, which may repeat.

    There may be fewer: a scene without a unique shape (or colour) has no `colour` (or `shape`) question, and each
    question comes once.
    """
    random = Random(f"questions of {scene.seed}")
    questions = (_MAKERS[task](scene, random) for task in tasks)
    return list(dict.fromkeys(question for question in questions if question is not None))


def write_folder(folder: Path, seeds: Iterable[int], tasks: Iterable[str] = TASKS) -> Path:
    """Writes images and a ``metadata.jsonl`` with ``file_name``, ``question``, ``answer`` and ``task``.

    There is one image per seed and one line per question. `shortv_export` and ``datasets.load_dataset("imagefolder",
    ...)`` can read the folder.

    Returns:
        `folder`.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    tasks = tuple(tasks)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for seed in seeds:
            scene = make_scene(seed)
            name = f"{seed}.png"
            Image.fromarray(draw(scene)).save(folder / name)
            for question in ask(scene, tasks):
                row = {"file_name": name, "question": question.text, "answer": question.answer, "task": question.task}
                file.write(json.dumps(row) + "\n")
    return folder

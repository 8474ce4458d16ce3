"""Normalises short answers, so that equal ones can be told, by the rules of the VQA challenge.

The rules (https://visualqa.org/evaluation.html): lower case, numbers as digits, no articles, no punctuation except a
decimal point. The challenge adds missing apostrophes to contractions, from a list; here all apostrophes are removed,
which makes the same answers equal.
"""

from __future__ import annotations

import re

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")


def normalised(answer: str) -> str:
    """The form in which answers are compared."""
    text = re.sub(r"['’]", "", answer.lower())
    text = re.sub(r"(?<=\d),(?=\d)", "", text)  # 1,000
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)  # no decimal point
    words = re.sub(r"[^\w.]|_", " ", text).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)

"""Breaks the files of a folder in ways that hypothesis chooses."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

NESTED: Any = []
for _ in range(100):
    NESTED = [NESTED]

VALUES = (
    *(None, True, 0, 1, -1, 7, 0.5, 1 << 20, 1 << 31, 1 << 62, 10**40, -(10**400), 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "default",
        "../x",
        "/etc/passwd",
        "a\nb\x1b[31m",
        "\ud800",
        "模型",
        "x" * 100_000,
        "{{ 1 / 0 }}",
        "auto",
    ),
    *([], {}, [[]], [None], [1, "x"], {"": {}}, NESTED, list(range(10_000))),
)
TEMPLATES = (
    *(
        "",
        "{",
        "{{",
        "{% for %}",
        "{{ x.y }}",
        "{{ 1 / 0 }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ messages[0]['content'] + '' }}",
    ),
    *("{{ raise_exception('a\nb') }}", "{{ ''.__class__ }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    *("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{% include 'x' %}", "\x00"),
    *("<image>" * 50, "{{ messages }}", "{{ strftime_now('%Y') }}", "{{ [].pop() }}", "{% set x = x %}{{ x }}"),
)
NORMALIZERS = (
    *({"type": "Lowercase"}, {"type": "Replace", "pattern": {"String": ""}, "content": "x"}, {"type": "NFC"}),
    *({"type": "Replace", "pattern": {"Regex": "("}, "content": ""}, {"type": "Prepend", "prepend": "x" * 10_000}),
    {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 10}] * 12,
    },
)
CARDS = (
    *(
        "",
        "---",
        "---\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: mit\n",
        "---\nlicense: [a, b]\n---\n",
        "---\n? ?\n---\n",
    ),
    *(f"---\nlicense: {'9' * 900_000}\n---\n", f"---\nx: {'9' * 60_000}\nlicense: mit\n---\n"),
    *(
        f"---\nx: {'[' * 5000}\n---\n",
        f"---\nx: {':59' * 20_000}\n---\n",
        "---\nlicense: !!python/name:os.system\n---\n",
    ),
    *("---\na: &a [*a]\nlicense: *a\n---\n", "---\nlicense: 2001-99-99\n---\n", "---\n\x00\n---\n", "---\n\tx\n---\n"),
)


@st.composite
def edited(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document in which one to three values, at any depth, are removed, replaced or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        value, parent, key = document, None, None
        while isinstance(value, dict | list) and value and (parent is None or draw(st.integers(0, 3))):
            parent = value
            key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
            value = value[key]
        if parent is None:
            return draw(st.sampled_from(VALUES))
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "remove":
            del parent[key]
        elif how == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["auto_map", "dtype", "quantization_config", "chat_template", "x\ny"]))] = (
                draw(st.sampled_from(VALUES))
            )
        else:
            parent[key] = draw(st.sampled_from(VALUES))
    return document


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that were cut, grown, or written over."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    more = draw(st.sampled_from([b"", b"\xff", b"\x00", b"[" * 5000, b'{"a":1,"a":2}', b"\xef\xbb\xbf", b"9" * 5000]))
    return draw(st.sampled_from([content[:at], content[:at] + more + content[at:], more, more + content]))


def _json(folder: Path, name: str, draw: st.DrawFn) -> None:
    document = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps(draw(edited(document))), "utf-8")


def _bytes(folder: Path, name: str, draw: st.DrawFn) -> None:
    (folder / name).write_bytes(draw(damaged((folder / name).read_bytes())))


def _header(folder: Path, name: str, draw: st.DrawFn) -> None:
    content = (folder / name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(draw(edited(json.loads(content[8 : 8 + length])))).encode()
    (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def _template(folder: Path, name: str, draw: st.DrawFn) -> None:
    template = draw(st.sampled_from(TEMPLATES))
    place = draw(st.sampled_from(["chat_template.jinja", "processor_config.json", "tokenizer_config.json"]))
    if place == "chat_template.jinja":
        (folder / place).write_text(template, "utf-8")
        return
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    value: Any = draw(st.sampled_from([template, [{"name": "default", "template": template}], {"rag": template}]))
    _set(folder / place, chat_template=value)


def _normalizer(folder: Path, name: str, draw: st.DrawFn) -> None:
    _set(folder / "tokenizer.json", normalizer=draw(st.sampled_from(NORMALIZERS)))


def _card(folder: Path, name: str, draw: st.DrawFn) -> None:
    (folder / "README.md").write_text(draw(st.sampled_from(CARDS)), "utf-8")


def _no_file(folder: Path, name: str, draw: st.DrawFn) -> None:
    path = folder / name
    path.unlink()
    how = draw(st.sampled_from(["gone", "folder", "pipe", "device", "loop", "elsewhere"]))
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how != "gone":
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "elsewhere": "/etc/passwd"}[how])


def _set(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), "utf-8")


@st.composite
def breakage(draw: st.DrawFn, folder: Path) -> str:
    """Breaks a file of this folder, and says which and how."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py")
    name = draw(st.sampled_from(names))
    ways: list[Callable[[Path, str, st.DrawFn], None]] = [_bytes, _no_file]
    ways += [_json] * 6 * name.endswith(".json")
    ways += [_header] * 3 * name.endswith(".safetensors")
    ways += [_card] * 4 * (name == "README.md")
    ways += [_template] * 4 * (name == "chat_template.jinja")
    ways += [_normalizer] * (name == "tokenizer.json")
    way = draw(st.sampled_from(ways))
    way(folder, name, draw)
    return f"{way.__name__} {name}"

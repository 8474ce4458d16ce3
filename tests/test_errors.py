"""Foreign text as it is shown: on one line, without what moves the cursor, signs an address or gives access."""

from __future__ import annotations

import os
import unicodedata

import pytest

from shortv_export.errors import one_line, shown, without_secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model\n\x1b[2J", r"model\n\x1b[2J"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("\ufeff\u200b\u00ad\x7f\x85", r"\ufeff\u200b\xad\x7f\x85"),
        ("tab\tand\rreturn", r"tab\tand\rreturn"),
        ("\U000e0041", r"\U000e0041"),
        (os.fsdecode(b"\xff"), r"\udcff"),
        ("模型 naïve 🤗 l'été", "模型 naïve 🤗 l'été"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert shown(expected) == expected


def test_nothing_that_moves_the_cursor_or_hides_is_left() -> None:
    every = "".join(map(chr, (*range(0x12000), *range(0xE0000, 0xE0200), 0x10FFFF)))
    kinds = {unicodedata.category(character) for character in shown(every)}
    assert kinds.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
    assert "\n" not in shown(every)


@pytest.mark.parametrize(
    "text",
    [
        "403 for url 'https://bucket.s3.amazonaws.com/a/b?X-Amz-Signature=SECRET&X-Amz-Expires=900'",
        "PUT https://user:SECRET@host/path failed",
        "https://cdn/x?Signature=SECRET",
        "HTTPS://CDN/x?Policy=SECRET#y",
        "Authorization: Bearer SECRET",
        "the token hf_SECRETSECRETSECRET is not valid",
        "hf_oauth_SECRET.a-b",
    ],
)
def test_secrets_are_left_out(text: str) -> None:
    assert "SECRET" not in one_line(ValueError(text))


def test_the_rest_of_an_address_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Not Found for url: https://huggingface.co/api/models/acme/base?blobs=1 (see hf_hub_download)"
    found = "Not Found for url: https://huggingface.co/api/models/acme/base (see hf_hub_download)"
    assert without_secrets(text) == found
    monkeypatch.setenv("HF_TOKEN", "my-own-token")
    assert without_secrets("no: my-own-token") == "no: hf_***"


def test_any_exception_is_one_line() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert one_line(Broken()) == "Broken"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError(" a\n\n b\t")) == "a b"
    assert len(one_line(ValueError("x" * 10**7))) == 300

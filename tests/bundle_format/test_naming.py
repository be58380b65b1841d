"""Test the names of runs and bundles that are made from the names of files."""

from __future__ import annotations

import re
import unicodedata

import pytest

from meari.bundle_format.names import NAME_PATTERN
from meari.bundle_format.naming import name_of_file


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my text (1)", "my-text-1"),
        ("v1.2-notes", "v1.2-notes"),
        ("소설", "soseol"),
        ("내 소설 (최종)", "nae-soseol-choejong"),
        ("한국어 corpus", "hanguk-eo-corpus"),
        ("해운대", "hae-undae"),
        ("반구", "bangu"),
        ("방우", "bang-u"),
        ("없었습니다", "eobs-eossseupnida"),
        ("2024년 1월", "2024nyeon-1wol"),
        ("운수 좋은 날 — 현진건", "unsu-joh-eun-nal---hyeonjingeon"),
        ("Café", "Cafe"),
        ("ｆｕｌｌ", "full"),
        ("", "my-model"),
        ("---", "my-model"),
    ],
)
def test_name_can_be_read(file: str, name: str) -> None:
    assert name_of_file(file, "my-model") == name
    assert name_of_file(unicodedata.normalize("NFD", file), "my-model") == name  # as macOS writes names


@pytest.mark.parametrize(
    ("file", "start"),
    [("日記", "my-model-"), ("日記2", "2-"), ("Дневник", "my-model-"), ("😀", "my-model-"), ("ㅋㅋ", "my-model-"),
     ("Straße", "Stra-e-"), ("\udcff", "my-model-"), ("b" * 130, "b" * 93 + "-")],
)  # fmt: skip
def test_name_that_cannot_be_written_in_ascii_ends_in_a_hash(file: str, start: str) -> None:
    name = name_of_file(file, "my-model")
    assert re.fullmatch(re.escape(start) + "[0-9a-f]{6}", name)
    assert name_of_file(unicodedata.normalize("NFD", file), "my-model") == name


def test_different_names_stay_apart() -> None:
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    pairs = [
        "반구",
        "방우",
        "가나",
        "간아",
        "해운대",
        "하은대",
        "김치",
        "낌치",
        "日記",
        "週記",
        "😀",
        "😎",
        "a" * 101,
        "a" * 102,
    ]
    assert len({name_of_file(each, "x") for each in pairs}) == len(pairs)
    alike = len(syllables) - len({name_of_file(each, "x") for each in syllables})
    assert alike <= 3 * 19 * 21  # final ㅋ, ㅌ and ㅍ are written as ㄱ, ㄷ and ㅂ


@pytest.mark.parametrize("file", ["notes.new", "a.tmp", "소설.part", ".a", "a" * 200 + ".old", "-", "a/b\0c", "\u200b"])
def test_every_name_is_one_that_a_bundle_may_have(file: str) -> None:
    name = name_of_file(file, "x")
    assert re.fullmatch(NAME_PATTERN, name)
    assert not name.endswith((".new", ".old", ".part", ".partial", ".tmp"))

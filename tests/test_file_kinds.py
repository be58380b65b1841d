"""Test the recognition of file kinds by name and first bytes; UTF-8 text must never be mistaken for another kind."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meari.file_kinds import kind_of_content, kind_of_name, likely_encoding

TEXTS = (
    "hello\n",
    "déjà vu cet été\n",
    "zażółć gęślą jaźń\n",
    "Привет, мир\n",
    "Καλημέρα κόσμε\n",
    "שלום עולם\n",
    "مرحبا بالعالم\n",
    "नमस्ते दुनिया कैसे हो\n",
    "สวัสดีชาวโลก\nสบายดีไหม\n",
    "გამარჯობა მსოფლიო\n",
    "재미있는 영화 가나다\n",
    "재미있는영화였습니다정말추천합니다여러분도꼭보세요",
    "これはとてもおもしろいほんです。\n",
    "我爱北京天安门，天安门上太阳升。\n",
    "ok 😀😀 fine\n",
)


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", TEXTS)
def test_utf16_and_utf32_without_byte_order_mark_are_recognised_in_every_script(text: str, encoding: str) -> None:
    for data in (text.encode(encoding), (text * 200).encode(encoding), (text * 200).encode(encoding)[:1021]):
        kind = kind_of_content("x.txt", data)
        assert kind is not None
        assert (kind.name, kind.is_encoding) == (encoding, True)


@pytest.mark.parametrize(
    "data",
    [
        *(text.encode() for text in TEXTS),
        *(text.encode() + b"\xff\n" for text in TEXTS),
        *("안녕하세요 여러분 재미있는 영화".encode(encoding) for encoding in ("cp949", "euc-kr")),
        *("안녕하세요여러분재미있는영화였습니다".encode(encoding) for encoding in ("cp949", "euc-kr")),
        "我爱北京天安门天安门上太阳升".encode("gb18030"),
        "我愛北京天安門天安門上太陽昇".encode("big5"),
        *("これはとても面白い本です".encode(encoding) for encoding in ("shift_jis", "euc_jp")),
        *("Привет, мир и все его жители".encode(encoding) for encoding in ("cp1251", "koi8_r")),
        b"a\0b\nplain text\n",
        b"abc\0def\0ghi\0",
        b"ab\0cd\0ef\0",
        b"1\x012\x013\x014\x01\n",
        b"1\t0\t1\t0\n1\t0\t1\t0\n",
        b"\0" * 64,
        b"\x1b[0m" * 9,
        b"\r\n" * 20,
        b"",
    ],
)
def test_utf8_and_legacy_encodings_are_not_mistaken_for_utf16_or_utf32(data: bytes) -> None:
    assert kind_of_content("x.txt", data) is None


KOREAN = "안녕하세요. 이 영화는 정말 재미있게 봤습니다.\n배우들의 연기가 훌륭했고 음악도 좋았다.\n"
FRENCH = "Déjà vu cet été, à la forêt. L\u2019élève a mangé.\n"


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (KOREAN, "cp949", "CP949"),
        (KOREAN, "euc_kr", "CP949"),
        ("한국어", "cp949", "CP949"),
        ("これはとてもおもしろい本です。\n東京へ行きました。\n", "shift_jis", "CP932"),
        ("これはとてもおもしろい本です。\n東京へ行きました。\n", "euc_jp", "EUC-JP"),
        ("我爱北京天安门，天安门上太阳升。\n", "gb18030", "GB18030"),
        ("我愛北京天安門，天安門上太陽昇。\n偉大的領袖指引我們向前進。\n", "big5", "BIG5"),
        (FRENCH, "cp1252", "CP1252"),
        ("Die schöne Müllerin, größer über allem.\n¿Qué pasó, señor?\n", "latin_1", "CP1252"),
    ],
)
def test_encoding_of_a_text_that_is_not_utf8_is_guessed_from_any_part_of_it(text: str, codec: str, name: str) -> None:
    data = text.encode(codec)
    command = f"iconv -f {name} -t UTF-8"
    for part in (data, data * 50, b"in ASCII first\n" + data, (data * 50)[1:], (data * 50)[3:2222]):
        kind = likely_encoding(part)
        assert kind is not None
        assert kind.command == command
    if shutil.which("iconv"):
        assert subprocess.run(command.split(), input=data, capture_output=True, check=True).stdout == text.encode()


@pytest.mark.parametrize(
    "data",
    [
        *("Привет, мир и все его жители\n".encode(codec) for codec in ("cp1251", "koi8_r", "cp866")),
        *("Příliš žluťoučký kůň úpěl ďábelské ódy.\n".encode(codec) for codec in ("cp1250", "iso8859_2")),
        "Zażółć gęślą jaźń, łódź i ćma.\n".encode("cp1250"),
        "Καλημέρα κόσμε όλα καλά\n".encode("cp1253"),
        KOREAN.encode("johab"),
        b"plain text\n",
        b"one \xff and more",
        b"caf\xe9 and more",
        bytes(range(256)),
        b"",
    ],
)
def test_encoding_that_nothing_tells_is_not_guessed(data: bytes) -> None:
    assert likely_encoding(data) is None


@given(st.sampled_from((*TEXTS, KOREAN, FRENCH)), st.integers(0), st.binary(min_size=1, max_size=2))
def test_damaged_utf8_is_no_other_encoding(text: str, place: int, damage: bytes) -> None:
    data = (text * 4).encode()
    place %= len(data)
    if not text.isascii():
        assert likely_encoding(data[:place] + damage + data[place:]) is None
        assert likely_encoding(data[place:]) is None or len(data) - place < 40


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\t\n\r")))
def test_utf8_text_is_never_another_kind(text: str) -> None:
    assert kind_of_content("x.txt", text.encode()) is None
    assert kind_of_content("x.txt", text.encode()[:37]) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.tar", "a tar archive"),
        ("a.TAR.GZ", "a tar archive"),
        ("a.txt.tgz", "a tar archive"),
        ("a.tar.zst", "a tar archive"),
        ("a.txt.zip", "a ZIP archive"),
        ("a.XZ", "xz"),
        ("a.gz", None),
        ("a.tar.txt", None),
        ("guitar", None),
    ],
)
def test_file_name_tells_the_kind_of_archive(name: str, kind: str | None) -> None:
    found = kind_of_name(name)
    assert (found and found.name) == kind

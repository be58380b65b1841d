"""Test expressions: matching documents, places of matches, errors with their line number; the released blocklist."""

import unicodedata
from pathlib import Path

import pytest

from meari.models.errors import BadExpression, BrokenText, UnreadableFile
from meari.models.text.expressions import OVERLAP, load_expressions

KOREAN = Path(__file__).parents[3] / "models/configs/nsmc-blocklist.txt"


def written(folder: Path, content: bytes) -> str:
    path = folder / "blocklist.txt"
    path.write_bytes(content)
    return str(path)


def test_expression_matches_anywhere_in_any_case_and_normalisation(tmp_path: Path) -> None:
    blocklist = load_expressions(written(tmp_path, "# a comment\n\n  나쁜 말 \r\nrude\n^only$\n".encode()))
    assert blocklist.matches("so RUDE of you")
    assert blocklist.matches(unicodedata.normalize("NFD", "이런 나쁜 말을"))
    assert blocklist.matches("a\nonly\nb")
    assert not blocklist.matches("not only a comment, 나쁜말")
    assert not load_expressions("").matches("anything")


def test_match_across_pieces_of_one_document_is_found(tmp_path: Path) -> None:
    blocklist = load_expressions(written(tmp_path, b"rude"))
    assert not blocklist.matches("x" * 2 * OVERLAP + "ru", ends=False)
    assert blocklist.matches("de", ends=True)
    assert not blocklist.matches("ru", ends=True)
    assert not blocklist.matches("de", ends=True)


def test_expression_that_only_looks_matches_without_a_place(tmp_path: Path) -> None:
    found = load_expressions(written(tmp_path, b"^(?=.*rude)(?=.*word)\n"))
    assert found.matches("a word that is rude")
    assert not found.matches("a word")
    assert list(found.spans("a word that is rude")) == []


def test_expression_at_the_end_of_a_piece_waits_for_the_next_one(tmp_path: Path) -> None:
    found = load_expressions(written(tmp_path, b"rude$\n"))
    assert not found.matches("so rude", ends=False)
    assert not found.matches("ly", ends=True)
    assert not found.matches("so rude", ends=False)
    assert found.matches("", ends=True)


def test_places_of_matches_are_told_once_a_piece_has_their_end(tmp_path: Path) -> None:
    found = load_expressions(written(tmp_path, "b+|각\n(?<=x)\n^end$\n".encode()))
    assert list(found.spans("abbcbx")) == [(1, 3), (4, 5)]
    assert sorted(found.spans("각각\nend")) == [(0, 1), (1, 2), (3, 6)]
    assert list(found.spans("cab", ends=False)) == []  # what follows may belong to it
    assert list(found.spans("bbc", ends=False)) == [(-1, 2)]
    assert list(found.spans("\nend", ends=False)) == [(-4, -1)]
    assert sorted(found.spans("")) == [(-8, -5), (-3, 0)]
    assert list(found.spans("b")) == [(0, 1)]


@pytest.mark.parametrize(
    ("content", "error"), [(b"fine\n(", BadExpression), (b"a\nx*", BadExpression), (b"a\n\xff", BrokenText)]
)
def test_invalid_line_is_reported_with_its_number(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"blocklist\.txt, line 2"):
        load_expressions(written(tmp_path, content))


def test_blocklist_in_a_legacy_encoding_is_reported_with_the_command_that_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "바보\n멍청이\n".encode("cp949"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (path, f"~/{Path(path).name}"):
        with pytest.raises(BrokenText, match=rf"it looks like CP949 .*: `iconv -f CP949 -t UTF-8 {path}` converts it"):
            load_expressions(given)


def test_missing_blocklist_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="none"):
        load_expressions(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "text",
    [
        "아이들과 함께 보지 마세요",
        "이 영화는 보지 않았습니다",
        "혼자 보지 말고 같이 보세요",
        "배꼽 잡고 자지러지게 웃었다",
        "모든 일의 시발점",
        "잠을 자지 않고 봤다",
        "꼭 봐야 하는 영화",
        "찾아야하는 이유",
        "유치한 연출",
        "처음부터 끝까지",
        "마음부터 따뜻해진다",
        "배우의 전성기",
        "감성적인 음악",
        "18년 만에 다시 봤다",
        "돌아갈 수 없는 시절",
        "친오빠가 추천한 영화",
        "아빠와 함께",
        "대충 만든 느낌",
        "그럼에도 불구하고 좋다",
        "우리 사장님",
        "살인의 추억 이후 최고",
        "트랜스포머보다 낫다",
        "글로리아라는 노래",
        "김혜수 씨 연기가 좋다",
        "작년에 본 영화",
        "내년에 또 보고 싶다",
        "다시 바라보게 된다",
        "아저씨 발걸음",
        "역시 발전했다",
        "게임 같은 전개",
        "젊은 시절",
        "이웃의 토토로",
        "보는 거지 뭐",
        "빈약하고 지루하다",
    ],
)
def test_innocent_korean_is_kept(text: str) -> None:
    assert not load_expressions(str(KOREAN)).matches(text)


@pytest.mark.parametrize(
    "text",
    [
        "씨 발 이게 뭐냐",
        "시1발",
        "ㅅ ㅂ",
        "18놈들",
        "미친놈",
        "병.신 같은",
        "존 나 재미없다",
        "쓰 레 기 영화",
        "www.example.com 놀러오세요",
        "010-1234-5678 연락",
        "개노잼",
        "짱깨",
        "자살하고 싶다",
        "토 나온다",
    ],
)
def test_rude_korean_and_its_disguises_match(text: str) -> None:
    assert load_expressions(str(KOREAN)).matches(text)

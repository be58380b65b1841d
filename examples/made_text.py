"""Make English or Korean sentences for training without a corpus: `python examples/made_text.py english 5000`.

Input: a language, a number of sentences, a seed. Output: sentences of a small grammar. A model can learn spelling,
the objects that each verb takes, a or an, the verb's number, and in Korean the particles 이/가 and 을/를.
"""

import argparse
import random
from collections.abc import Callable, Sequence

__all__ = ["LANGUAGES", "sentences", "with_particle"]

PEOPLE = ("sailor", "painter", "miller", "teacher", "weaver", "uncle", "actor", "singer")
ADJECTIVES = ("old", "young", "quiet", "busy", "honest", "merry", "idle", "tall")
OBJECTS = {
    "read": ("letter", "book", "old map", "notice"),
    "mend": ("net", "boat", "oar", "chair", "umbrella"),
    "paint": ("tree", "island", "bridge", "orchard"),
    "cook": ("soup", "egg", "onion", "fish"),
    "sell": ("apple", "lantern", "basket", "umbrella", "net"),
}
PLACES = ("by the river", "in the market", "under the bridge", "near the mill", "on the hill", "at home")
TIMES = ("in the morning", "every day", "after dark", "before the rain")

KOREAN_PEOPLE = ("어부", "화가", "상인", "목수", "학생", "선생님", "의사", "시인")
KOREAN_ADJECTIVES = ("늙은", "젊은", "조용한", "바쁜", "친절한", "부지런한", "키 큰")
KOREAN_OBJECTS = {
    "읽는다": ("편지", "책", "신문", "지도"),
    "고친다": ("그물", "배", "의자", "문", "우산"),
    "그린다": ("나무", "섬", "다리", "산"),
    "끓인다": ("국", "물", "차", "죽"),
    "판다": ("사과", "등불", "바구니", "우산", "그물"),
}
KOREAN_PLACES = ("강가에서", "시장에서", "다리 밑에서", "방앗간 옆에서", "언덕 위에서", "집에서")
KOREAN_TIMES = ("아침마다", "날마다", "해가 진 뒤에", "비가 오기 전에")


def sentences(language: str, number: int, seed: int) -> list[str]:
    """Return `number` sentences of a language; the same seed gives the same sentences."""
    generator = random.Random(seed)
    return [LANGUAGES[language](generator) for _ in range(number)]


def with_particle(noun: str, after_consonant: str, after_vowel: str) -> str:
    """Return a Korean noun with the particle form that fits its last syllable: 책을, 배를."""
    has_final_consonant = (ord(noun[-1]) - ord("가")) % 28 > 0
    return noun + (after_consonant if has_final_consonant else after_vowel)


def _english(generator: random.Random) -> str:
    is_plural = generator.random() < 0.4
    verb, objects = generator.choice(list(OBJECTS.items()))
    subject = _maybe(generator, ADJECTIVES) + generator.choice(PEOPLE)
    subject = f"{generator.choice(('two', 'the', 'some'))} {subject}s" if is_plural else _singular(generator, subject)
    words = [subject, verb if is_plural else verb + "s", _singular(generator, generator.choice(objects))]
    if generator.random() < 0.6:
        words.append(generator.choice(PLACES))
    if generator.random() < 0.4:
        words.append(generator.choice(TIMES))
    text = " ".join(words)
    return text[0].upper() + text[1:] + "."


def _korean(generator: random.Random) -> str:
    verb, objects = generator.choice(list(KOREAN_OBJECTS.items()))
    words = [_maybe(generator, KOREAN_ADJECTIVES) + with_particle(generator.choice(KOREAN_PEOPLE), "이", "가")]
    if generator.random() < 0.4:
        words.append(generator.choice(KOREAN_TIMES))
    if generator.random() < 0.6:
        words.append(generator.choice(KOREAN_PLACES))
    words += [with_particle(generator.choice(objects), "을", "를"), verb]
    return " ".join(words) + "."


def _singular(generator: random.Random, noun: str) -> str:
    article = "an" if noun[0] in "aeiou" else "a"
    return f"{generator.choice(('the', article))} {noun}"


def _maybe(generator: random.Random, adjectives: Sequence[str]) -> str:
    return generator.choice(adjectives) + " " if generator.random() < 0.5 else ""


LANGUAGES: dict[str, Callable[[random.Random], str]] = {"english": _english, "korean": _korean}


def main() -> None:
    """Print one sentence a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("language", choices=sorted(LANGUAGES))
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print("\n".join(sentences(arguments.language, arguments.number, arguments.seed)))


if __name__ == "__main__":
    main()

"""Bodies of some size that are made to cost much: to parse, to refuse, or to answer.

Input: the size in bytes. Output: paths and bodies. Must not know: a service.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

__all__ = ["HEAVY", "HOSTILE", "TEXTS", "Case", "body_of"]

Case = tuple[str, Callable[[int], bytes]]  # path, and how the body is made of its size
EMOJI: Final = "😀"
SCORE, GENERATE, COMPLETIONS = "/score", "/generate", "/v1/completions"


def body_of(case: Case, size: int) -> bytes:
    """Return the body of a case."""
    return case[1](size)


def _list_of(head: bytes, item: bytes, tail: bytes = b"]}", last: bytes = b"") -> Callable[[int], bytes]:
    """Make a body whose list has as many of an item as fit, and another one at its end."""
    end = (b"," + last if last else b"") + tail
    return lambda size: head + b"[" + b",".join([item] * (size // (len(item) + 1))) + end


def _names(head: bytes, value: bytes, tail: bytes = b"}") -> Callable[[int], bytes]:
    """Make a body with as many different names as fit."""
    return lambda size: head + b",".join(b'"%07d":%b' % (number, value) for number in range(size // 12)) + tail


def _text(head: bytes, unit: bytes, tail: bytes = b'"}') -> Callable[[int], bytes]:
    """Make a body with a long string."""
    return lambda size: head + b'"' + unit * (size // len(unit)) + tail


def _json(path: str, make: Callable[[int], dict[str, Any]]) -> Case:
    return path, lambda size: json.dumps(make(size), ensure_ascii=False).encode()


def _syllables(count: int) -> str:
    """Return as many Korean syllables, all of which come in turn."""
    return "".join(chr(0xAC00 + 37 * i % 11_172) for i in range(count))


HOSTILE: Final[dict[str, Case]] = {
    "unknown names": (GENERATE, _names(b"{", b"1")),
    "a name twice": (GENERATE, lambda size: b"{" + b",".join([b'"n":1'] * (size // 6)) + b"}"),
    "empty texts": (SCORE, _list_of(b'{"texts":', b'""')),
    "lists for texts": (SCORE, _list_of(b'{"texts":', b"[]")),
    "letters as texts": (SCORE, _list_of(b'{"texts":', b'"a"')),
    "a text beside another": (SCORE, _text(b'{"texts":["a"],"text":', b"a")),
    "figures of no token": (SCORE, _text(b'{"top":3,"text":', b"a ")),
    "words of another kind": (SCORE, _list_of(b'{"text":"a","words":', b"true")),
    "a long list of ends": (SCORE, _list_of(b'{"text":"a","add_end":', b"true")),
    "a state of numbers": (SCORE, _list_of(b'{"text":"a","state":', b"1")),
    "a state that looks right": (SCORE, _text(b'{"text":"a","state":', b"AbC-_9")),
    "numbers as stops": (GENERATE, _list_of(b'{"stop":', b"1")),
    "empty stops": (GENERATE, _list_of(b'{"stop":', b'""')),
    "a list for a number": (GENERATE, _list_of(b'{"n":', b"1.0")),
    "a list for the bias": (COMPLETIONS, _list_of(b'{"logit_bias":', b"1.0")),
    "biases": (GENERATE, _names(b'{"logit_bias":{', b"0.5", b"}}")),
    "words as biases": (GENERATE, _names(b'{"logit_bias":{', b'"x"', b"}}")),
    "values in a bias": (GENERATE, _list_of(b'{"logit_bias":{"1":', b"1", b"]}}")),
    "empty prompts": (COMPLETIONS, _list_of(b'{"prompt":', b"[]")),
    "ids with fractions": (COMPLETIONS, _list_of(b'{"prompt":', b"1.0", last=b"-1")),
    "ids with exponents": (COMPLETIONS, _list_of(b'{"prompt":', b"1e399")),
    "a wrong id at the end": (COMPLETIONS, _list_of(b'{"prompt":', b"1234", last=b"-1")),
    "lists of ids": (COMPLETIONS, _list_of(b'{"prompt":', b"[" + b",".join([b"1234"] * 1300) + b"]", last=b"[-1]")),
    "mixed prompts": (COMPLETIONS, _list_of(b'{"prompt":', b'"a",1')),
    "a long name of an option": (COMPLETIONS, _text(b'{"stream_options":{', b"a", b'\xf0\x9f\x98\x80":1}}')),
    "objects for tokens": ("/detokenize", _list_of(b'{"tokens":', b'{"a":1}')),
    "ids of objects": ("/detokenize", _list_of(b'{"tokens":', b'{"id":1.0}', last=b'{"id":-1}')),
    "lists for tokens": ("/detokenize", _list_of(b'{"tokens":', b"[1.0]")),
    "deep lists": ("/detokenize", _list_of(b'{"tokens":', b"[" * 900 + b"]" * 900)),
    "an endless list": (GENERATE, lambda size: b'{"prompt":' + b"[" * size),
    "a wide text": (SCORE, _text(b'{"top":1,"text":', b"a", EMOJI.encode() + b'"}')),
    "wide texts": (SCORE, _list_of(b'{"texts":', b'"' + b"a" * 6000 + EMOJI.encode() + b'"', last=b"1")),
    "an escaped text": ("/tokenize", _text(b'{"model":"none","text":', b"\\ud83d\\ude00")),
    "half a pair": ("/tokenize", _text(b'{"text":', b"a", b'\\ud800"}')),
    "a long word": (SCORE, _text(b'{"text":"a","log_base":', b"e")),
    "a long model": ("/tokenize", _text(b'{"text":"a","model":', b"m", EMOJI.encode() + b'"}')),
    "a long state": (GENERATE, _text(b'{"state":', b"A")),
    "a long stop": (GENERATE, _text(b'{"stop":', b"a", b'","max_tokens":0}')),
    "a long number": (GENERATE, lambda size: b'{"seed":' + b"1" * size + b"}"),
    "a long fraction": (GENERATE, lambda size: b'{"top_p":0.' + b"1" * size + b"}"),
    "white space": (GENERATE, lambda size: b'{"n":' + b" " * size + b"99}"),
    "a long digit for the seed": (GENERATE, lambda size: b'{"seed":-' + b"0" * size + b"}"),
    "a great exponent": (GENERATE, lambda size: b'{"temperature":1e' + b"9" * size + b"}"),
    "escapes in a name": (GENERATE, lambda size: b'{"' + b"\\u0061" * (size // 6) + b'":1}'),
    "nested objects": (
        GENERATE,
        lambda size: b'{"logit_bias":' + b'{"1":' * (size // 5) + b"1" + b"}" * (size // 5 + 1),
    ),
    "a biased vocabulary": (COMPLETIONS, _names(b'{"prompt":"a","logit_bias":{', b"101", b"}}")),
    "half a body": ("/complete", lambda size: b'{"text":"' + b"a" * size),
    "zeros": ("/complete", bytes),
    "bytes that are no text": ("/complete", lambda size: b'{"text":"' + b"\xff" * size + b'"}'),
    "words to complete": ("/complete", _text(b'{"max_words":9,"text":', b"ab ")),
    "text for the units": ("/states", _text(b'{"text":"a","units":', b"1")),
}

TEXTS: Final[dict[str, Callable[[int], str]]] = {  # hostile to tokenizers and normal forms; size: characters
    "one letter": lambda n: "a" * n,
    "one capital": lambda n: "A" * n,
    "letters without a space": lambda n: "".join(chr(97 + i * i % 26) for i in range(n)),
    "spaces": lambda n: " " * n,
    "line ends": lambda n: "\n" * n,
    "line ends of Windows": lambda n: "\r\n" * (n // 2),
    "no-break spaces": lambda n: "\u00a0" * n,
    "digits": lambda n: "7" * n,
    "punctuation": lambda n: "!" * n,
    "short forms": lambda n: "'s" * (n // 2),
    "one syllable": lambda n: "가" * n,
    "Korean syllables": _syllables,
    "parts of syllables": lambda n: "\u1112\u1161\u11ab" * (n // 3),
    "first parts of syllables": lambda n: "\u1100" * n,
    "Korean words": lambda n: "영화가 정말 재미있었다 " * (n // 13),
    "one laugh": lambda n: "ㅋ" * n,
    "Chinese": lambda n: "".join(chr(0x4E00 + 97 * i % 20_000) for i in range(n)),
    "marks of two kinds": lambda n: "a" + "\u0301\u0316" * (n // 2),
    "marks in the wrong order": lambda n: "a" + "\u0345" * (n // 3) + "\u0301" * (n // 3) + "\u0316" * (n // 3),
    "letters with marks": lambda n: "e\u0301" * (n // 2),
    "emoji": lambda n: EMOJI * n,
    "joined emoji": lambda n: "👩\u200d" * (n // 2),
    "half of a pair of flags": lambda n: "🇰" * n,
    "replacement characters": lambda n: "\ufffd" * n,
    "control characters": lambda n: "\x01" * n,
    "the longest decomposition": lambda n: "\ufdfa" * n,
    "names of the boundary": lambda n: "<|end|>" * (n // 7),
}

HEAVY: Final[dict[str, Case]] = {  # size: characters
    "figures of a text": _json(SCORE, lambda n: {"text": "ab " * (n // 3), "tokens": True, "top": 20, "words": True}),
    "figures of a wide text": _json(SCORE, lambda n: {"text": EMOJI * n, "tokens": True, "top": 20}),
    "sums of a wide text": _json(SCORE, lambda n: {"text": EMOJI * n}),
    "many short texts": _json(SCORE, lambda n: {"texts": ["é" * (n // 1000)] * 1000, "tokens": True}),
    "many different texts": _json(
        SCORE,
        lambda n: {"texts": [f"{i} 한é" + "ñ " * (n // 4000) for i in range(1000)], "tokens": True, "words": True},
    ),
    "very short texts": _json(
        SCORE, lambda n: {"texts": [f"{chr(97 + i % 26)}é한" for i in range(1000)], "tokens": True}
    ),
    "tokens of a text": _json("/tokenize", lambda n: {"text": "a" * n}),
    "tokens of a wide text": _json("/tokenize", lambda n: {"text": EMOJI * n}),
    "text of tokens": _json("/detokenize", lambda n: {"tokens": [1 + i % 5 for i in range(n)]}),
    "text of named tokens": _json(
        "/detokenize", lambda n: {"tokens": [{"id": 1 + i % 5, "text": "a"} for i in range(n // 10)]}
    ),
    "prompt that is echoed": _json(
        COMPLETIONS, lambda n: {"prompt": EMOJI * n, "echo": True, "logprobs": 20, "max_tokens": 1}
    ),
    "prompts of ids": _json(COMPLETIONS, lambda n: {"prompt": [[2] * (n // 1000)] * 1000, "max_tokens": 1}),
    "samples with figures": _json(GENERATE, lambda n: {"prompt": "a" * n, "n": 16, "max_tokens": 400, "logprobs": 20}),
    "samples without an end": _json(
        GENERATE,
        lambda n: {"prompt": "한" * (n // 100), "n": 8, "max_tokens": 400, "logprobs": 20, "logit_bias": {"0": -100}},
    ),
    "texts that fork": _json(SCORE, lambda n: {"texts": [f"{'ab' * (n // 2000)}{i % 7}{i}" for i in range(1000)]}),
    "words of a text": _json(SCORE, lambda n: {"text": "a b " * (n // 4), "words": True}),
    "words by Unicode": _json(SCORE, lambda n: {"text": "한글 é! " * (n // 7), "words": "unicode"}),
    "state after a text": _json(SCORE, lambda n: {"text": "ab, c " * (n // 6), "return_state": True}),
    "states after texts": _json(
        SCORE, lambda n: {"texts": [f"{i} ab" for i in range(min(1000, n // 20))], "return_state": True}
    ),
    "a long context": _json(SCORE, lambda n: {"context": "é" * n, "texts": ["a", "b"] * 200, "tokens": True}),
    "tokens of syllables": _json("/tokenize", lambda n: {"text": _syllables(n)}),
    "tokens of parts of syllables": _json("/tokenize", lambda n: {"text": "\u1112\u1161\u11ab" * (n // 3)}),
    "text of ids without a fraction": _json("/detokenize", lambda n: {"tokens": [1.0 + i % 5 for i in range(n)]}),
    "text of tokens with all fields": _json(
        "/detokenize",
        lambda n: {"tokens": [{"id": 1 + i % 5, "text": "한", "bytes": [237]} for i in range(n // 10)]},
    ),
    "states of a text": _json("/states", lambda n: {"text": ("ab " * 300)[: min(n, 200)], "units": 128}),
    "long stops": _json(
        GENERATE, lambda n: {"prompt": "a", "max_tokens": 2, "stop": [chr(0xAC00 + i) * (n // 8) for i in range(8)]}
    ),
    "a prompt of ids": _json(COMPLETIONS, lambda n: {"prompt": [1 + i % 5 for i in range(n)], "max_tokens": 1}),
    "ids that are echoed": _json(
        COMPLETIONS, lambda n: {"prompt": [1 + i % 5 for i in range(n)], "echo": True, "logprobs": 5, "max_tokens": 1}
    ),
    "prompts that are continued": _json(
        COMPLETIONS,
        lambda n: {
            "prompt": [f"{i} ab" for i in range(n // 400)],
            "max_tokens": 20,
            "logprobs": 20,
            "ignore_eos": True,
        },
    ),
    "beams with figures": _json(
        GENERATE, lambda n: {"prompt": "a", "n": 8, "num_beams": 8, "max_tokens": n // 200, "logprobs": 20}
    ),
    "text to complete": _json("/complete", lambda n: {"text": "é" * n}),
    "prompt that is long": _json(GENERATE, lambda n: {"prompt": EMOJI * n, "max_tokens": 2}),
}

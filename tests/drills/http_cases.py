"""Cases of the fuzzing over HTTP: mutated bodies, state tokens and heads.

Input: a seed, and valid state tokens. Output: bytes to send. Must not know: the answers.
"""

from __future__ import annotations

import base64
import hmac
import json
import random
from collections.abc import Iterator
from typing import Any, Final

from tests.drills.mutations import mutated_bytes, mutated_json

__all__ = ["BODIES", "cases"]

BODIES: Final[dict[str, list[dict[str, Any]]]] = {
    "/generate": [
        {"prompt": "abc", "max_tokens": 2, "seed": 7},
        {"prompt": "a", "max_tokens": 3, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "n": 2},
        {"prompt": "ab", "max_tokens": 2, "num_beams": 2, "logprobs": 2},
        {"prompt": "x", "max_tokens": 2, "stream": True, "stop": ["z"], "logit_bias": {"3": 1.5}},
        {"max_tokens": 1, "return_state": True, "repetition_penalty": 1.2, "timeout_seconds": 5},
    ],
    "/score": [
        {"text": "abc", "tokens": True, "top": 2},
        {"texts": ["abc", "xyz"], "context": "a", "log_base": "2", "words": True, "add_end": False},
    ],
    "/tokenize": [{"model": "letters", "text": "abc"}],
    "/detokenize": [{"tokens": [2, 3, 4]}, {"tokens": [{"id": 2, "text": "a"}, {"id": 3, "bytes": [98]}]}],
    "/complete": [{"text": "ab", "n": 2, "max_words": 1}, {"model": "letters", "text": "", "composing": True}],
    "/states": [{"text": "ab", "units": 4}],
    "/v1/completions": [
        {"model": "letters", "prompt": [[2, 3], [4]], "max_tokens": 2, "logprobs": 1, "echo": True},
        {"model": "letters", "prompt": "a", "max_tokens": 2, "n": 2, "stream": True, "stream_options": {}},
    ],
}  # fmt: skip
NAMES: Final = sorted(
    {name for bodies in BODIES.values() for body in bodies for name in body} | {"state", "min_tokens"}
)
FIELDS: Final = (
    "Content-Length: 5", "Content-Length: -1", "Content-Length: 1e3", "Content-Length: 99999999999999999999",
    "content-length:", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: xchunked", "Transfer-Encoding:", "Content-Encoding: gzip", "Content-Type: text/plain",
    "Content-Type: application/json; charset=latin-1", "Content-Type:",
    "Content-Type: application/json; charset=\xff", "Expect: 100-continue", "Expect: miracles", "Connection: close",
    "Connection: upgrade, \x01", "Upgrade: h2c", "Host: ", "Host: a b", "Host: evil:99999", "Host: [::1",
    "Origin: null", "Origin: http://[", "Authorization: Bearer ", "Authorization: Basic !!!", "X-Request-Id: ../../x",
    "X-Request-Id: " + "a" * 200, "Accept: */*;q=x", "Range: bytes=0-1", "If-None-Match: *", "Cookie: a=b; \x7f",
    "traceparent: 00-zz-zz-zz", "X-Forwarded-For: 1, 2", "Forwarded: for=\"", "A" * 300 + ": 1", "X: " + "b" * 9000,
    "no colon", ": no name", " folded", "X\x00Y: 1", "\xe9: 1", "X: \xff",
)  # fmt: skip
TARGETS: Final = (
    "/", "/docs", "/openapi.json", "/healthz", "/readyz", "/models", "/models/letters", "/models/nothing",
    "/v1/models", "/nothing", "//generate", "/generate/", "/generate?x=1", "/generate#x", "/%00", "/%", "/%zz",
    "/..%2f..%2fetc", "/models/..%2f", "/models/%ff", "/static/../app.py", "*", "http://localhost/generate",
    "http://[/", "generate", "/a b", "/\xff", "/" + "a" * 9000, "",
)  # fmt: skip
METHODS: Final = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW", "post", "P\x00ST", "")


def mutated_token(token: str, rng: random.Random, signing_key: bytes) -> tuple[str, bool]:
    """Return a changed token, and whether it must be refused; one in three is signed again."""
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    if rng.random() < 0.33:
        signed = mutated_bytes(data[:-32], rng)
        changed = signed + hmac.digest(signing_key, signed, "sha256")
        return base64.urlsafe_b64encode(changed).rstrip(b"=").decode(), False
    if rng.random() < 0.5:
        text = base64.urlsafe_b64encode(mutated_bytes(data, rng)).rstrip(b"=").decode()
    else:
        text = mutated_bytes(token.encode(), rng).decode("latin-1")
    return text, text != token


def mutated_head(rng: random.Random) -> bytes:
    """Return the bytes of a request whose head is wrong, and of what follows it."""
    body = b'{"prompt": "a", "max_tokens": 1}'
    method, target = "POST", "/generate"
    if rng.random() < 0.4:
        target = rng.choice(TARGETS)
    if rng.random() < 0.3:
        method = rng.choice(METHODS)
    version = rng.choice(("HTTP/1.1",) * 8 + ("HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", "http/1.1", ""))
    fields = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    for _ in range(rng.randrange(3)):
        fields.insert(rng.randrange(len(fields) + 1), rng.choice(FIELDS))
    if rng.random() < 0.2:
        fields.pop(rng.randrange(len(fields)))
    if rng.random() < 0.02:
        fields += [f"X-{number}: 1" for number in range(200)]
    head = "\r\n".join([f"{method} {target} {version}", *fields, "", ""]).encode("latin-1")
    return (head if rng.random() < 0.7 else mutated_bytes(head, rng)) + body


def cases(total: int, seed: int, tokens: list[str], signing_key: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """Yield cases as path, body (of a head: all bytes, with path ""), and whether nothing but a refusal is right."""
    rng = random.Random(seed)
    templates = [(path, body) for path, bodies in BODIES.items() for body in bodies]
    for _ in range(total):
        kind = rng.random()
        if kind < 0.03:
            yield "", mutated_head(rng), False
        elif kind < 0.3:
            token, is_refused = mutated_token(rng.choice(tokens), rng, signing_key)
            body = {"text": "a"} if rng.random() < 0.3 else {"prompt": "a", "max_tokens": 1}
            path = "/score" if "text" in body else "/generate"
            yield path, json.dumps({**body, "state": token}).encode(), is_refused
        else:
            path, fields = rng.choice(templates)
            yield path, mutated_json(fields, NAMES, rng), False

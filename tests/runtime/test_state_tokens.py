"""Test state tokens: signed states are restored bit for bit, all other tokens are refused with the reason."""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meari.errors import InvalidRequest
from meari.runtime.engine import StateValue
from meari.runtime.state_tokens import StateTokens, TextState
from meari.runtime.text.detokenizer import TextEnd

KEY, OTHER_KEY = "a" * 32, "b" * 32
HASH, OTHER_HASH = "0123456789abcdef" * 4, "f" * 64
TENSORS = {"hidden": (2, 3), "cell": (4,)}
VOCABULARY_SIZE = 1000


def codec(*keys: str, bundle_hash: str = HASH, vocabulary_size: int = VOCABULARY_SIZE) -> StateTokens:
    return StateTokens(keys or (KEY,), bundle_hash, TENSORS, vocabulary_size)


def state(**changes: Any) -> StateValue:
    rows = {name: np.random.default_rng(1).normal(size=shape).astype(np.float32) for name, shape in TENSORS.items()}
    return StateValue(**{"rows": rows, "token": 5, "position": 7, "seed": 2**63 - 1, **changes})


def refusal(tokens: StateTokens, text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        tokens.decode(text)
    assert str(caught.value).startswith("state: got ")
    return str(caught.value)


def flipped(text: str, place: int, bit: int) -> str:
    data = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    data[place] ^= 1 << bit
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


floats = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=10, max_size=10)


@given(
    numbers=floats,
    token=st.integers(0, VOCABULARY_SIZE - 1),
    position=st.integers(0, 2**63 - 1),
    seed=st.integers(0, 2**63 - 1),
    seen=st.frozensets(st.integers(0, VOCABULARY_SIZE - 1), max_size=400),
    generated=st.dictionaries(st.integers(0, VOCABULARY_SIZE - 1), st.integers(1, 2**35 - 1), max_size=400),
    needs_space=st.booleans(),
    partial=st.binary(max_size=3),
    is_seeded=st.booleans(),
)
def test_state_is_restored_bit_for_bit(
    numbers: list[float],
    token: int,
    position: int,
    seed: int,
    seen: frozenset[int],
    generated: dict[int, int],
    needs_space: bool,
    partial: bytes,
    is_seeded: bool,
) -> None:
    rows = {
        "cell": np.array(numbers[6:], np.float32),
        "hidden": np.array(numbers[:6], np.float32).reshape(2, 3),
    }
    value = StateValue(rows, token, position, seed, seen, generated)
    text = codec().encode(TextState(value, TextEnd(needs_space, partial), is_seeded))
    assert len(text) <= codec().max_chars
    found = codec().decode(text)
    assert found.text_end == TextEnd(needs_space, partial)
    assert found.is_seeded == is_seeded
    same = found.value
    assert (same.token, same.position, same.seed, same.seen) == (token, position, seed, seen)
    assert same.generated == generated
    assert {name: (row.shape, row.tobytes()) for name, row in same.rows.items()} == {
        name: (row.shape, row.tobytes()) for name, row in rows.items()
    }


def test_token_is_url_safe_and_little_larger_than_its_numbers() -> None:
    text = codec().encode(TextState(state(seen=frozenset(range(100)))))
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert len(text) < 4 / 3 * (4 * 10 + 100 + 32 + 50)


@pytest.mark.parametrize("vocabulary_size", [10, 1001])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 1.0])
def test_seen_tokens_take_at_most_one_bit_each(vocabulary_size: int, share: float) -> None:
    tokens = codec(vocabulary_size=vocabulary_size)
    count = int(share * vocabulary_size)
    seen = frozenset(np.random.default_rng(2).permutation(vocabulary_size)[:count].tolist()) | {vocabulary_size - 1}
    text = tokens.encode(TextState(state(seen=seen)))
    bare = tokens.encode(TextState(state()))
    assert tokens.decode(text).value.seen == seen
    assert len(text) - len(bare) <= 4 / 3 * -(-vocabulary_size // 8) + 2


def test_counts_of_generated_tokens_take_few_bytes() -> None:
    counts = {token: 1 + token % 100 for token in range(0, VOCABULARY_SIZE, 7)}
    bare, text = (codec().encode(TextState(state(generated=one))) for one in ({}, counts))
    assert codec().decode(text).value.generated == counts
    assert len(text) - len(bare) <= 4 / 3 * 2 * len(counts) + 2


def test_token_with_a_changed_bit_is_refused() -> None:
    text = codec().encode(TextState(state(seen=frozenset({1, 2, 900}))))
    for place in range(len(text) * 3 // 4):
        for bit in range(8):
            refusal(codec(), flipped(text, place, bit))


def test_truncated_or_extended_token_is_refused() -> None:
    text = codec().encode(TextState(state()))
    for length in range(len(text)):
        refusal(codec(), text[:length])
        refusal(codec(), text[length + 1 :])
    for more in ("A", "AA", "AAA", "AAAA", "=", "==", "\n", " ", text):
        refusal(codec(), text + more)
        refusal(codec(), more + text)


@pytest.mark.parametrize("text", ["", "a", "한글", "{}", "A" * 70, "A" * 71, "+/" * 40, "\x00" * 80, "=" * 80])
def test_other_text_is_refused(text: str) -> None:
    refusal(codec(), text)


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_the_refusal(data: bytes) -> None:
    refusal(codec(), base64.urlsafe_b64encode(data).rstrip(b"=").decode())


def test_long_text_is_refused_by_its_length() -> None:
    limit = codec().max_chars
    assert f"got {limit + 1} characters, expected at most {limit}" in refusal(codec(), "A" * (limit + 1))


def test_refusal_states_its_reason() -> None:
    own = codec().encode(TextState(state()))
    assert "another model" in refusal(codec(bundle_hash=OTHER_HASH), own)
    assert "signed with a key that this service does not hold" in refusal(codec(OTHER_KEY), own)
    assert "changed or cut" in refusal(codec(), flipped(own, 60, 0))
    assert "format version 3, expected 2" in refusal(codec(), flipped(own, 0, 0))


def test_token_that_claims_another_bundle_or_key_is_refused() -> None:
    """Bundle and key in the token serve only the message; the signature does not depend on them."""
    own = bytearray(base64.urlsafe_b64decode(codec().encode(TextState(state())) + "=="))
    other_bundle = base64.urlsafe_b64decode(codec(bundle_hash=OTHER_HASH).encode(TextState(state())) + "==")
    other_key = base64.urlsafe_b64decode(codec(OTHER_KEY).encode(TextState(state())) + "==")
    for foreign in (other_bundle, other_key):
        forged = foreign[:1] + own[1:13] + foreign[13:]
        assert "changed or cut" in refusal(codec(), base64.urlsafe_b64encode(forged).rstrip(b"=").decode())


def test_tokens_stay_valid_while_keys_are_rotated() -> None:
    old = codec(KEY).encode(TextState(state()))
    rotated = codec(OTHER_KEY, KEY)
    assert rotated.decode(old).value.token == 5
    new = rotated.encode(TextState(state()))
    assert codec(OTHER_KEY).decode(new).value.token == 5
    assert "key" in refusal(codec(KEY), new)


def test_malformed_token_with_a_valid_signature_is_refused() -> None:
    rows = {"hidden": np.full((2, 3), np.nan, np.float32), "cell": np.zeros(4, np.float32)}
    assert "not finite" in refusal(codec(), codec().encode(TextState(state(rows=rows))))
    assert "out of range" in refusal(codec(), codec().encode(TextState(state(token=VOCABULARY_SIZE))))
    assert "out of range" in refusal(codec(), codec().encode(TextState(state(seen=frozenset({VOCABULARY_SIZE})))))
    assert "less than" in refusal(codec(), _signed(b"\x00" * 11))
    assert "less than" in refusal(codec(), _signed(b"\x00" + b"\x00" * 44 + b"\x80"))
    assert "more than" in refusal(codec(), _signed(b"\x04" + b"\x00" * 48))
    assert "an older version" in refusal(codec(), _signed(b"\x01" + b"\x00" * 9 + b"\x00" * 40, version=1))
    assert "another length" in refusal(codec(), _signed(b"\x00" + b"\x00" * 44 + b"\x01" * 126))
    assert "out of range" in refusal(codec(), _signed(b"\x00" + b"\x00" * 44 + b"\xff" * 9))
    assert "out of range" in refusal(codec(), codec().encode(TextState(state(generated={VOCABULARY_SIZE: 1}))))
    assert "out of range" in refusal(codec(), codec().encode(TextState(state(generated={1: 2**35}))))
    assert "less than" in refusal(codec(), _signed(b"\x00" + b"\x00" * 40 + b"\xff" * 4 + b"\x01" * 40))


def test_token_of_the_previous_version_is_accepted_without_generated_counts() -> None:
    found = codec().decode(_signed(b"\x00\x01\xc3" + b"\x00" * 40 + b"\x05\x02", version=1))
    assert found.value.seen == {5, 7}
    assert found.value.generated == {}
    assert found.text_end.partial == b"\xc3"


def test_token_is_valid_for_the_stated_time() -> None:
    now = [1_800_000_000.0]
    tokens = StateTokens((KEY,), HASH, TENSORS, VOCABULARY_SIZE, 60.0, clock=lambda: now[0])
    value = state(seen=frozenset({5, 7}), generated={5: 1})
    text = tokens.encode(TextState(value, TextEnd(partial=b"\xc3")))
    assert len(text) <= tokens.max_chars
    now[0] += 59.9
    for reader in (tokens, StateTokens((KEY,), HASH, TENSORS, VOCABULARY_SIZE, clock=lambda: now[0])):
        found = reader.decode(text)
        assert found.value.seen == {5, 7}
        assert found.value.generated == {5: 1}
        assert found.text_end.partial == b"\xc3"
    now[0] += 0.2
    assert "expired at 2027-01-15T08:01:00Z, expected one that is still valid" in refusal(tokens, text)
    without_limit = StateTokens((KEY,), HASH, TENSORS, VOCABULARY_SIZE, clock=lambda: now[0])
    assert "expired" in refusal(without_limit, text)


def test_expiry_is_signed() -> None:
    tokens = StateTokens((KEY,), HASH, TENSORS, VOCABULARY_SIZE, 60.0)
    text = tokens.encode(TextState(state()))
    for place in (0, *range(34, 42)):
        for bit in range(8):
            refusal(tokens, flipped(text, place, bit))
    assert "changed or cut" in refusal(tokens, flipped(text, 41, 0))
    assert "less than" in refusal(codec(), _signed(b"\x00" * 3, version=4))


def test_token_without_an_expiry_is_refused_where_one_is_set() -> None:
    tokens = StateTokens((KEY,), HASH, TENSORS, VOCABULARY_SIZE, 60.0)
    own = codec().encode(TextState(state()))
    for older in (own, _signed(b"\x00\x00" + b"\x00" * 40, version=1)):
        assert codec().decode(older).value.token
        assert "never expires" in refusal(tokens, older)


def _signed(rest: bytes, version: int = 2) -> str:
    """Return a token with a valid signature over a header and any payload."""
    tokens = codec()
    data = struct.pack("<B8s4sBIQQ", version, bytes.fromhex(HASH)[:8], tokens._key_id, 0, 1, 1, 1) + rest
    return base64.urlsafe_b64encode(data + tokens._signature(tokens._key_id, data)).rstrip(b"=").decode()

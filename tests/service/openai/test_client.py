"""Test the unmodified `openai` client against a real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.patience import PATIENCE, until
from tests.service.running import Server, running_server

ENDLESS: dict[str, Any] = {"model": "noise", "max_tokens": 200_000, "logit_bias": {"0": -100}}


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/v1"


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url(server), api_key="none", max_retries=0) as client:
        yield client


def test_whole_completion_has_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="letters", prompt="abc", temperature=0, max_tokens=3, logprobs=2, echo=True
    )
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == ("abcdef", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list("abcdef")
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4, 5]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)
    assert answer.system_fingerprint


def test_streamed_pieces_join_to_the_whole_text(client: openai.OpenAI) -> None:
    prompts = ["abc", "x"]
    whole = client.completions.create(model="flat", prompt=prompts, seed=4, max_tokens=30, n=2)
    texts, usage = [""] * 4, None
    for part in client.completions.create(
        model="flat", prompt=prompts, seed=4, max_tokens=30, n=2, stream=True, stream_options={"include_usage": True}
    ):
        for choice in part.choices:
            texts[choice.index] += choice.text
        usage = part.usage or usage
    assert texts == [choice.text for choice in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_concurrent_requests_of_an_async_client_succeed(server: Server) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url(server), api_key="none") as client:
            whole = [client.completions.create(model="letters", prompt=c, temperature=0, max_tokens=2) for c in "abcd"]
            answers = await asyncio.gather(*whole)
            text = ""
            stream = await client.completions.create(
                model="letters", prompt="a", temperature=0, max_tokens=4, stream=True
            )
            async for part in stream:
                text += part.choices[0].text
            return [*(answer.choices[0].text for answer in answers), text]

    assert asyncio.run(ask()) == ["bc", "cd", "de", "ef", "bcde"]


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [("a한글", 2), (["a1", "b", "??"], 3), ([2, 1, 1], 2), ([[1], [2]], 1), ("abc", None), ("", None)],
)
@pytest.mark.parametrize("more", [{}, {"echo": True, "logprobs": 1}, {"n": 2}], ids=["plain", "echo", "two"])
def test_usage_counts_unknown_tokens_of_the_prompts(
    client: openai.OpenAI, prompt: Any, unknown: int | None, more: dict[str, Any]
) -> None:
    wanted: dict[str, Any] = {"model": "letters", "prompt": prompt, "max_tokens": 1, **more}
    create: Any = client.completions.create
    whole = create(**wanted).usage
    options = {"include_usage": True, "continuous_usage_stats": True}
    *parts, last = create(**wanted, stream=True, stream_options=options)
    for usage in (whole, last.usage):
        assert usage is not None
        assert (usage.model_extra or {}).get("unknown_tokens") == unknown
    of_each_prompt = {part.choices[0].index: (part.usage.model_extra or {}).get("unknown_tokens", 0) for part in parts}
    assert sum(of_each_prompt.values()) == (unknown or 0) * more.get("n", 1)


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"letters", "words"} <= set(names)
    assert "broken" not in names
    assert client.models.retrieve("letters").owned_by == "meari"


def test_errors_raise_the_exceptions_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="letters", prompt="a", suffix="b")
    assert (bad.value.param, bad.value.code, bad.value.type) == ("suffix", "invalid_request", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="none", prompt="a")
    assert (missing.value.param, missing.value.code) == ("model", "unknown_model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_client_retries_refused_requests(bundles: Path, tmp_path: Path) -> None:
    with (
        running_server(tmp_path, bundles=bundles, max_tokens=200_000, max_requests=1) as server,
        openai.OpenAI(base_url=url(server), api_key="none", max_retries=0) as hasty,
    ):
        long = hasty.completions.create(prompt="", stream=True, **ENDLESS)
        next(long)
        with pytest.raises(openai.RateLimitError) as refused:
            hasty.completions.create(model="letters", prompt="a")
        assert (refused.value.code, refused.value.type) == ("overloaded", "rate_limit_error")
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        statuses: list[int] = []

        def note(response: httpx.Response) -> None:
            statuses.append(response.status_code)
            if response.status_code == 429:
                threading.Timer(0.1, long.close).start()

        patient = hasty.with_options(max_retries=5)
        patient._client.event_hooks = {"response": [note]}
        answer = patient.completions.create(model="letters", prompt="a", temperature=0, max_tokens=2)
        assert answer.choices[0].text == "bc"
        assert statuses[0] == 429
        assert statuses[-1] == 200


def test_disconnected_client_frees_all_its_slots(server: Server, client: openai.OpenAI) -> None:
    stream = client.completions.create(prompt=["a", "b"], n=3, stream=True, **ENDLESS)
    next(stream)
    stream.close()
    answer = client.completions.create(model="noise", prompt="a", max_tokens=2, timeout=PATIENCE)
    assert answer.choices
    _await_no_rows(server)


def _await_no_rows(server: Server) -> None:
    """Wait until no worker runs a sequence; the metrics cover all workers."""

    def is_idle() -> bool:
        text = server.client.get("/metrics").text
        rows = [line for line in text.splitlines() if line.startswith("meari_running") and "noise" in line]
        return bool(rows) and all(float(line.rpartition(" ")[2]) == 0 for line in rows)

    until(is_idle)

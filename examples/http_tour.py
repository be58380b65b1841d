"""Request every path of a running server: `python examples/http_tour.py [ADDRESS]`, for docs/http-api.md.

Input: the address of a server with the released bundles (`make serve`). Output: each request with the main part of
its response. Needs only the standard library.
"""

import argparse
import json
import math
import urllib.error
from typing import Any

from examples.server import events, fetch, get, post

ENGLISH, KOREAN = "shakespeare-lstm", "nsmc-lstm"


def tell(request: str, result: object) -> None:
    """Print one line of the tour."""
    print(f"{request:<24}{result}")


def show_status(address: str) -> None:
    """Request health, models and metrics."""
    tell("GET /healthz", get(address, "/healthz")["status"])
    tell("GET /readyz", get(address, "/readyz")["status"])
    served = get(address, "/models")
    tell("GET /models", ", ".join(model["name"] for model in served["models"]))
    model = get(address, f"/models/{KOREAN}")
    tell(
        "GET /models/{name}", f"{model['family']}, {model['precision']}, {model['tokenizer']['vocabulary_size']} tokens"
    )
    first_sample = next(line for line in fetch(address, "/metrics").splitlines() if not line.startswith("#"))
    tell("GET /metrics", first_sample.split()[0])


def tokenize(address: str) -> None:
    """Split a text into tokens and join them again."""
    tokens = post(address, "/tokenize", model=KOREAN, text="정말 재미있는 영화")["tokens"]
    tell("POST /tokenize", [token["text"] for token in tokens])
    tell("POST /detokenize", post(address, "/detokenize", model=KOREAN, tokens=tokens)["text"])


def generate(address: str) -> None:
    """Generate one text from a seed: whole, streamed, and in two parts joined by a state token; then beam search."""
    asked: dict[str, Any] = {"model": ENGLISH, "prompt": "ROMEO:\n", "max_tokens": 40, "seed": 7}
    whole = post(address, "/generate", **asked)["choices"][0]["text"]
    tell("POST /generate", repr(whole))
    streamed = [event for event in events(address, "/generate", **asked, stream=True) if event != "[DONE]"]
    choices = [choice for event in streamed for choice in json.loads(event)["choices"]]
    tell("  as a stream", f"the same text: {''.join(choice['text'] for choice in choices) == whole}")
    asked["max_tokens"] = 20
    first = post(address, "/generate", **asked, return_state=True)["choices"][0]
    rest = post(address, "/generate", model=ENGLISH, state=first["state"], max_tokens=20)["choices"][0]
    tell("  in two parts", f"the same text: {first['text'] + rest['text'] == whole}")
    beams = post(address, "/generate", model=ENGLISH, prompt="ROMEO:\n", max_tokens=12, num_beams=4, n=2)["choices"]
    tell("  by beam search", [choice["text"] for choice in beams])


def score(address: str) -> None:
    """Score texts and their words, whole and in two parts; read hidden states."""
    texts = ["정말 재미있는 영화", "정말 재미있는 영하"]
    answer = post(address, "/score", model=KOREAN, texts=texts, log_base="2", words=True)
    for result in answer["results"]:
        words = ", ".join(f"{word['text']} {-word['logprob']:.1f}" for word in result["words"])
        tell("POST /score", f"{-result['logprob']:.1f} bits: {words}")
    usage = answer["usage"]
    tell(
        "  what was run", f"{usage['computed_tokens']} of {usage['scored_tokens']} tokens: the texts share a beginning"
    )
    together = post(address, "/score", model=KOREAN, text="정말 재미있는 영화", add_end=False)["results"][0]
    first = post(address, "/score", model=KOREAN, text="정말 재미있는", add_end=False, return_state=True)["results"][0]
    second = post(address, "/score", model=KOREAN, text=" 영화", add_end=False, state=first["state"])["results"][0]
    sums = math.isclose(first["logprob"] + second["logprob"], together["logprob"])
    tell("  in two parts", f"the same sum: {sums}")
    states = post(address, "/states", model=ENGLISH, text="To be", units=4)
    tell("POST /states", {tensor["name"]: tensor["values"][-1] for tensor in states["tensors"]})


def complete(address: str) -> None:
    """Complete words, in English and in a Korean syllable that is not written to its end."""
    words = post(address, "/complete", model=ENGLISH, text="To be, or not to b", n=3)["completions"]
    tell("POST /complete", ", ".join(f"{word['text']!r} {word['probability']:.2f}" for word in words))
    found = post(address, "/complete", model=KOREAN, text="정말 재밌느", n=3, composing=True)["completions"]
    tell("  a growing syllable", [word["text"] for word in found])


def use_openai_paths(address: str) -> None:
    """Request the same models through OpenAI's paths."""
    tell("GET /v1/models", [model["id"] for model in get(address, "/v1/models")["data"]])
    tell("GET /v1/models/{name}", get(address, f"/v1/models/{ENGLISH}")["owned_by"])
    answer = post(address, "/v1/completions", model=ENGLISH, prompt="To be", max_tokens=0, echo=True, logprobs=1)
    figures = answer["choices"][0]["logprobs"]["token_logprobs"]
    own = post(address, "/score", model=ENGLISH, text="To be", add_end=False)["results"][0]["logprob"]
    tell("POST /v1/completions", f"the sum that /score gives: {math.isclose(sum(figures), own)}")


def show_refusal(address: str) -> None:
    """Send an invalid request; the error message names the field."""
    try:
        post(address, "/generate", prompt="To be", top_p=1.4)
    except urllib.error.HTTPError as refusal:
        with refusal:
            error = json.load(refusal)["error"]
        tell(f"  refused with {refusal.code}", f"{error['code']}: {error['message']}")


def main() -> None:
    """Run all stages of the tour."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", nargs="?", default="http://127.0.0.1:8000")
    address = parser.parse_args().address
    for stage in (show_status, tokenize, generate, score, complete, use_openai_paths, show_refusal):
        stage(address)
    contract = get(address, "/openapi.json")["paths"]
    tell("GET /openapi.json", f"{len(contract)} paths")


if __name__ == "__main__":
    main()

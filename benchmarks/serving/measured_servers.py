"""The measured servers: the command that starts each, and the requests that each takes.

Input: a bundle, a port; prompts and texts. Output: commands, environments, requests as bytes. Must not know: loads.

All get the same bodies: `prompt`, `max_tokens`, `stream`; `texts` to score. Every server has one worker a CPU and one
thread a worker for the model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.driver import LoadRequest
from benchmarks.serving.plan import ENDLESS

PACKAGE = "benchmarks.serving.servers"
NO_END = {"0": -100.0}  # a logit bias that keeps the end token away where texts are short


@dataclass(frozen=True)
class ServedBundle:
    """A bundle to serve: its folder, inside a folder without other bundles."""

    bundle: Path
    family: str
    num_workers: int

    @property
    def name(self) -> str:
        return self.bundle.name


@dataclass(frozen=True)
class Server:
    """One measured server.

    command        arguments and environment for a bundle and a port
    families       of bundles that it can serve
    streams        whether text comes before the answer is complete
    scores         whether it takes /score
    wrap           puts the framework's own frame around a body
    """

    name: str
    command: Callable[[ServedBundle, int], tuple[Sequence[str], Mapping[str, str]]]
    ready_path: str
    generate_path: str = "/generate"
    stream_path: str = "/generate"
    score_path: str = "/score"
    families: frozenset[str] = frozenset({"rnn", "gru", "lstm", "esn"})
    streams: bool = True
    wholes: bool = True
    scores: bool = True
    wrap: Callable[[dict[str, object]], dict[str, object]] = dict
    needs_torch_weights: bool = False

    def generate(self, prompt: str, max_tokens: int, *, stream: bool, model: str) -> LoadRequest:
        """Make a request for a continuation of exactly `max_tokens` tokens."""
        body: dict[str, object] = {"prompt": prompt, "max_tokens": max_tokens, "stream": stream}
        if self.name == "meari":
            body |= {"model": model} if model in ENDLESS else {"model": model, "logit_bias": NO_END}
        return LoadRequest(http_post(self.stream_path if stream else self.generate_path, self.wrap(body)), max_tokens)

    def score(self, texts: Sequence[str], *, model: str) -> LoadRequest:
        """Make a request for the log-probabilities of some texts."""
        body: dict[str, object] = {"texts": list(texts)}
        if self.name == "meari":
            body["model"] = model
        return LoadRequest(http_post(self.score_path, self.wrap(body)), 0)


def http_post(path: str, body: Mapping[str, object]) -> bytes:
    """Return the bytes of a request."""
    data = json.dumps(body, ensure_ascii=False).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def _own(served: ServedBundle, port: int) -> dict[str, str]:
    """Return the environment of the small servers in `servers/`."""
    return {
        "BENCH_BUNDLE": str(served.bundle.resolve()),
        "BENCH_PORT": str(port),
        "BENCH_WORKERS": str(served.num_workers),
        "PYTHONPATH": str(Path.cwd()),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _meari(served: ServedBundle, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
    environment = {
        "MEARI_BUNDLES": str(served.bundle.parent.resolve()),
        "MEARI_PORT": str(port),
        "MEARI_WORKERS": str(served.num_workers),
        "MEARI_LOG_LEVEL": "warning",
    }
    return [sys.executable, "-m", "meari.cli.main", "serve"], environment


def _flask_torch(served: ServedBundle, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
    arguments = ["--bind", f"127.0.0.1:{port}", "--workers", str(served.num_workers), "--threads", "8"]
    gunicorn = [sys.executable, "-m", "gunicorn", *arguments, "--timeout", "120"]
    return [*gunicorn, f"{PACKAGE}.flask_torch:app"], _own(served, port)


def _script(name: str) -> Callable[[ServedBundle, int], tuple[Sequence[str], Mapping[str, str]]]:
    def command(served: ServedBundle, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        return [sys.executable, "-m", f"{PACKAGE}.{name}"], _own(served, port)

    return command


def _mosec(served: ServedBundle, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
    arguments = ["--address", "127.0.0.1", "--port", str(port), "--timeout", "120000", "--log-level", "warning"]
    return [sys.executable, "-m", f"{PACKAGE}.mosec_server", *arguments], _own(served, port)


def _bentoml(served: ServedBundle, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
    arguments = ["serve", f"{PACKAGE}.bentoml_server:Model", "--host", "127.0.0.1", "--port", str(port)]
    environment = {"BENTOML_HOME": str(Path("build/bench/bentoml").resolve()), "BENTOML_DO_NOT_TRACK": "True"}
    return [sys.executable, "-m", "bentoml", *arguments], {**_own(served, port), **environment}


def _ray(served: ServedBundle, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    return [sys.executable, "-m", f"{PACKAGE}.ray_server"], {**_own(served, port), **environment}


def _in_a_list(body: dict[str, object]) -> dict[str, object]:
    return {"asks": [body]}


SERVERS = {
    server.name: server
    for server in (
        Server("meari", _meari, "/readyz"),
        Server(
            "flask-torch",
            _flask_torch,
            "/health",
            families=frozenset({"rnn", "gru", "lstm"}),
            needs_torch_weights=True,
        ),
        Server("litserve", _script("litserve_server"), "/health", wholes=False, scores=False),
        Server("mosec", _mosec, "/", stream_path="/stream"),
        Server("bentoml", _bentoml, "/readyz", streams=False, wrap=_in_a_list),
        Server("ray", _ray, "/"),
    )
}

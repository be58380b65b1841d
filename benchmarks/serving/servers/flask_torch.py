"""Flask + PyTorch as tutorials write it: an nn.Module, a loop with one forward a token, gunicorn's threads.

Input: BENCH_BUNDLE, a folder with torch.pt and tokenizer.json. Output: POST /generate, POST /score, GET /health.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from flask import Flask, Response, jsonify, request
from tokenizers import Tokenizer
from torch import Tensor, nn

State = Tensor | tuple[Tensor, Tensor] | None


class WordModel(nn.Module):
    """Embedding, LSTM or GRU, linear."""

    def __init__(self, family: str, vocabulary_size: int, embedding_size: int, hidden_size: int, num_layers: int):
        super().__init__()
        rnn = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[family]
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.rnn = rnn(embedding_size, hidden_size, num_layers, batch_first=True)
        self.output = nn.Linear(hidden_size, vocabulary_size)

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        hidden, state = self.rnn(self.embedding(tokens), state)
        return self.output(hidden), state


def load(folder: Path) -> WordModel:
    sizes = MANIFEST["sizes"]
    loaded = WordModel(MANIFEST["family"], sizes["vocabulary"], sizes["embedding"], sizes["hidden"], sizes["layers"])
    loaded.load_state_dict(torch.load(folder / "torch.pt", weights_only=True))
    return loaded.eval()


torch.set_num_threads(1)  # one worker a CPU
FOLDER = Path(os.environ["BENCH_BUNDLE"])
MANIFEST = json.loads((FOLDER / "manifest.json").read_text("utf-8"))
END_ID = MANIFEST["boundary"]["id"]
tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
model = load(FOLDER)
app = Flask(__name__)


@torch.inference_mode()
def generate_tokens(prompt: list[int], max_tokens: int) -> Iterator[int]:
    logits, state = model(torch.tensor([[END_ID, *prompt]]))
    for _ in range(max_tokens):
        probabilities = torch.softmax(logits[0, -1], dim=-1)
        token = torch.multinomial(probabilities, 1)
        yield int(token)
        logits, state = model(token.unsqueeze(0), state)


@app.post("/generate")
def generate() -> Response:
    body = request.get_json()
    prompt = tokenizer.encode(body["prompt"], add_special_tokens=False).ids
    tokens = generate_tokens(prompt, body["max_tokens"])
    if not body.get("stream"):
        ids = list(tokens)
        return jsonify(choices=[{"text": tokenizer.decode(ids)}], usage={"generated_tokens": len(ids)})

    def events() -> Iterator[str]:
        count = 0
        for token in tokens:
            count += 1
            yield f"data: {json.dumps({'choices': [{'text': f' {tokenizer.id_to_token(token)}'}]})}\n\n"
        yield f"data: {json.dumps({'usage': {'generated_tokens': count}})}\n\ndata: [DONE]\n\n"

    return Response(events(), mimetype="text/event-stream")


@app.post("/score")
@torch.inference_mode()
def score() -> Response:
    results = []
    total = 0
    for text in request.get_json()["texts"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        logits, _ = model(torch.tensor([[END_ID, *ids]]))
        logprobs = torch.log_softmax(logits[0], dim=-1)
        picked = logprobs[torch.arange(len(ids) + 1), torch.tensor([*ids, END_ID])]
        results.append({"logprob": float(picked.sum()), "num_tokens": len(ids) + 1})
        total += len(ids) + 1
    return jsonify(results=results, usage={"scored_tokens": total})


@app.get("/health")
def health() -> str:
    return "ok"

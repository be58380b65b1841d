"""Language models as other projects define them, with random weights: the oracles of the import.

The three layouts are those of pytorch/examples `word_language_model`, `char-rnn.pytorch` and AWD-LSTM. Run as a script
it makes one of each in a folder, with its vocabulary, and imports it:

    python3 -m tests.importer.foreign_models FOLDER
"""

import itertools
import json
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS = (
    "<eos>",
    "the",
    "sea",
    "<unk>",
    "echo",
    "answers",
    "n't",
    "@-@",
    "mountain",
    ",",
    ".",
    "u.s.",
    "caf\u00e9",
    "=",
)
CHARS = tuple(string.ascii_lowercase + " .,\n'")
TEXTS = ("the sea answers , the zebra did n't .", "echo @-@ u.s. caf\u00e9 = don't <unk> <eos> the", "mountain")


class WordLanguageModel(nn.Module):
    """RNNModel of word_language_model."""

    def __init__(
        self, kind: str, num_tokens: int, emb: int, hidden: int, layers: int, *, tied: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.encoder = nn.Embedding(num_tokens, emb)
        if kind in ("LSTM", "GRU"):
            self.rnn: nn.RNNBase = getattr(nn, kind)(emb, hidden, layers, bias=bias)
        else:
            self.rnn = nn.RNN(emb, hidden, layers, nonlinearity=kind.removeprefix("RNN_").lower(), bias=bias)
        self.decoder = nn.Linear(hidden, num_tokens)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probabilities after each token, [T, V], from tokens [T] and a state of zeros."""
        outputs, _ = self.rnn(self.encoder(tokens).unsqueeze(1))
        return functional.log_softmax(self.decoder(outputs.squeeze(1)), -1)


class CharRnn(nn.Module):
    """CharRNN of char-rnn.pytorch: sizes of embedding and state are the same, one character at a time."""

    def __init__(self, kind: str, num_tokens: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.encoder = nn.Embedding(num_tokens, hidden)
        self.rnn: nn.RNNBase = (nn.GRU if kind == "gru" else nn.LSTM)(hidden, hidden, layers)
        self.decoder = nn.Linear(hidden, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        state: Tensor | None = None
        rows = []
        for token in tokens:
            output, state = self.rnn(self.encoder(token).view(1, 1, -1), state)
            rows.append(self.decoder(output.view(-1)))
        return torch.stack(rows).log_softmax(-1)


class WeightDrop(nn.Module):
    """Weight drop of AWD-LSTM, which keeps the recurrent weights under another name."""

    def __init__(self, module: nn.LSTM) -> None:
        super().__init__()
        raw = module._parameters.pop("weight_hh_l0")
        assert raw is not None
        module.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.detach()))
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        weights = [getattr(self.module, f"{name}_l0") for name in ("weight_ih", "bias_ih", "bias_hh")]
        weights.insert(1, self.module.weight_hh_l0_raw)
        zeros = x.new_zeros(1, x.shape[1], self.module.hidden_size)
        return torch.lstm(x, [zeros, zeros], weights, True, 1, 0.0, False, False, False)[0]


class AwdLstm(nn.Module):
    """RNNModel of AWD-LSTM: the last of its layers has the size of the embedding."""

    def __init__(self, num_tokens: int, emb: int, hidden: int, layers: int, *, tied: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Embedding(num_tokens, emb)
        sizes = [emb, *[hidden] * (layers - 1), emb if tied else hidden]
        self.rnns = nn.ModuleList(WeightDrop(nn.LSTM(below, size)) for below, size in itertools.pairwise(sizes))
        self.decoder = nn.Linear(sizes[-1], num_tokens)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(tokens).unsqueeze(1)
        for rnn in self.rnns:
            x = rnn(x)
        return functional.log_softmax(self.decoder(x.squeeze(1)), -1)


class ProjectedLstm(nn.Module):
    """LSTM with proj_size, and a linear map before the output, under names of its own."""

    def __init__(self, num_tokens: int, emb: int, hidden: int, layers: int, *, size: int, tied: bool) -> None:
        super().__init__()
        self.lookup = nn.Embedding(num_tokens, emb)
        self.lstm = nn.LSTM(emb, hidden, layers, proj_size=size)
        self.bottleneck = nn.Linear(size, emb if tied else 5)
        self.head = nn.Linear(emb if tied else 5, num_tokens, bias=False)
        if tied:
            self.head.weight = self.lookup.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.lookup(tokens).unsqueeze(1))
        return functional.log_softmax(self.head(self.bottleneck(outputs.squeeze(1))), -1)


PROJECTED = """
embedding = "lookup.weight"
layers = "lstm.{weight}_l{layer}"
output = "head.weight"
projection = "bottleneck.weight"
projection_bias = "bottleneck.bias"
"""


def randomised(model: nn.Module, seed: int = 1) -> nn.Module:
    """Return the model with larger weights than torch draws, as trained ones are, and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return model.eval()


def logprobs_of(model: nn.Module, vocabulary: Sequence[str], tokens: Sequence[str]) -> Tensor:
    """Log-probabilities after each of some tokens, float64 [T, V], by the model itself; unknown ones are <unk>."""
    ids = [vocabulary.index(token if token in vocabulary else "<unk>") for token in tokens]
    with torch.inference_mode():
        found: Tensor = model.double()(torch.tensor(ids))
    return found


def make_models(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Write a model of each layout; returns the paths of weights and vocabulary by name."""
    words, chars = folder / "words.txt", folder / "chars.json"
    words.write_text("\n".join(WORDS) + "\n", "utf-8")
    chars.write_text(json.dumps(CHARS), "utf-8")
    models = {
        "wiki": (WordLanguageModel("LSTM", len(WORDS), 12, 12, 2, tied=True), words),
        "names": (CharRnn("gru", len(CHARS), 10, 2), chars),
        "awd": (AwdLstm(len(WORDS), 9, 14, 3), words),
    }
    found = {}
    for name, (model, vocabulary) in models.items():
        torch.save(randomised(model).state_dict(), folder / f"{name}.pt")
        found[name] = (folder / f"{name}.pt", vocabulary)
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (weights, vocabulary) in make_models(folder).items():
        command = ["-m", "meari.cli.main", "import", weights, folder / "bundles" / name, "--vocabulary", vocabulary]
        subprocess.run([sys.executable, *map(str, command), "--overwrite"], check=True)


if __name__ == "__main__":
    main()

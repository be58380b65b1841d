"""Model card of a bundle, its README.md, with a few texts that the bundle writes.

Input: a `Description`; graphs and a tokenizer for the texts. Output: Markdown. Must not know: figures that neither the
run nor the export has measured.
"""

import json
import math
from typing import Any

import numpy as np

from meari.bundle_format.names import Document, TokenizerKind
from meari.export.description import Description
from meari.export.recipe import recipe
from meari.export.sessions import GraphModel, Graphs
from meari.models.config import CorpusConfig, RecurrentConfig, ReservoirConfig
from meari.models.figures import Figures, show_figure, show_perplexity
from meari.models.text.tokenizer import Tokenizer

FAMILIES = {"rnn": "Elman RNN", "gru": "GRU", "lstm": "LSTM", "esn": "echo state network"}
TOKENIZERS = {
    TokenizerKind.CHAR: "characters",
    TokenizerKind.BPE: "byte-level BPE",
    TokenizerKind.WORD: "words",
}
ENDS = {
    True: "that text had ends, so the end of a text counts in its score (`add_end`, `--no-end` to leave it out)",
    False: "that text was one stream: the model never learned where a text ends, and scores leave the end out "
    "(unless `add_end` is true)",
}
FIGURES = (
    ("nats_per_token", "nats/token"),
    ("perplexity", "perplexity"),
    ("nats_per_char", "nats/char"),
    ("bits_per_char", "bits/char"),
    ("bits_per_char_with_ends", "bits/char with ends"),
    ("bits_per_byte", "bits/byte"),
    ("num_tokens", "tokens"),
)
NUM_SAMPLES = 3
MAX_TOKENS = 200
TEMPERATURE = 0.8
SEED = 1


def model_card(description: Description) -> str:
    """Write the card's sections, one after another."""
    sections = (
        _head(description),
        _corpus(description),
        _held_out(description),
        _training(description),
        _use(description),
        _samples(description),
        _limits(description),
    )
    return "\n\n".join(sections) + "\n"


def _head(description: Description) -> str:
    model, sizes = description.checkpoint.model, description.sizes
    tokenizer = TOKENIZERS[description.checkpoint.tokenizer.kind]
    corpus = description.checkpoint.config.corpus
    trained = "" if sizes.trained_parameters == sizes.parameters else f" ({sizes.trained_parameters:,} of them trained)"
    num_bytes = sum(graph.num_bytes for graph in description.graphs.values())
    rows = [
        ("model", _architecture(description)),
        ("parameters", f"{sizes.parameters:,}{trained}"),
        ("vocabulary", f"{sizes.vocabulary:,} tokens: {tokenizer}"),
        ("recurrent state", f"{_state_bytes(description):,} bytes a sequence"),
        ("precision", f"{description.precision}; the two graphs take {num_bytes:,} bytes"),
    ]
    if description.ngram is not None:
        numbers = ", ".join(f"{number:,}" for number in description.ngram.num_ngrams)
        share = f"{description.ngram.shares[-1]:.0%} of the probability after a known context"
        rows.append(("n-grams mixed in", f"{numbers} of 1 to {description.ngram.order} tokens; {share}"))
    what = f"of {corpus.name or 'its corpus'}" if description.imported is None else "that was trained elsewhere"
    first = f"A small {FAMILIES[model.family]} language model {what}, served by meari on a CPU."
    return f"# {description.name}\n\n{first}\n\n{_table(('what', 'value'), rows)}"


def _architecture(description: Description) -> str:
    config, sizes = description.checkpoint.config.model, description.sizes
    if isinstance(config, ReservoirConfig):
        return _reservoir(config)
    assert isinstance(config, RecurrentConfig)
    layers = "1 layer" if sizes.layers == 1 else f"{sizes.layers} layers"
    of_units = f"{sizes.hidden:,}" if len(set(config.sizes)) == 1 else ", ".join(f"{size:,}" for size in config.sizes)
    tied = ", shared with the output layer" if config.tied else ""
    text = f"{FAMILIES[config.family]}, {layers} of {of_units}, embeddings of {sizes.embedding:,}{tied}"
    return "; ".join((text, *_options(config)))


def _options(config: RecurrentConfig) -> list[str]:
    options = {
        "normalised outputs of layers": config.layer_norm,
        "a learned initial state": config.learned_initial_state,
        f"{config.mogrifier_rounds} rounds of mutual gating (Mogrifier)": config.mogrifier_rounds,
        f"an adaptive softmax, clusters from the ranks {', '.join(f'{cut:,}' for cut in config.adaptive_cutoffs)}": (
            config.adaptive_cutoffs
        ),
    }
    return [text for text, is_used in options.items() if is_used]


def _reservoir(config: ReservoirConfig) -> str:
    edges = config.block_size if config.pattern == "block" else config.in_edges
    layers = "" if config.layers == 1 else f"{config.layers} layers of "
    beside = "" if config.reservoirs == 1 else f" in {config.reservoirs} reservoirs side by side"
    least = "" if config.spectral_radius_min is None else f"{config.spectral_radius_min:g} … "
    tokens = "" if config.input_tokens == 1 else f", driven by the last {config.input_tokens} tokens"
    expansion = f", {config.features:,} frozen features of them" if config.features else ""
    rank = f" of rank {config.readout_rank}" if config.readout_rank else ""
    rank += ", whose weights depend on the states," if config.readout_gated else ""
    return (
        f"{layers}{config.units:,} leaky units{beside}, {edges} fixed incoming edges each ({config.pattern}), spectral "
        f"radius {least}{config.spectral_radius:g}{tokens}{expansion}; "
        f"the {config.readout} readout{rank} alone is trained"
    )


def _state_bytes(description: Description) -> int:
    last_tokens = 0 if description.ngram is None else description.ngram.order - 1
    return 4 * (last_tokens + sum(math.prod(tensor.shape) for tensor in description.checkpoint.model.state_tensors))


def _corpus(description: Description) -> str:
    if description.imported is not None:
        return "## Corpus\n\nNot known: the model was imported without its text."
    corpus = description.checkpoint.config.corpus
    lines = [f"- **{corpus.name or 'unnamed'}**: {corpus.source or 'no source stated'}"]
    lines += [f"- licence of the text: {corpus.licence or 'not stated'}"]
    lines += [f"- a document is a {corpus.document}; {_split(corpus)}"]
    lines += ["- " + ENDS[description.has_ends]]
    if corpus.training_share < 1:
        sampled = "text" if corpus.document is Document.FILE else f"{corpus.document}s"
        lines += [f"- trained on a sample of {100 * corpus.training_share:.3g} % of the training {sampled}"]
    if corpus.blocklist:
        lines += ["- documents that a blocklist matched were left out of the training text, not of the held-out text"]
    if corpus.loss_mask:
        lines += ["- text that a loss mask matched was read but not learnt; in the held-out text it counts"]
    return "## Corpus\n\n" + "\n".join(lines)


def _split(corpus: CorpusConfig) -> str:
    parts = []
    for part, files, share in (
        ("validation", corpus.validation, corpus.validation_share),
        ("test", corpus.test, corpus.test_share),
    ):
        if files:
            parts.append(f"{part} from files of its own")
        elif share:
            parts.append(f"{100 * share:.3g} % of the text for {part}")
    order = ", from its end" if corpus.validation_share or corpus.test_share else ""
    return f"held out: {' and '.join(parts)}{order}"


def _held_out(description: Description) -> str:
    rows = []
    for part, found in description.held_out.items():
        rows.append((part, *_figures(found.served)))
        if found.without_ngram is not None:
            rows.append((f"{part}, without its n-grams", *_figures(found.without_ngram)))
    text = "## Held-out figures\n\n"
    text += _table(("part", *(title for _, title in FIGURES)), rows) if rows else "None were measured."
    baseline = description.checkpoint.config.corpus.baseline
    if baseline:
        text += "\n\nOther models on the same split:\n\n" + _table(("model", "figure"), list(baseline.items()))
    return "\n\n".join((text, *([_measured(description)] if rows else []), _precision(description)))


def _measured(description: Description) -> str:
    """Describe how and on what the figures were measured."""
    unit = description.checkpoint.config.corpus.document
    rows = "as one stream" if unit is Document.FILE else f"each {unit} on its own"
    ends = "its end counted" if description.has_ends else "its end not counted"
    machine = description.machine
    return (
        f"Measured on this bundle as it is served, {rows}, {ends}, on {machine['cpu']} with onnxruntime "
        f"{machine['onnxruntime']}. The validation part also chose the checkpoint, so that its figures flatter a little"
        + ("; those of the test part do not. " if "test" in description.held_out else ", and there is no test part. ")
        + "Characters and bytes are those of the text in NFC; *with ends*, the end of each document that counts is one "
        "character more, as where a line's end belongs to the text (KenLM's figures)."
    )


def _figures(found: Figures) -> tuple[str, ...]:
    return tuple(_figure(key, getattr(found, key)) for key, _ in FIGURES)


def _figure(name: str, value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return show_perplexity(value, 4) if name == "perplexity" else show_figure(value)


def _precision(description: Description) -> str:
    agreement, validation = description.agreement, description.held_out.get("validation")
    text = (
        "The float32 graphs give the log-probabilities of torch in float64 within "
        f"{agreement.max_logprob_difference:.1e} nats over {agreement.num_distributions:,} distributions."
    )
    if validation is None:
        return text
    return f"{text} On validation text {validation.in_words(description.precision)}."


def _training(description: Description) -> str:
    if description.imported is not None:
        rows = [
            (name.replace("_", " "), "added" if text is None else text) for name, text in description.imported.items()
        ]
        return "## Import\n\nThe weights were trained elsewhere and imported:\n\n" + _table(("what", "value"), rows)
    checkpoint = description.checkpoint
    lines = [f"- weights of step {checkpoint.step:,}, seed {checkpoint.config.seed}"]
    seconds = checkpoint.figures.get("training_seconds")
    if isinstance(seconds, int | float):
        cpu_seconds = checkpoint.figures.get("training_cpu_seconds")
        of_cpu = f" ({cpu_seconds / 60:.1f} minutes of CPU)" if isinstance(cpu_seconds, int | float) else ""
        machine = checkpoint.figures.get("machine", "an unnamed machine")
        ended = checkpoint.figures.get("training_ended")
        when = "" if ended is None else f", until {ended}"
        lines += [f"- trained for {seconds / 60:.1f} minutes{of_cpu} on {machine}{when}"]
    lines += ["- the whole config is `training` in `manifest.json`"]
    settings = _table(("setting", "value"), recipe(checkpoint.config))
    curves = "\n\n![Training and validation curves](report.png)" if description.has_report else ""
    return "## Training\n\n" + "\n".join(lines) + "\n\n" + settings + curves


def _use(description: Description) -> str:
    text = description.samples[0]
    generate = {"model": description.name, "prompt": text[:12], "max_tokens": 64, "seed": 7}
    score = {"model": description.name, "text": text[:40]}
    return f"## Use\n\nWith `make serve` running:\n\n```sh\n{_curl('generate', generate)}\n{_curl('score', score)}\n```"


def _curl(path: str, body: dict[str, Any]) -> str:
    quoted = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"curl -s localhost:8000/{path} -H 'Content-Type: application/json' -d '{quoted}'"


def _samples(description: Description) -> str:
    blocks = [
        "\n".join(f"    {line}".rstrip() for line in text.splitlines()) or "    (an empty text)"
        for text in description.samples
    ]
    how = f"temperature {TEMPERATURE}, at most {MAX_TOKENS} tokens, not selected"
    return f"## Samples\n\nWritten by this bundle from nothing ({how}):\n\n" + "\n\n---\n\n".join(blocks)


def _limits(description: Description) -> str:
    corpus = description.checkpoint.config.corpus
    lines = [
        f"- It knows {corpus.name or 'its corpus'} and nothing else: a probability says how likely a text is *there*.",
        "- What it writes is imitation, without facts, intent or memory of what is true. It answers no questions.",
        "- It repeats what its corpus holds, prejudice and rudeness included.",
        "- Not for decisions about people, not for advice, not as a source, not to pass for somebody's words.",
    ]
    if description.checkpoint.tokenizer.unknown_id is not None:
        unit = "characters" if description.checkpoint.tokenizer.kind is TokenizerKind.CHAR else "words"
        lines.insert(1, f"- {unit.capitalize()} that the corpus lacks become one unknown token.")
    return "## Limits\n\n" + "\n".join(lines)


def _table(titles: tuple[str, ...], rows: list[Any]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def draw_samples(graphs: Graphs, tokenizer: Tokenizer) -> list[str]:
    """Sample texts from the boundary token to their end or 200 tokens, always the same ones."""
    opened = GraphModel(graphs)
    return [
        tokenizer.decode(_draw(opened, tokenizer, np.random.default_rng([SEED, row]))) for row in range(NUM_SAMPLES)
    ]


def _draw(opened: GraphModel, tokenizer: Tokenizer, generator: np.random.Generator) -> list[int]:
    state = opened.initial_state(1)
    token = tokenizer.end_id
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        hidden, state = opened.step(np.array([token]), state)
        logits = opened.logprobs(hidden)[0].astype(np.float64) / TEMPERATURE
        if tokenizer.unknown_id is not None:
            logits[tokenizer.unknown_id] = -np.inf
        weights = np.exp(logits - logits.max())
        token = int(generator.choice(len(weights), p=weights / weights.sum()))
        if token == tokenizer.end_id:
            break
        tokens.append(token)
    return tokens

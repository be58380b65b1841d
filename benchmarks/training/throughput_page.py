"""Page about training speed, made from the records of `throughput`.

Input: records by case. Output: Markdown, every figure and verdict computed from the records. Must not know: trainings.
"""

from collections.abc import Iterable, Sequence
from typing import Any

PLAIN, PLAIN_COMPILED = "plain", "plain, compiled"
FLOAT32, FLOAT32_COMPILED, BFLOAT16 = "meari float32", "meari float32, compiled", "meari bfloat16"
TARGET = 1.3
TOKENS_PER_STEP = 64 * 64

# Words in the names of torch's operators, looked for from top to bottom.
PARTS = {
    "optimizer, clipping": ("Optimizer", "_foreach", "_fused_adam", "clip_grad", "vector_norm"),
    "products": ("mm", "linear", "matmul", "mkldnn_rnn", "MkldnnRnn", "lstm", "gru", "rnn_tanh"),
    "softmax, loss": ("softmax", "nll_loss", "CrossEntropy", "aten::exp", "aten::log", "amax", "scatter", "gather"),
    "elementwise, copies": (
        "mul", "add", "sub", "sigmoid", "tanh", "copy", "cat", "stack", "fill", "zero", "div", "pow", "sum",
        "embedding",
    ),
}  # fmt: skip
REST = "the rest"

HEAD = """# Training speed

meari's training step beside the plain PyTorch loop of the same sizes: nn.Embedding, nn.LSTM (nn.GRU, nn.RNN),
nn.Linear, cross_entropy, clip_grad_norm_, AdamW, in float32. A step takes 64 streams by 64 tokens; embeddings are half
as long as hidden vectors; one layer, no dropout. All loops of a case share a process and take turns, a step each, on
one thread; figures are medians. They count the process's own CPU time, because the machine had other work to do; wall
time, which that work lengthens, stands beside it. Made by `python -m benchmarks.training.throughput --help`."""


def page(results: dict[str, Any]) -> str:
    """Write the page of all records, by key `family hidden vocabulary [compiled]`."""
    plain = {key: record for key, record in results.items() if not key.endswith("compiled")}
    compiled = {key: record for key, record in results.items() if key.endswith("compiled")}
    profiled = {key: record for key, record in plain.items() if record["costs"][PLAIN]["operators"]}
    machines = sorted({record["machine"] for record in results.values()})
    sections = [HEAD, "Machine: " + "; ".join(machines) + ".", *_speeds(plain)]
    sections += _parts(profiled) if profiled else []
    sections += _compiled(compiled) if compiled else []
    return "\n\n".join(sections) + "\n"


def _speeds(records: dict[str, Any]) -> list[str]:
    rows, ratios = [], []
    for key, record in sorted(records.items(), key=_by_size):
        costs = record["costs"]
        cells = [*_case(key), _speed(costs[PLAIN])]
        for name in (FLOAT32, BFLOAT16):
            ratio = _ratio(costs, name)
            cells += [_speed(costs[name]), f"{ratio:.2f} ×"]
        ratios.append((_ratio(costs, BFLOAT16), key))
        cells += [" / ".join(f"{costs[name]['wall_seconds']:.2f}" for name in (PLAIN, FLOAT32, BFLOAT16))]
        rows.append([*cells, str(record["rounds"])])
    titles = (
        "family", "hidden", "vocabulary", "plain", "meari float32", "to plain", "meari bfloat16", "to plain",
        "wall s a step", "steps",
    )  # fmt: skip
    table = _table(titles, rows)
    met = [key for ratio, key in ratios if ratio >= TARGET]
    verdict = (
        f'The target is {TARGET} × the plain loop. `precision = "bfloat16"` reaches it in {len(met)} of {len(ratios)} '
        f"cases; the least is {min(ratios)[0]:.2f} ×, the most {max(ratios)[0]:.2f} ×. In float32 both run the same "
        "recurrent kernels of torch, so that only the loss and the optimizer can differ."
    )
    return ["## Tokens a CPU-second", table, verdict]


def _parts(records: dict[str, Any]) -> list[str]:
    rows = []
    for key, record in sorted(records.items(), key=_by_size):
        for name in (PLAIN, FLOAT32, BFLOAT16):
            shares = _shares(record["costs"][name]["operators"])
            rows.append([key, name, *(f"{100 * shares[part]:.0f} %" for part in (*PARTS, REST))])
    text = (
        "By torch's profiler, one step; shares of its time. Torch's recurrent kernels are products and gates in one: "
        "all of it counts as products. In bfloat16 the gates stand apart."
    )
    return ["## Where the time of a step goes", text, _table(("case", "loop", *PARTS, REST), rows)]


def _compiled(records: dict[str, Any]) -> list[str]:
    rows = []
    for key, record in sorted(records.items(), key=_by_size):
        costs = record["costs"]
        for before, after in ((PLAIN, PLAIN_COMPILED), (FLOAT32, FLOAT32_COMPILED)):
            gain = costs[before]["cpu_seconds"] / costs[after]["cpu_seconds"]
            first = costs[after]["first_cpu_seconds"]
            rows.append([key.removesuffix(" compiled"), before, f"{gain:.2f} ×", f"{first:.0f} s"])
    text = (
        "torch.compile needs a C++ compiler on the machine that trains. It leaves torch's recurrent kernels as they "
        "are and can only join what stands around them."
    )
    titles = ("case", "loop", "compiled, to not compiled", "CPU time of the first step")
    return ["## torch.compile", text, _table(titles, rows)]


def _shares(operators: dict[str, float]) -> dict[str, float]:
    shares = dict.fromkeys((*PARTS, REST), 0.0)
    for operator, share in operators.items():
        part = next((part for part, words in PARTS.items() if any(word in operator for word in words)), REST)
        shares[part] += share
    shares[REST] += 1 - sum(operators.values())
    return shares


def _ratio(costs: dict[str, Any], name: str) -> float:
    """Return tokens a CPU-second as a multiple of the plain loop's."""
    ratio: float = costs[PLAIN]["cpu_seconds"] / costs[name]["cpu_seconds"]
    return ratio


def _speed(cost: dict[str, Any]) -> str:
    return f"{TOKENS_PER_STEP / cost['cpu_seconds']:,.0f}"


def _case(key: str) -> list[str]:
    family, hidden, vocabulary = key.split()[:3]
    return [family, hidden, f"{int(vocabulary):,}"]


def _by_size(item: tuple[str, Any]) -> tuple[int, int, int]:
    family, hidden, vocabulary = item[0].split()[:3]
    return ("lstm", "gru", "rnn").index(family), int(hidden), int(vocabulary)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])

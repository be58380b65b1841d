"""Handmade bundle, small enough to work out every figure by hand.

The tokens are `<|end|>` `<|unk|>` a b … z. After each token the next letter has the logit `peak` and all other tokens
have 0: `a` follows the boundary token, the end follows `z`. The recurrent state counts the steps. `decay` reduces the
peak at each step, which makes results depend on their state. `leak` makes rows influence one another (a fault). `work`
adds a product of two square matrices of this size to each step. `fault` makes the graph fail where a text's token
number FAULT_AFTER or later is `fault_token`: an operator throws, or hidden vector or state become NaN. The self-test,
whose texts are shorter, does not notice it.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["<|end|>", "<|unk|>", *LETTERS]
UNKNOWN, Z = 1, 27
FAULT_AFTER = 12
Fault = Literal["", "throw", "hidden", "state"]
KINDS_OF_FAULTS: tuple[Fault, ...] = ("throw", "hidden", "state")
OPSET = [helper.make_opsetid("", 21)]


def next_id(token: int) -> int:
    """Return the likeliest token after `token`: letters in order, then the end."""
    return 2 if token in (0, 1) else (token + 1) % len(VOCABULARY)


def expected_logprob(token: int, after: int, step: int, peak: float = 8.0, decay: float = 0.0) -> float:
    """Return ln P(token), worked by hand, after `step` fed tokens ending with `after`."""
    logits = np.zeros(len(VOCABULARY))
    logits[next_id(after)] = peak - decay * step
    return float(logits[token] - np.log(np.exp(logits).sum()))


def tiny_tokenizer(entries: Sequence[str] = VOCABULARY) -> tokenizers.Tokenizer:
    """Make a tokenizer of the characters above; all others are unknown."""
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(entries)}, unk_token="<|unk|>")
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _save(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any], path: Path) -> None:
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _work(size: int, one: str) -> tuple[list[Any], dict[str, Any]]:
    """Add nodes that compute `one` with a large product that does not change the result."""
    nodes = [
        helper.make_node("ReduceSum", ["count"], ["steps"], keepdims=0),
        helper.make_node("Add", ["square", "steps"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", "square"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["one", "nothing"], [one]),
    ]
    return nodes, {"square": np.ones((size, size), np.float32), "zero": np.float32(0)}


def _fault(kind: str, token: int) -> tuple[list[Any], dict[str, Any]]:
    """Return nodes that add a fault to `sound_count` or `sound`, and their weights."""
    mask = np.zeros((len(VOCABULARY), 1), np.float32)
    mask[token] = 1.0
    nodes = [
        helper.make_node("Gather", ["mask", "token"], ["is_faulty"]),
        helper.make_node("Sub", ["sound_count", "allowed"], ["past"]),
        helper.make_node("Mul", ["past", "is_faulty"], ["excess"]),
        helper.make_node("Greater", ["excess", "nothing_at_all"], ["fails"]),
    ]
    if kind == "throw":
        nodes += [
            helper.make_node("Cast", ["fails"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["one_entry", "place"], ["added"]),  # there is no entry 1
        ]
    else:
        nodes.append(helper.make_node("Where", ["fails", "nan", "nothing_at_all"], ["added"]))
    target, result = ("sound_count", "next_count") if kind == "state" else ("sound", "hidden")
    nodes.append(helper.make_node("Add", [target, "added"], [result]))
    weights = {
        "mask": mask,
        "allowed": np.float32(FAULT_AFTER - 1),
        "nothing_at_all": np.float32(0),
        "nan": np.float32(np.nan),
        "one_entry": np.zeros(1, np.float32),
    }
    return nodes, weights


def _cell(path: Path, peak: float, decay: float, leak: bool, work: int, fault: str, fault_token: int) -> None:
    size = len(VOCABULARY)
    count, hidden = "next_count", "hidden"
    if fault:
        count, hidden = "sound_count", "hidden" if fault == "state" else "sound"
    following = np.eye(size, dtype=np.float32)[[next_id(token) for token in range(size)]]
    nodes = [
        helper.make_node("Gather", ["following", "token"], ["one_hot"]),
        helper.make_node("Add", ["count", "worked_one" if work else "one"], [count]),
        helper.make_node("Mul", [count, "decay"], ["lost"]),
        helper.make_node("Sub", ["peak", "lost"], ["height"]),
        helper.make_node("Mul", ["one_hot", "height"], ["alone" if leak else hidden]),
    ]
    if leak:  # like dynamic quantisation with one scale for the whole batch
        nodes += [
            helper.make_node("ReduceMax", ["next_count", "axes"], ["largest"], keepdims=1),
            helper.make_node("Mul", ["largest", "tiny"], ["shift"]),
            helper.make_node("Add", ["alone", "shift"], ["moved"]),
            helper.make_node("Mul", ["moved", "one_hot"], ["hidden"]),
        ]
    work_nodes, work_weights = _work(work, "worked_one") if work else ([], {})
    nodes[:0] = work_nodes
    fault_nodes, fault_weights = _fault(fault, fault_token) if fault else ([], {})
    nodes += fault_nodes
    if fault and fault != "state":
        nodes.append(helper.make_node("Identity", ["sound_count"], ["next_count"]))
    weights = {
        "following": following,
        "one": np.float32(1),
        "decay": np.float32(decay),
        "peak": np.float32(peak),
        **work_weights,
        **fault_weights,
        **({"axes": np.array([0]), "tiny": np.float32(1e-3)} if leak else {}),
    }
    floats = TensorProto.FLOAT
    _save(
        nodes,
        [
            helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("count", floats, ["batch", 1]),
        ],
        [
            helper.make_tensor_value_info("hidden", floats, ["batch", size]),
            helper.make_tensor_value_info("next_count", floats, ["batch", 1]),
        ],
        weights,
        path,
    )


def _output(path: Path) -> None:
    size = len(VOCABULARY)
    floats = TensorProto.FLOAT
    _save(
        [
            helper.make_node("MatMul", ["hidden", "identity"], ["logits"]),
            helper.make_node("LogSoftmax", ["logits"], ["logprobs"], axis=-1),
        ],
        [helper.make_tensor_value_info("hidden", floats, ["batch", size])],
        [helper.make_tensor_value_info(name, floats, ["batch", size]) for name in ("logits", "logprobs")],
        {"identity": np.eye(size, dtype=np.float32)},
        path,
    )


def _golden(folder: Path) -> None:
    cell = ort.InferenceSession(str(folder / "cell.onnx"), providers=["CPUExecutionProvider"])
    output = ort.InferenceSession(str(folder / "output.onnx"), providers=["CPUExecutionProvider"])
    tokens = np.array([[0, 0], [2, 5], [3, 1], [27, 4]], np.int64)
    count = np.zeros((2, 1), np.float32)
    logprobs = []
    for row in tokens:
        hidden, count = cell.run(["hidden", "next_count"], {"token": row, "count": count})
        logprobs.append(output.run(["logprobs"], {"hidden": hidden})[0])
    np.savez(folder / "golden.npz", tokens=tokens, logprobs=np.stack(logprobs), state_count=count)


def sizes_of(folder: Path) -> dict[str, int]:
    """Return the sizes of the graphs; each token is a row of the size of the vocabulary."""
    graphs = [onnx.load(str(folder / name)).graph for name in ("cell.onnx", "output.onnx")]
    size = graphs[1].output[0].type.tensor_type.shape.dim[1].dim_value
    hidden = graphs[1].input[0].type.tensor_type.shape.dim[1].dim_value
    floats = [t for graph in graphs for t in graph.initializer if t.data_type == TensorProto.FLOAT]
    weights = sum(int(np.prod(tensor.dims)) for tensor in floats)
    sizes = {"vocabulary": size, "embedding": size, "hidden": hidden, "layers": 1}
    return sizes | {"parameters": weights, "trained_parameters": weights}


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Write the manifest of the files in `folder`, with `changes` to its top-level fields."""
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name not in ("manifest.json", "signature.json")
    }
    manifest = {
        "format_version": 1,
        "name": folder.name,
        "family": "rnn",
        "precision": "fp32",
        "sizes": changes["sizes"] if "sizes" in changes else sizes_of(folder),
        "state": [{"name": "count", "shape": [1], "dtype": "float32"}],
        "boundary": {"id": 0, "token": "<|end|>"},
        "tokenizer": {"kind": "char", "normalization": "NFC", "unknown_id": 1},
        "graphs": {"cell": {"file": "cell.onnx"}, "output": {"file": "output.onnx"}},
        "corpus": {"name": "the alphabet", "licence": "none", "source": "made by hand", "document": "line"},
        "training": {},
        "figures": {"validation": {"perplexity": 1.0}},
        "golden": {"tolerance": 1e-4},
        "files": files,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")


def make_socket(path: Path) -> None:
    """Create a socket at the path."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_large(path: Path) -> None:
    """Create a sparse file of 3 GiB."""
    with path.open("wb") as file:
        file.truncate(3 << 30)


def write_tiny_bundle(
    folder: Path,
    *,
    peak: float = 8.0,
    decay: float = 0.0,
    leak: bool = False,
    work: int = 0,
    fault: Fault = "",
    fault_token: int = UNKNOWN,
) -> Path:
    """Create `folder` with a bundle of the same name."""
    folder.mkdir(parents=True)
    _cell(folder / "cell.onnx", peak, decay, leak, work, fault, fault_token)
    _output(folder / "output.onnx")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    _golden(folder)
    (folder / "README.md").write_text("A bundle for tests.\n", "utf-8")
    rewrite_manifest(folder)
    return folder

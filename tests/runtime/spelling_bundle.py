"""Bundles with any tokenizer whose model follows a chain: after each token its successor is the likeliest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.runtime.tiny_bundle import rewrite_manifest

END = "<|end|>"
FLOATS = TensorProto.FLOAT


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Make a byte-level BPE tokenizer without merges: id 0 is the end, id 1 + b is byte b of the sorted alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={e: i for i, e in enumerate([END, *alphabet])}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def word_tokenizer(words: list[str]) -> tokenizers.Tokenizer:
    """Make a tokenizer of words and runs of punctuation; words not in the list are unknown."""
    vocabulary = {entry: i for i, entry in enumerate([END, "<|unk|>", *words])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def write_spelling_bundle(
    folder: Path, tokenizer: tokenizers.Tokenizer, kind: str, chain: list[int], peak: float = 20.0, end: int = 0
) -> Path:
    """Write a bundle that generates `chain` after the boundary token, then the end."""
    folder.mkdir(parents=True)
    size = tokenizer.get_vocab_size()
    following = np.zeros((size, size), np.float32)
    for token, successor in zip([end, *chain], [*chain, end], strict=True):
        following[token, successor] = peak
    _save(
        folder / "cell.onnx",
        [
            helper.make_node("Gather", ["following", "token"], ["hidden"]),
            helper.make_node("Add", ["count", "one"], ["next_count"]),
        ],
        {"token": (TensorProto.INT64, []), "count": (FLOATS, [1])},
        {"hidden": (FLOATS, [size]), "next_count": (FLOATS, [1])},
        {"following": following, "one": np.float32(1)},
    )
    _save(
        folder / "output.onnx",
        [
            helper.make_node("Identity", ["hidden"], ["logits"]),
            helper.make_node("LogSoftmax", ["logits"], ["logprobs"], axis=-1),
        ],
        {"hidden": (FLOATS, [size])},
        {"logits": (FLOATS, [size]), "logprobs": (FLOATS, [size])},
        {},
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_golden(folder, end)
    unknown = tokenizer.token_to_id("<|unk|>")
    rewrite_manifest(
        folder,
        boundary={"id": end, "token": END},
        tokenizer={"kind": kind, "normalization": "NFC", "unknown_id": unknown},
    )
    return folder


def _save(path: Path, nodes: list[Any], inputs: Any, outputs: Any, weights: dict[str, Any]) -> None:
    def values(tensors: Any) -> list[Any]:
        return [helper.make_tensor_value_info(n, t, ["batch", *shape]) for n, (t, shape) in tensors.items()]

    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, values(inputs), values(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write_golden(folder: Path, end: int) -> None:
    cell, output = (ort.InferenceSession(str(folder / f"{name}.onnx")) for name in ("cell", "output"))
    tokens = np.array([[end, end], [1, 2]], np.int64)
    count = np.zeros((2, 1), np.float32)
    logprobs = []
    for row in tokens:
        hidden, count = cell.run(["hidden", "next_count"], {"token": row, "count": count})
        logprobs.append(output.run(["logprobs"], {"hidden": hidden})[0])
    np.savez(folder / "golden.npz", tokens=tokens, logprobs=np.stack(logprobs), state_count=count)

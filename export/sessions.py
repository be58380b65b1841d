"""The two graphs of a bundle in onnxruntime, run one step at a time.

Input: the graphs' bytes, tokens and states. Output: hidden vectors, states and log-probabilities. Must not know: torch.

Sizes: B batch, H hidden, V vocabulary. A state is a dict from the name of each tensor to float32 [B, *shape].
"""

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from meari.bundle_format.names import Precision
from meari.export.weights import Floats

Tokens = NDArray[np.int64]
State = dict[str, Floats]


@dataclass(frozen=True)
class Graphs:
    """The two .onnx files of a bundle."""

    precision: Precision
    cell: bytes
    output: bytes


class GraphModel:
    """Open graphs of a bundle."""

    def __init__(self, graphs: Graphs, num_threads: int = 1) -> None:
        self._cell = open_session(graphs.cell, num_threads)
        self._output = open_session(graphs.output, num_threads)
        self._next_names = [output.name for output in self._cell.get_outputs()]
        self.state_shapes: dict[str, tuple[int, ...]] = {
            tensor.name: tuple(tensor.shape[1:]) for tensor in self._cell.get_inputs() if tensor.name != "token"
        }
        self.hidden_size: int = self._output.get_inputs()[0].shape[1]
        self.vocabulary_size: int = self._output.get_outputs()[0].shape[1]

    def initial_state(self, batch: int) -> State:
        """Return zeros."""
        return {name: np.zeros((batch, *shape), np.float32) for name, shape in self.state_shapes.items()}

    def step(self, tokens: Tokens, state: State) -> tuple[Floats, State]:
        """Run one token a row.

        tokens   int64 [B], each in [0, V)
        returns  hidden float32 [B, H] and the next state
        """
        results = self._cell.run(self._next_names, {"token": tokens, **state})
        named = dict(zip(self._next_names, results, strict=True))
        return named["hidden"], {name: named[f"next_{name}"] for name in state}

    def logprobs(self, hidden: Floats) -> Floats:
        """Return ln P of every next token: float32 [B, H] to float32 [B, V]."""
        (logprobs,) = self._output.run(["logprobs"], {"hidden": hidden})
        assert isinstance(logprobs, np.ndarray)
        return logprobs


def open_session(graph: bytes, num_threads: int) -> ort.InferenceSession:
    """Open a session on the CPU whose idle threads sleep."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

"""Checks of finished graphs: valid ONNX, equal to torch, rows independent, probabilities that sum to one; and the
golden figures with which a server repeats the check.

Input: graphs, and the model that they were made from. Output: the measured figures and the bytes of golden.npz, or a
`CheckFailed` with the reason. Must not know: the bundle's folder.

golden.npz holds, with the tolerance for other machines in the manifest:

    tokens      int64 [steps, rows], the first step being the boundary token
    logprobs    float32 [steps, rows, V], of the token after each step
    state_NAME  float32 [rows, *shape], after the last step; before the first one it is zero
"""

import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from meari.bundle_format.names import END_ID, Precision
from meari.export.errors import InvalidGraph, NotIsolated, NotNormalised, TorchMismatch
from meari.export.sessions import GraphModel, Graphs, State, Tokens
from meari.export.weights import Floats
from meari.models.language_model import LanguageModel
from meari.models.training.process import fast_torch

Doubles = NDArray[np.float64]

TORCH_TOLERANCE = 1e-4  # nats
SUM_TOLERANCE = 1e-5
RUNS = ((1, 1024), (2, 256), (5, 256), (16, 128), (64, 64))  # batch sizes and steps of the comparison
NUM_ROWS = 67  # rows of the isolation check, and the batch sizes in which they must be the same
SUBSETS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 33, 63, 64, NUM_ROWS)
THREADS = (1, 2)
GOLDEN_STEPS = 8
GOLDEN_ROWS = 2
# Processors round exp and tanh differently in the last bit. In int8 such a bit can move an activation to the next
# integer: with random noise of 1e-6 in the states, up to 0.01 nats were seen.
TOLERANCES = {Precision.FP32: 1e-4, Precision.INT8: 5e-2}


@dataclass(frozen=True)
class Agreement:
    """Largest differences: from torch's log-probabilities in nats (on held-out text if there is some), and of a sum of
    probabilities from 1.
    """

    max_logprob_difference: float
    max_sum_error: float
    num_distributions: int


def check_valid(graphs: Graphs) -> None:
    """Raise InvalidGraph if ONNX's own checker finds a fault."""
    for name, graph in (("cell", graphs.cell), ("output", graphs.output)):
        try:
            onnx.checker.check_model(onnx.load_model_from_string(graph), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise InvalidGraph(f"{name}.onnx: {error}") from error


@fast_torch(threads=1)  # several would wait for each other at every step
def check_against_torch(
    graphs: Graphs, model: LanguageModel, held_out: Tokens, runs: Sequence[tuple[int, int]] = RUNS
) -> Agreement:
    """Compare log-probabilities along long sequences at several batch sizes.

    torch computes in float64. On tokens that make no text a trained network can amplify rounding errors so much that
    torch's own float32 is off too, and the graphs are not to be blamed for that: four times as much as it has been off
    in a row so far is allowed on top.

    held_out   int64 [num_tokens]; half of the rows are taken from it, as far as it goes, the others are random
    runs       batch sizes, each with a number of steps

    Raises TorchMismatch above 1e-4 nats, NotNormalised where a distribution's sum is off by more than 1e-5.
    """
    opened = GraphModel(graphs)
    exact = copy.deepcopy(model).double()
    worst, worst_sum, num_distributions = 0.0, 0.0, 0
    for batch, num_steps in runs:
        tokens = _rows(batch, num_steps, model.vocabulary_size, held_out)
        shown = _num_text_rows(batch, num_steps, held_out) or batch
        for step, (expected, rounding, got) in enumerate(_both(opened, model, exact, tokens)):
            differences = np.abs(expected - got).max(axis=1)
            worst = max(worst, float(differences[:shown].max()))
            if not (differences <= TORCH_TOLERANCE + 4 * rounding).all():
                raise TorchMismatch(
                    f"log-probabilities differ from torch by {differences.max():.3g} nats at step {step} of batch size "
                    f"{batch}, expected at most {TORCH_TOLERANCE:g}; torch's own float32 is off by "
                    f"{rounding.max():.3g} so far, and a network in which that grows amplifies any rounding"
                )
            worst_sum = max(worst_sum, check_normalised(got))
            num_distributions += batch
    return Agreement(worst, worst_sum, num_distributions)


def check_normalised(logprobs: Floats) -> float:
    """Return the largest distance of a row's sum of probabilities from 1. Raises NotNormalised above 1e-5."""
    error = float(np.abs(np.exp(logprobs.astype(np.float64)).sum(axis=1) - 1).max(initial=0))
    if not error <= SUM_TOLERANCE:
        raise NotNormalised(f"probabilities sum to 1 with an error of {error:.3g}, expected at most {SUM_TOLERANCE:g}")
    return error


def check_isolation(graphs: Graphs) -> None:
    """Run the same rows in batches of many sizes, with one thread and with two.

    Raises NotIsolated where a bit of a row's state or log-probabilities depends on the batch it is in.
    """
    generator = np.random.default_rng(0)
    whole = GraphModel(graphs)
    tokens = generator.integers(0, whole.vocabulary_size, NUM_ROWS)
    state = _plausible_state(whole, generator)
    expected = _everything(whole, tokens, state)
    for num_threads in THREADS:
        opened = GraphModel(graphs, num_threads)
        for size in SUBSETS:
            rows = generator.permutation(NUM_ROWS)[:size]
            got = _everything(opened, tokens[rows], {name: value[rows] for name, value in state.items()})
            for name, values in got.items():
                if not np.array_equal(values, expected[name][rows]):
                    raise NotIsolated(
                        f"{name} of a row depends on the batch around it ({size} rows, {num_threads} threads)"
                    )


def _rows(batch: int, num_steps: int, vocabulary_size: int, held_out: Tokens) -> Tokens:
    """Return tokens int64 [batch, num_steps], those of text first. All begin with the boundary, like served texts."""
    tokens = np.random.default_rng(batch).integers(0, vocabulary_size, (batch, num_steps))
    num_real = _num_text_rows(batch, num_steps, held_out)
    if num_real:
        tokens[:num_real] = held_out[: num_real * num_steps].reshape(num_real, num_steps)
    tokens[:, 0] = END_ID
    return tokens


def _num_text_rows(batch: int, num_steps: int, held_out: Tokens) -> int:
    return min((batch + 1) // 2, len(held_out) // num_steps)


def _both(
    opened: GraphModel, model: LanguageModel, exact: LanguageModel, tokens: Tokens
) -> Iterator[tuple[Doubles, Doubles, Floats]]:
    """Yield after each step: log-probabilities of torch in float64 [batch, V], the largest error of its float32 in
    each row so far [batch], and log-probabilities of the graphs [batch, V].
    """
    batch, num_steps = tokens.shape
    initial = {name: tensor.double() for name, tensor in exact.initial_state(batch).items()}
    with torch.inference_mode():
        hiddens, _ = exact(torch.from_numpy(tokens), initial)
        hiddens32, _ = model(torch.from_numpy(tokens), model.initial_state(batch))
    state = opened.initial_state(batch)
    rounding = torch.zeros(batch, dtype=torch.float64)
    for step in range(num_steps):
        hidden, state = opened.step(tokens[:, step], state)
        with torch.inference_mode():
            expected = torch.log_softmax(exact.logits(hiddens[:, step].double()), dim=-1)
            rounded = torch.log_softmax(model.logits(hiddens32[:, step]), dim=-1)
        rounding = torch.maximum(rounding, (expected - rounded).abs().amax(dim=1))
        yield expected.numpy(), rounding.numpy(), opened.logprobs(hidden)


def _plausible_state(opened: GraphModel, generator: np.random.Generator) -> State:
    """Make a state that differs in every row, one of them all zeros, one near the ends of the range."""
    state: State = {}
    for name, shape in opened.state_shapes.items():
        values = generator.uniform(-1, 1, (NUM_ROWS, *shape)) * generator.uniform(0, 1, (NUM_ROWS, 1))
        values[0], values[1] = 0.0, np.sign(values[1])
        state[name] = values.astype(np.float32)
    return state


def _everything(opened: GraphModel, tokens: Tokens, state: State) -> dict[str, Floats]:
    """Run two steps, so that the cell's output enters it again; return states, hidden vectors and log-probabilities."""
    _, state = opened.step(tokens, state)
    hidden, state = opened.step(tokens, state)
    return {**state, "hidden": hidden, "logprobs": opened.logprobs(hidden)}


@dataclass(frozen=True)
class Golden:
    content: bytes
    tolerance: float


def make_golden(graphs: Graphs, held_out: Tokens) -> Golden:
    """Run two rows for eight steps: one of held-out text if there is some, one of random tokens."""
    opened = GraphModel(graphs)
    tokens = np.random.default_rng(0).integers(0, opened.vocabulary_size, (GOLDEN_STEPS, GOLDEN_ROWS))
    tokens[0] = END_ID
    text = held_out[held_out != END_ID][: GOLDEN_STEPS - 1]
    tokens[1 : len(text) + 1, 0] = text
    state = opened.initial_state(GOLDEN_ROWS)
    logprobs = []
    for row in tokens:
        hidden, state = opened.step(row, state)
        logprobs.append(opened.logprobs(hidden))
    arrays: dict[str, Any] = {f"state_{name}": value for name, value in state.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, tokens=tokens, logprobs=np.stack(logprobs), **arrays)
    return Golden(stream.getvalue(), TOLERANCES[graphs.precision])

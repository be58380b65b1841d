"""Multiply-adds of a training, counted from its sizes: what a training costs whatever the kernels are.

Input: a family's sizes, and how many steps of how many tokens. Output: a number of multiply-adds. Must not measure.

Counted are products of matrices; elementwise work, table look-ups and decompositions are left out.

    V  vocabulary   E  embedding   H  units   g  blocks of rows in a cell: Elman 1, GRU 3, LSTM 4
    T  tokens in a series   B  series side by side   K  units in a block of the reservoir

Back-propagation through time, a step. Each product costs as much again for the gradient of its weights and for that of
its input; the state that a chunk begins with has no gradient:

    B (T (3 g E H + 3 g H² + 3 V H) - g H²)

Echo state network, a step. The reservoir runs forward alone, and the readout's input has no gradient; whitening turns
the weights and their gradient into r leading directions and back:

    B T (K H + 2 V H) + 4 V H r + V H

and once, before the first step, r directions are found on a sample of S tokens, of which S' are not warm-up:

    4 S K H + 6 S' H r + 2 H r²

In one pass. X^T X is summed in bands from its diagonal on, and the targets select rows, which is no product; the last
tokens, n', are scored once for calibration:

    n (K H + bands) + n' (K H + V H) + V H² + V H          bands = sum of width (H - begin)
"""

from dataclasses import dataclass

from meari.claims.families import NUM_GATES
from meari.models.config import Family
from meari.models.readout.ridge import BLOCK_UNITS
from meari.models.readout.softmax import NUM_DIRECTIONS, NUM_PASSES, SAMPLE_TOKENS
from meari.models.readout.states import MAX_ROWS, SHORTEST_PIECE, WARM_TOKENS


@dataclass(frozen=True)
class NetSizes:
    """V, E, H and K of the formulas; embedding and block are 0 where a family has none."""

    vocabulary: int
    units: int
    embedding: int = 0
    block: int = 0


def through_time(family: Family, net: NetSizes, batch_size: int, length: int) -> int:
    """One step of back-propagation through time."""
    rows = NUM_GATES[family] * net.units
    token = 3 * rows * net.embedding + 3 * rows * net.units + 3 * net.vocabulary * net.units
    return batch_size * (length * token - rows * net.units)


def readout_step(net: NetSizes, num_directions: int, batch_size: int, length: int) -> int:
    """One gradient step of the readout of an echo state network."""
    readout = net.vocabulary * net.units
    return batch_size * length * (net.block * net.units + 2 * readout) + 4 * readout * num_directions + readout


def whitening_setup(net: NetSizes, num_tokens: int) -> tuple[int, int]:
    """Return the multiply-adds of finding the leading directions, and how many directions there are."""
    targets = min(num_tokens, SAMPLE_TOKENS) - 1
    num_rows = min(MAX_ROWS, max(1, targets // SHORTEST_PIECE))
    read = targets // num_rows
    seen = read - (WARM_TOKENS if num_rows > 1 else 0)
    num_directions = max(1, min(NUM_DIRECTIONS, net.units // 2, num_rows * seen // 2))
    runs = NUM_PASSES + 2  # one for the moments, one more for the eigenvectors within the directions
    reading = runs * num_rows * read * net.block * net.units
    products = (runs - 1) * num_rows * seen * 2 * net.units * num_directions
    return reading + products + 2 * net.units * num_directions**2, num_directions


def one_pass(net: NetSizes, num_fitted: int, num_calibrated: int) -> int:
    """Ridge regression on `num_fitted` tokens and calibration on the following ones."""
    begins = range(0, net.units, BLOCK_UNITS)
    bands = sum(min(BLOCK_UNITS, net.units - begin) * (net.units - begin) for begin in begins)
    readout = net.vocabulary * net.units
    run = net.block * net.units
    solving = readout * net.units + readout
    return num_fitted * (run + bands) + num_calibrated * (run + readout) + solving

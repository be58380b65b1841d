"""The other way to train an echo state network: one pass over the text, one linear system, no gradient.

In: a fresh network, token ids. Out: the same network with its readout set. The last part of the tokens calibrates the
scores of the regression into probabilities, see `meari.models.readout`.
"""

import time

import torch

from meari.claims.text import Ids
from meari.models.cells.esn import EchoStateNetwork
from meari.models.readout.ridge import RidgeSums, calibrate

RIDGE = 1.0
CALIBRATION_SHARE = 0.1


@torch.no_grad()
def train_in_one_pass(model: EchoStateNetwork, ids: Ids, batch_size: int, length: int) -> float:
    """Set the readout in place.

    ids       int64 [num_tokens], read as series of `length` tokens, `batch_size` of them side by side, each from the
              state that the one before it left
    returns   CPU-seconds
    """
    began = time.process_time()
    num_columns = (len(ids) - 1) // batch_size
    rows = torch.from_numpy(ids[: batch_size * num_columns].reshape(batch_size, num_columns))
    following = torch.from_numpy(ids[1 : batch_size * num_columns + 1].reshape(batch_size, num_columns))
    cut = num_columns - max(1, round(CALIBRATION_SHARE * num_columns))
    sums = RidgeSums.zeros(model.hidden_size, model.vocabulary_size, model.device)
    state = model.initial_state(batch_size)
    for begin in range(0, cut, length):
        end = min(cut, begin + length)
        hidden, state = model(rows[:, begin:end], state)
        sums.add(hidden.flatten(0, 1), following[:, begin:end].flatten())
    weight, bias = sums.solve(RIDGE)
    scores = []
    for begin in range(cut, num_columns, length):
        hidden, state = model(rows[:, begin : begin + length], state)
        scores.append(torch.addmm(bias.float(), hidden.flatten(0, 1), weight.t().float()))
    targets = torch.cat([following[:, begin : begin + length].flatten() for begin in range(cut, num_columns, length)])
    with torch.enable_grad():
        calibration = calibrate(torch.cat(scores), targets, sums.targets)
    weight, bias = calibration.fold(weight, bias)
    model.readout.weight.copy_(weight)
    model.readout.bias.copy_(bias)
    return time.process_time() - began

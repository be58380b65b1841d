"""CPU time of a training step by family, size and vocabulary: `python -m benchmarks.training.step_costs`.

Input: nothing. Output: the figures of `meari/models/planning/tables.py`, one line a case. Must not know: corpora.

One thread, 32 streams by 64 tokens, random tokens, products in bfloat16; the shortest of several steps, in CPU time of
the process, which other work on the machine hardly affects.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from meari.bundle_format.names import Family
from meari.models.choices import TrainingPrecision
from meari.models.config import ModelConfig, TrainingConfig
from meari.models.planning.speed import step_seconds
from meari.models.planning.tables import model_of

SIZES = (64, 128, 192, 256, 384, 512, 768, 1024)
VOCABULARIES = (500, 2000, 8000)
UNITS = (256, 512, 1024, 2048)  # of reservoirs


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args(arguments)
    for family in (Family.RNN, Family.GRU, Family.LSTM):
        for size in SIZES:
            _print(family, size, 100, model_of(family, size), options.rounds)
    for vocabulary in VOCABULARIES:
        for size in (256, 768):
            _print(Family.GRU, size, vocabulary, model_of(Family.GRU, size), options.rounds)
    for units in UNITS:
        _print(Family.ESN, units, 100, model_of(Family.ESN, units), options.rounds)


def _print(family: Family, size: int, vocabulary_size: int, model: ModelConfig, rounds: int) -> None:
    precision = TrainingPrecision.FLOAT32 if family is Family.ESN else TrainingPrecision.BFLOAT16
    training = TrainingConfig(steps=1, precision=precision)
    seconds = step_seconds(model, vocabulary_size, training, rounds=rounds, clock=time.process_time)
    sys.stdout.write(f"{family:5} {size:5} {vocabulary_size:6} {seconds:.4f}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Rules between several settings of one table.

Input: values that are valid on their own. Output: a problem, `key: got X, expected Y`, or None. Must not know: files.
"""

from __future__ import annotations

from meari.bundle_format.names import Family, TokenizerKind
from meari.models.choices import Averaging, Optimizer, Pattern, Readout, Schedule
from meari.models.fields import TableRule, show

MIN_VOCABULARY = {
    TokenizerKind.BPE: 257,  # the boundary token and 256 bytes
    TokenizerKind.CHAR: 3,  # the boundary token, the unknown token, and one more
    TokenizerKind.WORD: 3,
}


def _some_training_files(train: tuple[str, ...]) -> str | None:
    return None if train else "train: got an empty list, expected at least one file or folder"


def _one_source_of_validation(files: tuple[str, ...], share: float) -> str | None:
    if files and share:
        return f"validation_share: got {share} beside validation files, expected one of the two"
    if not files and not share:
        return "validation: got neither files nor a validation_share, expected one of the two"
    return None


def _at_most_one_source_of_test(files: tuple[str, ...], share: float) -> str | None:
    if files and share:
        return f"test_share: got {share} beside test files, expected one of the two"
    return None


def _shares_leave_training_text(validation: float, test: float) -> str | None:
    if validation + test >= 1:
        return f"test_share: got {test} with validation_share {validation}, expected a sum below 1"
    return None


def _vocabulary_fits_kind(kind: TokenizerKind, size: int) -> str | None:
    least = MIN_VOCABULARY[kind]
    if size >= least or (size == 0 and kind is not TokenizerKind.BPE):
        return None
    no_limit = "" if kind is TokenizerKind.BPE else ", or 0 for no limit"
    return f'vocabulary_size: got {size}, expected at least {least} for kind "{kind}"{no_limit}'


def _is_reservoir(family: Family) -> str | None:
    return None if family is Family.ESN else f'family: got "{family}", expected "esn"'


def _reservoirs_share_units(reservoirs: int, units: int) -> str | None:
    return None if units % reservoirs == 0 else f"reservoirs: got {reservoirs}, expected a divisor of units ({units})"


def _blocks_fill_units(pattern: Pattern, units: int, reservoirs: int, block_size: int) -> str | None:
    own = units // reservoirs
    if pattern is Pattern.BLOCK and units % reservoirs == 0 and own % block_size:
        return f"block_size: got {block_size}, expected a divisor of {_units_of_each(units, reservoirs)}"
    return None


def _edges_fit_units(pattern: Pattern, units: int, reservoirs: int, in_edges: int) -> str | None:
    if pattern is Pattern.RANDOM and in_edges > units // reservoirs:
        return f"in_edges: got {in_edges}, expected at most {_units_of_each(units, reservoirs)}"
    return None


def _units_of_each(units: int, reservoirs: int) -> str:
    return f"units ({units})" if reservoirs == 1 else f"the units of each reservoir ({units // reservoirs})"


def _radii_in_order(least: float | None, most: float) -> str | None:
    if least is None or least <= most:
        return None
    return f"spectral_radius_min: got {least}, expected at most spectral_radius ({most})"


def _several_tokens_are_embedded(tokens: int, embedding_size: int) -> str | None:
    if tokens > 1 and not embedding_size:
        return f"embedding_size: got 0 with input_tokens {tokens}, expected at least 1"
    return None


def _feature_blocks_fill_features(features: int, block: int) -> str | None:
    return None if features % block == 0 else f"feature_block: got {block}, expected a divisor of features ({features})"


def _features_find_states(features: int, edges: int, units: int, layers: int) -> str | None:
    if features and edges > units * layers:
        return f"feature_edges: got {edges}, expected at most the units of all layers ({units * layers})"
    return None


def _low_rank_is_trained(rank: int, readout: Readout) -> str | None:
    if rank and readout is Readout.RIDGE:
        return f'readout_rank: got {rank} with readout "ridge", expected 0, or readout "softmax"'
    return None


def _gates_have_a_rank(gated: bool, rank: int) -> str | None:
    return "readout_rank: got 0 with readout_gated = true, expected at least 1" if gated and not rank else None


def _products_alone_are_dropped(dropout: float, gated: bool) -> str | None:
    if dropout and not gated:
        return f"readout_dropout: got {dropout} without readout_gated = true, expected 0"
    return None


def _leaks_in_order(least: float, most: float) -> str | None:
    return None if least <= most else f"leak_min: got {least}, expected at most leak_max ({most})"


def _lstm_alone_is_mogrified(family: Family, rounds: int) -> str | None:
    if rounds and family is not Family.LSTM:
        return f'mogrifier_rounds: got {rounds} for family "{family}", expected 0: the gates are those of an lstm'
    return None


def _adaptive_is_not_tied(cutoffs: tuple[int, ...], tied: bool) -> str | None:
    if cutoffs and tied:
        return f"adaptive_cutoffs: got {list(cutoffs)} beside tied = true, expected one of the two"
    return None


def _cutoffs_rise(cutoffs: tuple[int, ...]) -> str | None:
    if list(cutoffs) != sorted(set(cutoffs)):
        return f"adaptive_cutoffs: got {list(cutoffs)}, expected increasing numbers"
    return None


def _clusters_have_width(cutoffs: tuple[int, ...], hidden_size: int, layer_sizes: tuple[int, ...]) -> str | None:
    size = layer_sizes[-1] if layer_sizes else hidden_size
    least = 4 ** len(cutoffs)
    if cutoffs and size < least:
        return f"adaptive_cutoffs: got {len(cutoffs)} clusters above {size} hidden units, expected at least {least}"
    return None


def _trigger_has_patience(averaging: Averaging, patience: int) -> str | None:
    if averaging is Averaging.TRIGGERED and not patience:
        return 'trigger_patience: got 0 with averaging = "triggered", expected at least 1 evaluation'
    return None


def _average_comes_before_the_end(averaging: Averaging, trigger_patience: int, patience: int) -> str | None:
    if averaging is Averaging.TRIGGERED and 0 < patience <= trigger_patience:
        return f"patience: got {patience}, expected more than trigger_patience ({trigger_patience}), or 0"
    return None


def _steps_or_epochs(steps: int | None, epochs: float | None) -> str | None:
    if steps is None and epochs is None:
        return "steps: got neither steps nor epochs, expected one of the two"
    if steps is not None and epochs is not None:
        return f"epochs: got {show(epochs)} beside steps {steps}, expected one of the two"
    return None


def _clock_has_minutes(schedule: Schedule, max_minutes: float) -> str | None:
    if schedule is Schedule.CLOCK and not max_minutes:
        return 'max_minutes: got 0 with schedule = "clock", expected more than 0'
    return None


def _rates_in_order(least: float, most: float) -> str | None:
    return None if least <= most else f"min_learning_rate: got {least}, expected at most learning_rate ({most})"


def _muon_alone_has_a_rate_of_matrices(optimizer: Optimizer, rate: float) -> str | None:
    if rate and optimizer is not Optimizer.MUON:
        return f'matrix_learning_rate: got {rate} with optimizer "{optimizer}", expected 0, or optimizer "muon"'
    return None


CORPUS_RULES = (
    TableRule(("train",), _some_training_files),
    TableRule(("validation", "validation_share"), _one_source_of_validation),
    TableRule(("test", "test_share"), _at_most_one_source_of_test),
    TableRule(("validation_share", "test_share"), _shares_leave_training_text),
)
TOKENIZER_RULES = (TableRule(("kind", "vocabulary_size"), _vocabulary_fits_kind),)
RECURRENT_RULES = (
    TableRule(("family", "mogrifier_rounds"), _lstm_alone_is_mogrified),
    TableRule(("adaptive_cutoffs", "tied"), _adaptive_is_not_tied),
    TableRule(("adaptive_cutoffs",), _cutoffs_rise),
    TableRule(("adaptive_cutoffs", "hidden_size", "layer_sizes"), _clusters_have_width),
)
RESERVOIR_RULES = (
    TableRule(("family",), _is_reservoir),
    TableRule(("reservoirs", "units"), _reservoirs_share_units),
    TableRule(("pattern", "units", "reservoirs", "block_size"), _blocks_fill_units),
    TableRule(("pattern", "units", "reservoirs", "in_edges"), _edges_fit_units),
    TableRule(("leak_min", "leak_max"), _leaks_in_order),
    TableRule(("spectral_radius_min", "spectral_radius"), _radii_in_order),
    TableRule(("input_tokens", "embedding_size"), _several_tokens_are_embedded),
    TableRule(("features", "feature_block"), _feature_blocks_fill_features),
    TableRule(("features", "feature_edges", "units", "layers"), _features_find_states),
    TableRule(("readout_rank", "readout"), _low_rank_is_trained),
    TableRule(("readout_gated", "readout_rank"), _gates_have_a_rank),
    TableRule(("readout_dropout", "readout_gated"), _products_alone_are_dropped),
)
TRAINING_RULES = (
    TableRule(("steps", "epochs"), _steps_or_epochs),
    TableRule(("schedule", "max_minutes"), _clock_has_minutes),
    TableRule(("min_learning_rate", "learning_rate"), _rates_in_order),
    TableRule(("optimizer", "matrix_learning_rate"), _muon_alone_has_a_rate_of_matrices),
    TableRule(("averaging", "trigger_patience"), _trigger_has_patience),
    TableRule(("averaging", "trigger_patience", "patience"), _average_comes_before_the_end),
)

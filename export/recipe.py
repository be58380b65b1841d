"""Settings of a training in words, for the model card.

Input: a config. Output: rows of name and value; settings that are off have none. Must not know: figures.
"""

from meari.models.choices import Averaging, Optimizer, Readout, TrainingPrecision
from meari.models.config import Config, RecurrentConfig, ReservoirConfig, TrainingConfig

Row = tuple[str, str]


def recipe(config: Config) -> list[Row]:
    """Return the settings that trained a model."""
    model, training = config.model, config.training
    if isinstance(model, ReservoirConfig) and model.readout is Readout.RIDGE:
        return [("readout", f"ridge regression over one pass, penalty {model.ridge:g}, then calibrated")]
    rows = [
        ("steps", _steps(training)),
        ("learning rate", _learning_rate(training)),
        ("optimizer", _optimizer(training)),
    ]
    if isinstance(model, RecurrentConfig):
        rows += _dropouts(model)
    elif model.readout_dropout:
        rows += [("dropout", f"products of the readout {model.readout_dropout:g}")]
    rows += _penalties(training)
    if training.restart_share:
        rows += [("fresh starts", f"each stream begins a text anew with probability {training.restart_share:g} a step")]
    if training.averaging is not Averaging.NONE:
        rows += [("averaging", _averaging(training))]
    products = "bfloat16, the rest in float32" if training.precision is TrainingPrecision.BFLOAT16 else "float32"
    return [*rows, ("products in training", products)]


def _steps(training: TrainingConfig) -> str:
    length = f"{training.epochs:g} epochs" if training.steps is None else f"{training.steps:,} steps"
    spread = f" ± {training.chunk_spread:g}" if training.chunk_spread else ""
    limits = f", at most {training.max_minutes:g} minutes" if training.max_minutes else ""
    patience = f", until {training.patience} evaluations in a row brought nothing better" if training.patience else ""
    return f"{length} of {training.batch_size} streams by {training.chunk_length}{spread} tokens{limits}{patience}"


def _learning_rate(training: TrainingConfig) -> str:
    return (
        f"{training.learning_rate:g}, reached after {training.warmup_steps:,} steps, then along a cosine to "
        f"{training.min_learning_rate:g}"
    )


def _optimizer(training: TrainingConfig) -> str:
    name = "AdamW"
    if training.optimizer is Optimizer.MUON:
        rate = training.matrix_learning_rate or training.learning_rate
        name = f"Muon at a rate of {rate:g} for the matrices of recurrences, AdamW for the rest"
    return f"{name}, weight decay {training.weight_decay:g}, gradients clipped to norm {training.clip_norm:g}"


def _dropouts(model: RecurrentConfig) -> list[Row]:
    at_input = model.dropout if model.input_dropout is None else model.input_dropout
    at_output = model.dropout if model.output_dropout is None else model.output_dropout
    shares = {
        "input": at_input,
        "between layers": model.dropout if len(model.sizes) > 1 else 0.0,
        "output": at_output,
        "embeddings": model.embedding_dropout,
        "recurrent weights": model.weight_drop,
    }
    used = [f"{where} {share:g}" for where, share in shares.items() if share]
    if not used:
        return []
    locked = "one mask a chunk" if model.locked_dropout else "a mask a step"
    return [("dropout", f"{', '.join(used)}; {locked}")]


def _penalties(training: TrainingConfig) -> list[Row]:
    penalties = {
        "of activations": training.activation_regularisation,
        "of their changes": training.temporal_regularisation,
    }
    used = [f"{what} {weight:g}" for what, weight in penalties.items() if weight]
    return [("penalties", ", ".join(used))] if used else []


def _averaging(training: TrainingConfig) -> str:
    if training.averaging is Averaging.EMA:
        return f"of the weights of all steps, each {training.ema_decay:g} times the one before"
    return f"of the weights of all steps since {training.trigger_patience} evaluations brought nothing better"

"""Test the plans of trainings: from facts about a text, minutes and a speed alone, without training."""

from dataclasses import replace

import pytest

from meari.bundle_format.names import Document, Family, TokenizerKind
from meari.models.choices import Schedule, TrainingPrecision
from meari.models.config import Config, RecurrentConfig, ReservoirConfig, parse_config
from meari.models.errors import ConfigError, EmptyCorpus
from meari.models.planning.planner import held_out_share, plan
from meari.models.planning.tables import STREAM_TOKEN_SECONDS, MachineSpeed, Probe, step_seconds_of
from meari.models.text.facts import TextFacts

ENGLISH = TextFacts(1, 8_000_000, 8_000_000, 90, "Latin", Document.LINE, 40_000, "lines that stand alone")
KOREAN = TextFacts(1, 8_000_000, 20_000_000, 2_500, "Hangul", Document.LINE, 200_000, "lines that stand alone")
PLAYS = TextFacts(1, 1_115_394, 1_115_394, 65, "Latin", Document.FILE, 1, "one stream")
USUAL = MachineSpeed()


def config_of(facts: TextFacts, minutes: float = 5.0, speed: MachineSpeed = USUAL, **settings: object) -> Config:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return plan(facts, ["text.txt"], minutes, speed, name="mine", settings=named).config


def size_of(config: Config) -> int:
    assert isinstance(config.model, RecurrentConfig)
    return config.model.hidden_size


def cut(facts: TextFacts, num_characters: int) -> TextFacts:
    scale = num_characters / facts.num_characters
    return replace(facts, num_characters=num_characters, num_bytes=round(facts.num_bytes * scale))


def test_more_time_never_gives_a_smaller_model() -> None:
    for facts in (ENGLISH, KOREAN, PLAYS):
        sizes = [size_of(config_of(facts, minutes, model__family="gru")) for minutes in (0.2, 1, 5, 20, 60, 600)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]


def test_slower_machine_gets_a_smaller_model_and_fewer_steps() -> None:
    slow = MachineSpeed(0.2, 0.2)
    for facts in (ENGLISH, KOREAN, PLAYS):
        fast_config, slow_config = config_of(facts), config_of(facts, speed=slow)
        assert size_of(slow_config) < size_of(fast_config)
        assert slow_config.training.max_minutes <= fast_config.training.max_minutes


def test_planned_steps_fit_into_the_time_and_the_clock_ends_the_run() -> None:
    for minutes in (1.0, 5.0, 30.0):
        training = config_of(ENGLISH, minutes, model__family="gru").training
        assert training.schedule is Schedule.CLOCK
        assert 0.3 * minutes <= training.max_minutes < minutes
        assert training.steps is not None
        size = size_of(config_of(ENGLISH, minutes, model__family="gru"))
        seconds = training.steps * step_seconds_of(Probe(Family.GRU, size, 2000)) * training.chunk_length / 64
        assert 60 * training.max_minutes < seconds < 2 * 60 * training.max_minutes
        assert training.evaluate_every * 4 < training.steps


def test_few_steps_are_made_twice_as_many_by_short_chunks() -> None:
    slow, fast = (config_of(PLAYS, speed=MachineSpeed(speed, speed)).training for speed in (0.4, 1.5))
    assert (slow.chunk_length, fast.chunk_length) == (32, 64)
    for facts in (ENGLISH, KOREAN):
        assert config_of(facts, speed=MachineSpeed(0.4, 0.4)).training.chunk_length == 32
    assert config_of(cut(PLAYS, 20_000)).training.chunk_length == 64  # the text ends it, not the clock
    assert config_of(PLAYS, 0.5, model__family="esn").training.chunk_length == 64


def test_time_of_preparing_a_text_does_not_follow_from_the_speed_of_steps() -> None:
    long = cut(KOREAN, 30_000_000)
    usual, slow_steps, slow_text = (
        config_of(long, speed=speed, corpus__training_share=1).training.max_minutes
        for speed in (USUAL, MachineSpeed(0.5, 0.3), MachineSpeed(text=0.5))
    )
    assert 3.2 < slow_steps < usual < 3.8
    assert slow_text == pytest.approx(usual - 75 * 1.15 / 60, abs=0.01)


def test_of_a_long_text_no_more_is_prepared_than_the_time_lets_read() -> None:
    long = cut(KOREAN, 30_000_000)
    planned = plan(long, ["a.txt"], 5, MachineSpeed(0.5, 0.4), name="mine")
    config = planned.config
    assert 0.15 < config.corpus.training_share < 0.5
    assert config.training.max_minutes > 4.1
    assert f"; {config.corpus.training_share:.0%} of it is read, as the time allows" in planned.reasons[0]
    training = config.training
    assert training.steps is not None
    num_tokens = int(planned.reasons[1].split(" of them")[0].split()[-1].replace(",", ""))
    assert training.steps * training.batch_size * training.chunk_length < num_tokens
    assert config_of(cut(KOREAN, 3_000_000_000)).training.max_minutes == 0.3 * 5
    for facts, minutes in ((ENGLISH, 5), (long, 600)):
        assert config_of(facts, minutes).corpus.training_share == 1


def test_time_that_cannot_be_kept_is_told() -> None:
    for size, is_late in ((30_000_000, False), (3_000_000_000, True)):
        reasons = plan(cut(KOREAN, size), ["a.txt"], 5, USUAL, name="mine").reasons
        assert (reasons[-1] == "time: all else takes about 19.4 minutes, so together some 20.9 minutes") == is_late


def test_of_a_text_that_takes_too_long_to_read_no_more_is_encoded_than_is_read_in_the_time() -> None:
    for facts in (KOREAN, PLAYS):
        for size in (3_000_000_000, 300_000_000_000):
            corpus = config_of(cut(facts, size)).corpus
            assert 0 < corpus.training_share < 0.01
            assert 0 < corpus.validation_share < 0.001


def test_no_more_of_one_long_stream_is_prepared_than_of_lines() -> None:
    long = cut(PLAYS, 300_000_000)
    assert long.document is Document.FILE
    lines = replace(long, document=Document.LINE)
    stream, lined = (config_of(facts, speed=MachineSpeed(0.5, 0.4, text=0.7)) for facts in (long, lines))
    assert 0.05 < stream.corpus.training_share == lined.corpus.training_share < 0.1
    assert 2.8 < stream.training.max_minutes < lined.training.max_minutes
    assert config_of(lines, corpus__document="file").corpus.training_share == config_of(long).corpus.training_share


def test_share_of_a_long_text_can_be_set_and_a_set_length_is_given_all_of_it() -> None:
    long = cut(KOREAN, 30_000_000)
    assert config_of(long, corpus__training_share=0.1).corpus.training_share == 0.1
    assert config_of(long, corpus__training_share=1).corpus.training_share == 1
    assert config_of(long, training__epochs=2.0).corpus.training_share == 1


def test_short_times_are_told_in_seconds() -> None:
    assert " steps in at most 27 seconds, " in plan(PLAYS, ["a.txt"], 0.8, USUAL, name="mine").reasons[-1]
    assert " steps in at most 4.6 minutes, " in plan(PLAYS, ["a.txt"], 5, USUAL, name="mine").reasons[-1]


def test_one_stream_is_measured_a_token_after_another_which_takes_its_time() -> None:
    lines, stream = (config_of(replace(PLAYS, document=each)) for each in (Document.LINE, Document.FILE))
    num_held_out = stream.corpus.validation_share * PLAYS.num_characters
    taken = 60 * (lines.training.max_minutes - stream.training.max_minutes)
    assert taken == pytest.approx(STREAM_TOKEN_SECONDS * num_held_out, rel=0.02)
    assert 10 < taken < 15


def test_speed_of_small_and_of_large_steps_is_told_apart() -> None:
    speed = MachineSpeed(small=1.0, large=0.25)
    small, large = Probe(Family.LSTM, 64, 100), Probe(Family.LSTM, 1024, 100)
    assert step_seconds_of(small, speed) == step_seconds_of(small)
    assert step_seconds_of(large, speed) == pytest.approx(4 * step_seconds_of(large))
    between = Probe(Family.LSTM, 256, 100)
    assert 1 < step_seconds_of(between, speed) / step_seconds_of(between) < 4


def test_short_texts_get_characters_long_ones_and_syllables_byte_pairs() -> None:
    assert config_of(PLAYS).tokenizer.kind is TokenizerKind.CHAR
    assert config_of(ENGLISH).tokenizer.kind is TokenizerKind.BPE
    short, long = config_of(cut(KOREAN, 50_000)).tokenizer, config_of(KOREAN).tokenizer
    assert (short.kind, long.kind) == (TokenizerKind.BPE, TokenizerKind.BPE)
    assert 257 < short.vocabulary_size < long.vocabulary_size


def test_short_text_ends_the_run_before_the_clock_with_a_small_model_and_much_dropout() -> None:
    config = config_of(cut(PLAYS, 20_000))
    assert config.training.steps is None
    assert config.training.epochs is not None
    assert config.training.epochs <= 40
    assert size_of(config) <= 128
    assert isinstance(config.model, RecurrentConfig)
    assert config.model.dropout >= 0.3
    assert "the text bears no more" in plan(cut(PLAYS, 20_000), ["a.txt"], 5, USUAL, name="mine").reasons[-1]


def test_text_of_three_kilobytes_is_told_to_be_too_little() -> None:
    planned = plan(cut(PLAYS, 3_000), ["a.txt"], 5, USUAL, name="mine")
    assert planned.expectation.startswith("3,000 characters are far too few for a language model")
    assert size_of(planned.config) == 64
    assert "enough" in plan(ENGLISH, ["a.txt"], 5, USUAL, name="mine").expectation


def test_text_too_short_to_hold_something_out_is_refused() -> None:
    with pytest.raises(EmptyCorpus, match=r"a\.txt: got a text of 120 characters, expected at least 500"):
        plan(cut(PLAYS, 120), ["a.txt"], 5, USUAL, name="mine")


def test_held_out_share_is_a_tenth_of_short_texts_and_enough_of_long_ones() -> None:
    assert held_out_share(20_000) == 0.1
    assert held_out_share(15_000_000) * 15_000_000 == pytest.approx(150_000)


@pytest.mark.parametrize("family", list(Family))
def test_every_family_can_be_chosen(family: Family) -> None:
    planned = plan(PLAYS, ["a.txt"], 5, USUAL, name="mine", family=family)
    assert planned.config.model.family is family
    assert isinstance(planned.config.model, ReservoirConfig) == (family is Family.ESN)


def test_settings_are_kept_and_the_rest_is_chosen_around_them() -> None:
    config = config_of(
        ENGLISH, seed=7, model__hidden_size=96, training__learning_rate=0.02, tokenizer__kind="char",
        corpus__document="paragraph", corpus__licence="CC0",
    )  # fmt: skip
    assert (config.seed, size_of(config), config.training.learning_rate) == (7, 96, 0.02)
    assert (config.tokenizer.kind, config.tokenizer.vocabulary_size) == (TokenizerKind.CHAR, 0)
    assert (config.corpus.document, config.corpus.licence) == (Document.PARAGRAPH, "CC0")
    assert config.training.steps is not None
    assert config.training.steps > config_of(ENGLISH).training.steps * 2  # type: ignore[operator]


def test_nothing_is_told_that_settings_make_untrue() -> None:
    settings = {"training.epochs": 2.0, "corpus.document": "line", "training.batch_size": 8}
    reasons = plan(PLAYS, ["a.txt"], 5, USUAL, name="mine", settings=settings).reasons
    assert reasons[-1] == "training: as --set says (training.epochs, training.batch_size)"
    assert reasons[0].endswith("so a document is a file; --set makes it a line")


def test_settings_take_the_place_of_their_rivals() -> None:
    config = config_of(PLAYS, corpus__validation=["held-out.txt"], training__epochs=2.0)
    assert (config.corpus.validation, config.corpus.validation_share) == (("held-out.txt",), 0.0)
    assert (config.training.epochs, config.training.steps) == (2.0, None)


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"training\.learning_rate: got -1, expected a number > 0"):
        config_of(PLAYS, training__learning_rate=-1)
    with pytest.raises(ConfigError, match=r"modell\.x: got an unknown table, expected corpus"):
        config_of(PLAYS, modell__x=1)
    with pytest.raises(ConfigError, match=r'model\.family: got "grru", expected one of'):
        config_of(PLAYS, model__family="grru")


def test_plan_is_a_config_that_a_file_can_hold() -> None:
    for family in Family:
        config = plan(KOREAN, ["a.txt", "more"], 3, USUAL, name="mine", family=family).config
        assert parse_config(config.to_tables()) == config


def test_speed_decides_precision_and_threads() -> None:
    speed = MachineSpeed(0.5, 0.3, TrainingPrecision.FLOAT32, threads=4)
    training = config_of(ENGLISH, speed=speed).training
    assert (training.precision, training.threads) == (TrainingPrecision.FLOAT32, 4)

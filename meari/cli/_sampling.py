"""How texts are drawn: the options of `meari generate` that are fields of POST /generate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from meari.runtime.requests import GenerateRequest

__all__ = ["SAMPLING_OPTIONS", "SamplingOptions"]

SAMPLING_OPTIONS = (
    click.option("--max-tokens", metavar="N", type=int, default=64, show_default=True, help="New tokens at most."),
    click.option("--min-tokens", metavar="N", type=int, default=0, help="No end and no stop before so many tokens."),
    click.option(
        "--temperature", metavar="T", type=float, default=1.0, show_default=True, help="0 takes the likeliest."
    ),
    click.option("--top-k", metavar="K", type=int, default=0, help="Keep the K likeliest tokens; 0 is off."),
    click.option("--top-p", metavar="P", type=float, default=1.0, help="Keep the nucleus of probability P."),
    click.option(
        "--min-p", metavar="P", type=float, default=0.0, help="Keep what has this share of the likeliest one's."
    ),
    click.option("--repetition-penalty", metavar="R", type=float, default=1.0, help="As in the CTRL paper; 1 is off."),
    click.option(
        "--frequency-penalty", metavar="F", type=float, default=0.0, help="Off a logit for each time it was generated."
    ),
    click.option(
        "--presence-penalty", metavar="P", type=float, default=0.0, help="Off the logits of what was generated."
    ),
    click.option("--logit-bias", metavar="ID=BIAS", multiple=True, help="Added to a token's logit; may be repeated."),
    click.option("--seed", metavar="N", type=int, help="The same seed gives the same text.  [random, told]"),
    click.option("--stop", metavar="TEXT", multiple=True, help="End before it; may be repeated, at most 8 times."),
    click.option("--n", metavar="N", type=int, default=1, help="Samples of each prompt, at most 16."),
    click.option(
        "--num-beams", metavar="N", type=int, default=1, help="Over 1: beam search, which returns the best --n."
    ),
    click.option("--logprobs", metavar="K", type=int, help="Figures of every token and K alternatives, 0 to 20."),
)


@dataclass(frozen=True)
class SamplingOptions:
    """What the options say; names are the request's."""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: tuple[str, ...]
    seed: int | None
    stop: tuple[str, ...]
    n: int
    num_beams: int
    logprobs: int | None

    def request(self) -> GenerateRequest:
        """The options as a request, checked as one. Raises UsageError, naming the option."""
        import msgspec

        from meari.bulk.options import checked_request
        from meari.errors import InvalidRequest

        fields = asdict(self) | {"logit_bias": _biases(self.logit_bias)}
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):  # JSON has none of these
                raise click.UsageError(f"--{name.replace('_', '-')}: got {value}, expected a number")
        if self.seed is None:
            del fields["seed"]
        try:
            return checked_request(msgspec.json.encode(fields))
        except InvalidRequest as error:
            name, colon, rest = str(error).partition(":")
            raise click.UsageError(f"--{name.replace('_', '-')}{colon}{rest}") from None


def _biases(pairs: tuple[str, ...]) -> dict[str, float] | None:
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[token] = float(bias)
        except ValueError:
            raise click.UsageError(f"--logit-bias: got {pair!r}, expected ID=BIAS, as 17=-2.5") from None
    return biases or None

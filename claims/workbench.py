"""What all claims share: the text, the sizes, the budget, and the models that are trained on the whole training part.

In: the text, sizes, a budget. Out: fresh and trained models. Knows nothing of single claims.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from claims.budget import Budget
from claims.families import NAMES, fresh_model
from claims.sizes import Sizes
from claims.text import Ids, Text
from claims.training import Plan, Trained, train
from models.config import Family
from models.language_model import LanguageModel

SEED = 1
TRAINING_BUDGET_SHARE = 0.25  # of what is left, at most, for one of the models that all claims need


@dataclass
class Workbench:
    """tell   called with a line about what is being done"""

    text: Text
    sizes: Sizes
    budget: Budget
    tell: Callable[[str], None]
    _trained: dict[Family, Trained] = field(default_factory=dict)

    @property
    def validation(self) -> Ids:
        """The part of the validation text that early stopping looks at."""
        return self.text.validation[: self.sizes.evaluated_tokens]

    def fresh(self, family: Family, seed: int = SEED) -> LanguageModel:
        """A model before training."""
        return fresh_model(family, self.text.vocabulary_size, self.sizes, seed)

    def trained(self, family: Family) -> Trained:
        """The model trained on the whole training part; made when it is first asked for."""
        if family not in self._trained:
            self.tell(f"training the {NAMES[family]} on the whole training part")
            budget = self.budget.part(TRAINING_BUDGET_SHARE)
            plan = Plan.of(self.sizes)
            self._trained[family] = train(self.fresh(family), self.text.training, self.validation, plan, budget, SEED)
        return self._trained[family]

    def cut_short(self, families: tuple[Family, ...]) -> tuple[str, ...]:
        """What to say of those whose training the budget ended."""
        cut = ((family, self._trained[family]) for family in families if family in self._trained)
        return tuple(
            f"the {NAMES[family]} had {trained.steps:,} of {self.sizes.steps:,} training steps"
            for family, trained in cut
            if trained.is_cut
        )

    def pieces(self, num_pieces: int, length: int) -> Ids:
        """Evenly spread pieces of the held-out part, int64 [num_pieces, length]; they overlap where it is short."""
        ids = self.text.held_out
        length = min(length, len(ids))
        places = np.linspace(0, len(ids) - length, num_pieces).astype(np.int64)
        return np.asarray(ids[places[:, None] + np.arange(length)])

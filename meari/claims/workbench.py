"""Workbench of all claims with one seed: text, sizes, budget, and the models trained on the whole training part.

Input: the text, sizes, a budget, a seed. Output: fresh and trained models. Must not know: single claims.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from meari.bundle_format.names import Family
from meari.claims.families import NAMES, fresh_model
from meari.claims.sizes import Sizes
from meari.claims.text import Ids, Text
from meari.claims.training import Budget, TrainedModel, TrainingPlan, train_fitting
from meari.models.language_model import LanguageModel

TRAINING_BUDGET_SHARE = 0.25  # largest share of the remaining budget for one of the models that all claims need


@dataclass
class Workbench:
    """Everything that claims share.

    tell   called with a line about each piece of work
    """

    text: Text
    sizes: Sizes
    budget: Budget
    tell: Callable[[str], None]
    seed: int
    _trained: dict[Family, TrainedModel] = field(default_factory=dict)

    @property
    def validation(self) -> Ids:
        """Part of the validation text that chooses among schedules."""
        return self.text.validation[: self.sizes.evaluated_tokens]

    def fresh(self, family: Family) -> LanguageModel:
        """Make an untrained model."""
        return fresh_model(family, self.text.vocabulary_size, self.sizes, self.seed)

    def trained(self, family: Family) -> TrainedModel:
        """Return the model trained on the whole training part; trained on first use."""
        if family not in self._trained:
            self.tell(f"training the {NAMES[family]} on the whole training part")
            budget = self.budget.part(TRAINING_BUDGET_SHARE)
            self._trained[family] = self.train_on(family, self.text.training, budget)
        return self._trained[family]

    def train_on(self, family: Family, ids: Ids, budget: Budget) -> TrainedModel:
        """Train a fresh model on int64 [num_tokens] by the plan that all claims share."""
        plan = TrainingPlan.of(self.sizes)
        return train_fitting(lambda: self.fresh(family), ids, self.validation, plan, budget, self.seed)

    def cut_short(self, families: tuple[Family, ...]) -> tuple[str, ...]:
        """Return a phrase for each model whose training the budget ended."""
        cut = ((family, self._trained[family]) for family in families if family in self._trained)
        return tuple(
            f"the {NAMES[family]} had {trained.steps:,} of {self.sizes.steps:,} training steps"
            for family, trained in cut
            if trained.is_cut
        )

    def pieces(self, num_pieces: int, length: int) -> Ids:
        """Return evenly spread pieces of the held-out part, int64 [num_pieces, length]; they overlap in a short
        text.
        """
        ids = self.text.held_out
        length = min(length, len(ids))
        places = np.linspace(0, len(ids) - length, num_pieces).astype(np.int64)
        return np.asarray(ids[places[:, None] + np.arange(length)])

"""Parse the text of /metrics."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class Exposition:
    """Samples of one response of /metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with this name and these labels; at least one must exist."""
        found = [
            sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no sample {name} with {labels}"
        return sum(found)

"""Time limit of every wait in the tests: it ends tests that hang and never measures speed."""

from typing import Final

PATIENCE: Final = 300.0  # seconds; busy machines can be five times slower

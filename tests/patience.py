"""How long a test waits for something that must happen: a bound for what hangs, never a measure of speed."""

from typing import Final

PATIENCE: Final = 300.0  # seconds; machines are up to five times slower than a quiet one

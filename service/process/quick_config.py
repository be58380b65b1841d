"""gunicorn's configuration with each value looked up once: its parser reads some twenty of them a request."""

from __future__ import annotations

from typing import Any

__all__ = ["QuickConfig"]


class QuickConfig:
    """Reads like the configuration it stands for; what has been read is kept as a plain attribute."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        setattr(self, name, value)
        return value

"""gunicorn's logger with the service's format: whatever reads the log meets one kind of line."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger

from meari.service.log.configure import line_format, show_libraries

__all__ = ["ServiceLogger"]


class ServiceLogger(Logger):  # type: ignore[misc]
    """gunicorn's own, to stderr or where its options say; `configure_logging` comes before it."""

    def setup(self, cfg: Any) -> None:
        """At the start, and again when the configuration is reloaded."""
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(line_format())
        show_libraries()

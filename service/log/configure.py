"""Which records are written, where, and in which format.

All go to stderr: the service's own, gunicorn's, and from WARNING on those of any library, so that whatever collects
the log meets one format. A terminal gets lines for a person; where stderr is a file, a pipe or a container's log, a
program is going to read it, and the lines are JSON.
"""

from __future__ import annotations

import logging
import sys

from meari.service.log.buffered import BufferedLines
from meari.service.log.formats import JsonFormat, TextFormat

__all__ = ["configure_logging", "flush_log", "line_format", "show_libraries"]


def configure_logging(level: str, line_format: str) -> None:
    """Send the service's records of this level and above to stderr; asking again changes level and format.

    line_format: text, json, or auto, which is text on a terminal.
    """
    service = logging.getLogger("meari")
    service.setLevel(level.upper())
    service.propagate = False
    if not service.handlers:
        service.addHandler(BufferedLines(sys.stderr))
    as_text = line_format == "text" or (line_format == "auto" and sys.stderr.isatty())
    for handler in service.handlers:
        handler.setFormatter(TextFormat() if as_text else JsonFormat())


def line_format() -> logging.Formatter:
    """The format that was chosen; JSON before that."""
    handlers = logging.getLogger("meari").handlers
    return (handlers[0].formatter if handlers else None) or JsonFormat()


def show_libraries() -> None:
    """Write warnings and errors of all other libraries, and Python's own warnings, in the same format."""
    root = logging.getLogger()
    logging.captureWarnings(True)
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
        root.setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.setFormatter(line_format())


def flush_log() -> None:
    """Write what waits to be written; to be called now and then."""
    for handler in logging.getLogger("meari").handlers:
        handler.flush()

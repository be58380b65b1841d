"""The `meari` command, also as `python -m meari`: Ctrl-C ends it calmly, from its first imports to its exit.

Input: the arguments of the command line. Output: an exit code, as `meari.cli.main` describes. Must not know: anything
that takes time to import outside `main`.
"""

import os
from types import FrameType


def main() -> None:
    """Run the command line; imports take a tenth of a second, in which it can be interrupted, too."""
    try:
        import signal

        is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if is_ours:  # not where interrupts are ignored, as of a command in the background
            signal.signal(signal.SIGINT, _interrupt)
        try:
            from meari.cli.main import main as run

            run()
        finally:
            if is_ours:  # the work is done, and libraries that clean up would show a traceback
                signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        _end()


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; within an import, end at once: there it may be lost, or come out as another error."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end() -> None:
    try:
        os.write(2, b"\nmeari: interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    main()

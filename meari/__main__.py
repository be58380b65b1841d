"""The `meari` command, also as `python -m meari`: Ctrl-C ends it calmly from its first imports on.

Input: the arguments of the command line. Output: an exit code, as `meari.cli.main` describes. Must not know: anything
that takes time to import outside `main`.
"""

import os


def main() -> None:
    """Run the command line; imports take a tenth of a second, in which it can be interrupted, too."""
    try:
        import signal

        handler = signal.getsignal(signal.SIGINT)
        if handler is signal.default_int_handler:  # not where interrupts are ignored, as of a command in the background
            signal.signal(signal.SIGINT, _end)
        from meari.cli.main import main as run

        signal.signal(signal.SIGINT, handler)
        run()
    except KeyboardInterrupt:
        _end()


def _end(_number: int = 0, _frame: object = None) -> None:
    """End at once: nothing has begun, and an exception may be lost in a callback of the import system."""
    try:
        os.write(2, b"\nmeari: interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    main()

"""The `meari` command, also as `python -m meari`: Ctrl-C ends it calmly from its first imports on.

Input: the arguments of the command line. Output: an exit code, as `meari.cli.main` describes. Must not know: anything
that takes time to import outside `main`.
"""

import sys


def main() -> None:
    """Run the command line; imports take a tenth of a second, in which it can be interrupted, too."""
    try:
        from meari.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("\nmeari: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()

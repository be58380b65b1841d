"""Check that a config can be read, and that its corpus exists and begins as text: `python3 -m meari.models.check FILE`.

Input: a config. Output: nothing, or an error that names the file and its source. Must not know: any package besides
Python's own library, so that it runs before anything is installed.
"""

import itertools
import sys
from pathlib import Path

from meari.bundle_format.names import Document as Unit
from meari.models.config import Config, load_config
from meari.models.errors import ModelsError, UnreadableFile
from meari.models.text.corpus import BadLines, read_pieces
from meari.models.text.expressions import load_expressions
from meari.models.text.text_files import check_rereadable, list_files


def check_files(config: Config) -> None:
    """Raise UnreadableFile if a file of the corpus is missing or cannot be read several times.

    Raises BrokenText or UnreadableFile if one does not begin as text, BadExpression if a blocklist or loss mask is
    wrong.
    """
    corpus = config.corpus
    expressions = [name for name in (corpus.blocklist, corpus.loss_mask) if name]
    try:
        files = list_files(itertools.chain(corpus.train, corpus.validation, corpus.test))
        for path in [*files, *list_files(expressions)]:
            check_rereadable(path)
    except UnreadableFile as error:
        hint = f"; its source, by corpus.source: {corpus.source}" if corpus.source else ""
        raise UnreadableFile(f"{error}{hint}") from error
    for name in expressions:
        load_expressions(name)
    bad = BadLines(corpus.max_bad) if corpus.max_bad else None
    for path in files:
        next(read_pieces([path], Unit.LINE, bad), None)


def main() -> int:
    """Return exit code 0, or 1 after a line on standard error."""
    try:
        check_files(load_config(Path(sys.argv[1])))
    except ModelsError as error:
        sys.stderr.write(f"make train: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

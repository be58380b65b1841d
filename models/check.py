"""Check that a config can be read and its corpus exists: `python3 -m meari.models.check CONFIG.toml`.

Input: a config. Output: nothing, or an error that names the file and its source. Must not know: the text's content, any
package besides Python's own library, so that it runs before anything is installed.
"""

import itertools
import sys
from pathlib import Path

from meari.models.config import Config, load_config
from meari.models.errors import ModelsError, UnreadableFile
from meari.models.text.text_files import check_rereadable, list_files


def check_files(config: Config) -> None:
    """Raise UnreadableFile if a file of the corpus is missing or cannot be read several times."""
    corpus = config.corpus
    blocklist = [corpus.blocklist] if corpus.blocklist else []
    try:
        for path in list_files(itertools.chain(corpus.train, corpus.validation, corpus.test, blocklist)):
            check_rereadable(path)
    except UnreadableFile as error:
        hint = f"; its source, by corpus.source: {corpus.source}" if corpus.source else ""
        raise UnreadableFile(f"{error}{hint}") from error


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

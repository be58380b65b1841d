"""Finds the text that a model is measured on: a part of its own run, or files of the user's choice.

In: a run or checkpoint folder and a part's name, or text files. Out: a token file. Knows nothing of models.
"""

from collections.abc import Sequence
from pathlib import Path

from meari.models.atomic import settled
from meari.models.config import Document
from meari.models.errors import CheckpointError, EmptyCorpus
from meari.models.text.corpus import list_files, read_pieces
from meari.models.text.token_file import TokenFile, open_token_file, write_token_file
from meari.models.text.tokenizer import Tokenizer


def open_part(folder: Path, part: str) -> TokenFile:
    """The prepared tokens of a run's `validation` or `test` part.

    folder   the run, or one of the checkpoint folders in it

    Raises CheckpointError where the run has no such part, TokenFileError where it is damaged.
    """
    for place in (folder, folder.parent):
        path = settled(place / "tokens") / f"{part}.tokens"
        if path.exists():
            return open_token_file(path)
    raise CheckpointError(f"{folder}: has no prepared {part} text; choose another --part, or files with --text")


def has_ends(folder: Path, unit: Document) -> bool:
    """Whether the training text of a run, or of a checkpoint folder in it, had ends to learn from.

    unit   a document of the corpus, which decides where the prepared text is gone: lines and paragraphs have ends
    """
    for place in (folder, folder.absolute().parent):
        path = settled(place / "tokens") / "train.tokens"
        if path.exists():
            return open_token_file(path).counts.has_ends
    return unit is not Document.FILE


def encode_files(files: Sequence[Path], tokenizer: Tokenizer, unit: Document, folder: Path) -> TokenFile:
    """Encode text files, or all text files of folders, into a token file in `folder`.

    Raises CorpusError: a file that cannot be read, is not UTF-8, or no text at all.
    """
    path = folder / "text.tokens"
    counts = write_token_file(path, read_pieces(list_files(files), unit), tokenizer, unit)
    if not counts.num_documents:
        raise EmptyCorpus("got no text, expected some", source=", ".join(map(str, files)))
    return open_token_file(path)

"""What an import reads: files of a foreign model, and what the caller knows of it.

Input: paths and options. Output: a `Source`, or an error. Must not know: torch, which takes seconds to import.
"""

from dataclasses import dataclass
from pathlib import Path

from meari.importer.layouts import read_layout
from meari.importer.vocabulary import Units, read_vocabulary
from meari.importer.weights_file import check_kind
from meari.models.text.text_files import list_files


@dataclass(frozen=True)
class Source:
    """Files of a foreign model, and what is not in them.

    weights     safetensors, or a state dict as torch.save writes it
    vocabulary  tokens by their ids
    mapping     names of a layout; None: one of the known ones
    units       None: by the tokens
    boundary    token before and after every text; None: by its name
    unknown     token of all others; None: by its name
    tied        whether embedding and output are one tensor, of which the file may have one name
    activation  of an RNN, which a state dict does not tell
    text        held-out text, on which int8 is measured; None: float32
    """

    weights: Path
    vocabulary: Path
    mapping: Path | None = None
    units: Units | None = None
    boundary: str | None = None
    unknown: str | None = None
    tied: bool = False
    activation: str | None = None
    text: Path | None = None

    def check(self) -> None:
        """Raise Unimportable for a file that is missing or of another kind, CorpusError for the text."""
        check_kind(self.weights)
        read_vocabulary(self.vocabulary, self.units, self.boundary, self.unknown)
        if self.mapping is not None:
            read_layout(self.mapping)
        if self.text is not None:
            list_files([self.text])

"""What the export takes from a run folder.

In: the folder of a run, or of one checkpoint of it. Out: `Run`. Knows nothing of graphs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meari.export.sessions import Tokens
from meari.models.checkpoint import Checkpoint, load_checkpoint
from meari.models.evaluation import has_ends
from meari.models.files import settled
from meari.models.text.token_file import TokenFile, open_token_file

MOST_HELD_OUT = 200_000  # tokens: more are not looked at
NO_TOKENS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Run:
    """A trained model and what its training left beside it.

    parts      what of the corpus is kept out of training, by name: `validation`, and `test` where there is one
    has_ends   whether the training text taught where a text ends
    report     report.png, or None where the folder has none
    """

    checkpoint: Checkpoint
    parts: dict[str, TokenFile]
    has_ends: bool
    report: bytes | None

    @property
    def held_out(self) -> Tokens:
        """The beginning of the validation text, int64 [num_tokens]; empty where the folder has none."""
        validation = self.parts.get("validation")
        return NO_TOKENS if validation is None else validation.ids[:MOST_HELD_OUT].astype(np.int64)


def read_run(folder: Path) -> Run:
    """Read a run folder (its best weights), or a checkpoint folder inside one.

    Raises CheckpointError or TokenFileError.
    """
    checkpoint = load_checkpoint(folder)
    run_folder = next(
        (place for place in (folder, folder.absolute().parent) if (place / "config.json").exists()), folder
    )
    paths = {part: settled(run_folder / "tokens") / f"{part}.tokens" for part in ("validation", "test")}
    parts = {part: open_token_file(path) for part, path in paths.items() if path.exists()}
    report = run_folder / "report.png"
    taught = has_ends(folder, checkpoint.config.corpus.document)
    return Run(checkpoint, parts, taught, report.read_bytes() if report.exists() else None)

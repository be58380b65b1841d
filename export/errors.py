"""Every error that exporting raises on purpose.

    ExportError
    ├── BundleExists        there is something at the target already
    ├── UnusableRun         the run lacks something that the export needs
    └── CheckFailed         the graphs are not good enough: nothing was written
        ├── InvalidGraph    not a model that ONNX allows
        ├── TorchMismatch   log-probabilities differ from the checkpoint's
        ├── NotIsolated     a row depends on its neighbours in the batch
        ├── NotNormalised   probabilities over the vocabulary do not sum to one
        └── PrecisionLost   int8 costs too much perplexity

Messages say what came, what was expected and, where it helps, what to do.
"""


class ExportError(Exception):
    """Root of every error of `export`: its text is meant for the person who started the command."""


class BundleExists(ExportError):
    """The target folder exists, and replacing it was not asked for or would destroy something else."""


class UnusableRun(ExportError):
    """The run cannot be exported as it is."""


class CheckFailed(ExportError):
    """A check of the finished graphs failed; no bundle was written."""


class InvalidGraph(CheckFailed):
    """A graph breaks the rules of ONNX."""


class TorchMismatch(CheckFailed):
    """The graphs and the checkpoint give different log-probabilities."""


class NotIsolated(CheckFailed):
    """What stands in another row of the batch changes a result."""


class NotNormalised(CheckFailed):
    """The probabilities of some distribution do not sum to one."""


class PrecisionLost(CheckFailed):
    """Quantisation costs more perplexity than is allowed."""

"""Errors of the export, as one tree.

Input: a message. Output: an exception. Must not know: the code that raises it.

    ExportError
    ├── BundleExists        there is something at the target already
    ├── UnusableRun         the run lacks something that the export needs
    ├── Unimportable        weights, a mapping of names or a vocabulary of others that cannot become a bundle
    └── CheckFailed         the graphs are not good enough: nothing was written
        ├── InvalidGraph    not a model that ONNX allows
        ├── TorchMismatch   log-probabilities differ from the checkpoint's
        ├── NotIsolated     a row depends on the other rows of the batch
        ├── NotNormalised   probabilities over the vocabulary do not sum to one
        └── PrecisionLost   int8 costs too much perplexity

Messages state the value, the expected value and, where it helps, what to do.
"""


class ExportError(Exception):
    """Root of every error of `export`: its text is written for the person who started the command."""


class BundleExists(ExportError):
    """A target folder that exists and must not be replaced."""


class UnusableRun(ExportError):
    """A run that cannot be exported as it is."""


class Unimportable(ExportError):
    """Weights, a mapping or a vocabulary of another project that cannot become a bundle as they are."""


class CheckFailed(ExportError):
    """A failed check of the finished graphs; no bundle was written."""


class InvalidGraph(CheckFailed):
    """A graph that breaks the rules of ONNX."""


class TorchMismatch(CheckFailed):
    """Different log-probabilities of the graphs and the checkpoint."""


class MixtureMismatch(CheckFailed):
    """Different log-probabilities of the graphs and the mixture that they stand for."""


class NotIsolated(CheckFailed):
    """A result that depends on the other rows of the batch."""


class NotNormalised(CheckFailed):
    """A distribution whose probabilities do not sum to one."""


class PrecisionLost(CheckFailed):
    """A quantisation that costs more perplexity than is allowed."""

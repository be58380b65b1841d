"""The `meari` command: finds the verbs of this folder and runs one of them.

Enters: the arguments of the command line. Leaves: the verb's exit code; errors of the project as one line.
Knows nothing of what a verb does: `cli/VERB.py` holds one click command named `command`, imported only when
that verb is asked for, so that `meari --help` costs no torch and no onnxruntime.
"""

import importlib
import pkgutil
import sys
from importlib.metadata import PackageNotFoundError, version

import click

import cli

NOT_VERBS = frozenset({"main"})
STAGES = (
    "search",
    "train",
    "evaluate",
    "export",
    "serve",
    "generate",
    "score",
    "claims",
)  # in the order in which data flows
ERROR_ROOTS = (
    ("models.errors", "ModelsError"),
    ("export.errors", "ExportError"),
    ("service.errors", "MeariError"),
    ("bulk.errors", "BulkError"),
)
TRAINING_SIDE = frozenset({"matplotlib", "onnx", "onnx_ir", "onnxscript", "rich", "safetensors", "scipy", "torch"})
INSTALL_TRAINING_SIDE = "this verb needs the training side, `pip install 'meari[train]'` or `make test` installs it"

EXAMPLES = """\b
Examples:
  meari train models/configs/shakespeare-lstm.toml
  meari evaluate runs/shakespeare-lstm
  meari export runs/shakespeare-lstm bundles/shakespeare-lstm --precision int8
  meari serve --port 8000
  meari score corpus.txt --model shakespeare-lstm -o scores.jsonl
"""


class Verbs(click.Group):
    """A click group whose commands are the modules of this folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, the known stages first and in their order."""
        names = {module.name for module in pkgutil.iter_modules(cli.__path__)}
        verbs = sorted(name for name in names - NOT_VERBS if not name.startswith("_"))
        return sorted(verbs, key=lambda verb: STAGES.index(verb) if verb in STAGES else len(STAGES))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The click command of `cli/VERB.py`, or None where there is no such verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"cli.{cmd_name}").command
        return command


def installed_version() -> str:
    """The version of the installed distribution; a checkout that was never installed has none."""
    try:
        return version("meari")
    except PackageNotFoundError:
        return "not installed"


@click.group(cls=Verbs, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(installed_version(), prog_name="meari")
def group() -> None:
    """Small recurrent language models: trained, exported to ONNX and served on ordinary CPUs."""


def project_errors() -> tuple[type[Exception], ...]:
    """The root error classes of the modules that this run has imported.

    A module that was not imported cannot have raised, so nothing is imported here.
    """
    found = (getattr(sys.modules.get(module), name, None) for module, name in ERROR_ROOTS)
    return tuple(root for root in found if root is not None)


def main() -> None:
    """Run the command line; an error of the project is one line on standard error and exit code 1."""
    try:
        group(prog_name="meari")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in TRAINING_SIDE:
            raise
        click.echo(f"meari: {error.name} is not installed here: {INSTALL_TRAINING_SIDE}", err=True)
        sys.exit(1)
    except Exception as error:
        if not isinstance(error, project_errors()):
            raise
        click.echo(f"meari: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

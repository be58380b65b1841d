"""The `meari` command: finds the verbs of this folder and runs one of them.

Input: the arguments of the command line. Output: an exit code that scripts can trust, and errors as one line on
standard error: 0 done, 1 failed, 2 used wrongly, 130 interrupted (SIGTERM 143). A reader of standard output that has
gone ends a verb quietly, with 0.

Must not know: the work of a verb. `cli/VERB.py` holds one click command named `command`, imported only when
that verb is asked for, so that `meari --help` costs no torch and no onnxruntime.
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from meari import cli
from meari.cli._compiler import leave_compiler_out
from meari.cli._streams import open_streams
from meari.errors import did_you_mean

MAY_BE_PATHS = frozenset({"model", "sources"})  # parameters that take names, too; a path may have any bytes
NOT_VERBS = frozenset({"main"})
GROUPS = {
    "Train": ("demo", "search", "train", "evaluate", "export", "import", "sign"),
    "Look": ("inspect", "models", "bundles", "claims"),
    "Use": ("serve", "keys", "generate", "score", "filter", "completion"),
}  # of verbs, in the order in which data flows
STAGES = tuple(verb for verbs in GROUPS.values() for verb in verbs)
ERROR_ROOTS = (
    ("meari.models.errors", "ModelsError"),
    ("meari.export.errors", "ExportError"),
    ("meari.errors", "MeariError"),
    ("meari.bulk.errors", "BulkError"),
    ("meari.client.errors", "RemoteError"),
)
TRAINING_SIDE = frozenset({"matplotlib", "onnx", "onnx_ir", "onnxscript", "safetensors", "scipy", "torch"})
INSTALL_TRAINING_SIDE = "this verb needs the training side, `pip install 'meari[train]'` or `make train` installs it"
FAILED, USED_WRONGLY, INTERRUPTED = 1, 2, 130

EXAMPLES = """\b
Examples:
  meari demo my-text.txt
  meari train my-text.txt --minutes 5
  meari train models/configs/shakespeare-lstm.toml
  meari evaluate runs/shakespeare-lstm
  meari export runs/shakespeare-lstm bundles/shakespeare-lstm --precision int8
  meari inspect shakespeare-lstm
  meari serve --port 8000
  meari generate "ROMEO:" --model shakespeare-lstm
  meari score corpus.txt --model shakespeare-lstm -o scores.jsonl

\b
Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted.
"""


class ReaderGone(Exception):
    """The reader of standard output has ended. The system's own error would become exit code 1 in click."""


@contextmanager
def quiet_end() -> Iterator[None]:
    """Raise ReaderGone for a pipe that nobody reads any more."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None


class Verbs(click.Group):
    """A click group whose commands are the modules of this folder."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Make a context; `--help` already writes here. Raises ReaderGone."""
        with quiet_end():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. Raises ReaderGone."""
        with quiet_end():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs, the known stages first and in their order."""
        names = {module.name for module in pkgutil.iter_modules(cli.__path__)}
        verbs = sorted(name for name in names - NOT_VERBS if not name.startswith("_"))
        return sorted(verbs, key=lambda verb: STAGES.index(verb) if verb in STAGES else len(STAGES))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with a line each, in groups; a verb without a group stands in the last."""
        verbs = {verb: self.get_command(ctx, verb) for verb in self.list_commands(ctx)}
        width = formatter.width - 6 - max(map(len, verbs))
        for name, group in GROUPS.items():
            own = [verb for verb in verbs if verb in group or (name == "Use" and verb not in STAGES)]
            with formatter.section(name):
                formatter.write_dl([(verb, each.get_short_help_str(width)) for verb in own if (each := verbs[verb])])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or suggest the nearest one."""
        hint = did_you_mean(args[0], self.list_commands(ctx))
        if hint and args[0] not in self.list_commands(ctx) and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the click command of `cli/VERB.py`, or None if there is no such verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"meari.cli.{cmd_name}").command
        for parameter in command.params:
            if parameter.type is click.STRING and parameter.name not in MAY_BE_PATHS:
                parameter.type = _TEXT
        if not any(parameter.name == "server" for parameter in command.params):
            command.params.append(_no_server(cmd_name))
        return command


class _Text(click.types.StringParamType):
    """Text of the command line. Bytes in another encoding than that of the locale are no text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, which can be encoded."""
        text: str = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"got {text!r}, expected text in {sys.getfilesystemencoding()}, the encoding of the locale")
        return text


_TEXT = _Text()


def _no_server(verb: str) -> click.Option:
    """Return an option that refuses --server for a verb that no service can do."""

    def refuse(_context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(
                f"--server: {verb} works with files of this machine; "
                "models, inspect, generate, score and filter ask a service"
            )

    return click.Option(["--server"], hidden=True, expose_value=False, is_eager=True, callback=refuse)


def installed_version() -> str:
    """Return the version of the installed distribution; a checkout that was never installed has none."""
    try:
        return version("meari")
    except PackageNotFoundError:
        return "not installed"


@click.group(cls=Verbs, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(installed_version(), prog_name="meari")
def group() -> None:
    """Small recurrent language models: trained, exported to ONNX and served on ordinary CPUs."""


def project_errors() -> tuple[type[Exception], ...]:
    """Return the root error classes of the modules that this run has imported.

    A module that was not imported cannot have raised, so nothing is imported here.
    """
    found = (getattr(sys.modules.get(module), name, None) for module, name in ERROR_ROOTS)
    return tuple(root for root in found if root is not None)


def main() -> None:
    """Run the command line. An error of the program itself keeps its traceback."""
    open_streams()
    leave_compiler_out()
    try:
        code = _run()
    except ReaderGone:
        code = 0
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the last flush goes nowhere
        if not isinstance(error, BrokenPipeError):
            code = code or _failed(f"standard output: {error.strerror or error}")
    sys.exit(code)


def _run() -> int:
    try:
        code = group(prog_name="meari", standalone_mode=False)
    except click.ClickException as error:
        return _reported(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo("meari: interrupted", err=True)
        return INTERRUPTED
    except ReaderGone:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in TRAINING_SIDE:
            raise
        return _failed(f"{error.name} is not installed here: {INSTALL_TRAINING_SIDE}")
    except OSError as error:
        return _failed(f"{error.filename or _unnamed_place()}: {error.strerror or error}")
    except Exception as error:
        if not isinstance(error, project_errors()):
            raise
        return _failed(str(error))
    return code if isinstance(code, int) else 0


def _unnamed_place() -> str:
    """Return what an error without a file is about: the current folder, if it was removed, or standard output."""
    try:
        Path.cwd()
    except OSError:
        return "the current folder"
    try:
        sys.stdout.flush()
        os.write(1, b"")  # an unbuffered stream keeps nothing that could be tried again
    except OSError:
        return "standard output"
    return "the system"


def _reported(error: click.ClickException) -> int:
    if isinstance(error, click.UsageError):
        error.show()
        return USED_WRONGLY
    return _failed(error.format_message())


def _failed(message: str) -> int:
    """Show a message, which may repeat what a file or a server says: nothing in it commands the terminal."""
    shown = "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in message)
    click.echo(f"meari: {shown}", err=True)
    return FAILED


if __name__ == "__main__":
    main()

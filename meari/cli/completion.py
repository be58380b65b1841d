"""`meari completion`: a shell's name → the script that makes it complete `meari` at the Tab key."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from meari.cli._options import Choice, echo_json, json_option

EXAMPLES = """\b
Examples:
  meari completion bash > ~/.local/share/bash-completion/completions/meari
  meari completion zsh > ~/.zfunc/_meari                   # with `fpath+=~/.zfunc` before compinit in ~/.zshrc
  meari completion fish > ~/.config/fish/completions/meari.fish
  source <(meari completion bash)                          # in this shell alone
"""
VARIABLE = "_MEARI_COMPLETE"


@click.command("completion", short_help="Print a script for Tab completion.", epilog=EXAMPLES)
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def command(ctx: click.Context, shell: str, as_json: bool) -> None:
    """Print the script that completes verbs, options, names of bundles, configs and files in SHELL."""
    found = get_completion_class(shell)
    assert found is not None
    script = found(ctx.find_root().command, {}, "meari", VARIABLE).source()
    if as_json:
        echo_json({"shell": shell, "script": script})
    else:
        click.echo(script)

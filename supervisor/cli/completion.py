"""`andon completion SHELL`: the script that makes a shell complete commands, options and runs."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a shell completion script.

    \b
    bash:  andon completion bash > ~/.local/share/bash-completion/completions/andon
    zsh:   andon completion zsh > a directory of your fpath, as _andon
    fish:  andon completion fish > ~/.config/fish/completions/andon.fish
    """
    kind = get_completion_class(shell)
    if kind is None:  # a newer click may drop a shell
        raise click.UsageError(f"click does not know how to complete for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "andon", "_ANDON_COMPLETE").source())

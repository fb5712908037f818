"""The `chunkfarm` command: an operator's and a user's way to a running farm."""

from __future__ import annotations


def main() -> None:
    """Run the command with the arguments of this process."""
    # Not at the top: who only wants a part of the package need not load the terminal's libraries.
    from chunkfarm.cli.commands import chunkfarm

    chunkfarm(prog_name="chunkfarm")

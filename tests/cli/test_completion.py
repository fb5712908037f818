"""What the shell is offered at a TAB."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.shell_completion import ShellComplete
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.cli.commands import chunkfarm
from tests.cli.world import World


def commands(
    group: click.Group = chunkfarm, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, with the words before it."""
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


class CompletionTests(SynchronousTestCase):
    def make(self) -> World:
        return World(self.mktemp())

    def offered(self, *words: str, world: World | None = None) -> list[str]:
        """What is offered for the last of these words."""
        before: list[str] = []
        arguments: dict[str, object] = {}
        if world is not None:
            before, arguments = ["--config", str(world.config)], {"obj": world.surroundings()}
        asked = ShellComplete(chunkfarm, arguments, "chunkfarm", "_CHUNKFARM_COMPLETE")
        return [item.value for item in asked.get_completions([*before, *words[:-1]], words[-1])]

    def test_every_command(self) -> None:
        """Each command and sub-command is offered, however it was written into this program."""
        for path, command in commands():
            if isinstance(command, click.Group):
                assert self.offered(*path, "") == sorted(command.commands), path

    def test_every_option(self) -> None:
        """Each option of each command is offered, with both of its names."""
        for path, command in commands():
            options = {
                name
                for option in command.params
                if isinstance(option, click.Option)
                for name in (*option.opts, *option.secondary_opts)
                if name.startswith("--")
            }
            assert options <= set(self.offered(*path, "--")), path

    def test_servers(self) -> None:
        """Where a server is meant, those of config.ini are offered; `set` knows the farm too."""
        world = self.make()
        for command in ("drain", "forget"):
            assert self.offered(command, "", world=world) == ["alpha", "beta"]
            assert self.offered(command, "b", world=world) == ["beta"]
        assert self.offered("set", "", world=world) == ["farm", "alpha", "beta"]
        world.config.write_text("[nonsense")
        assert self.offered("drain", "", world=world) == []

    def test_stored_files(self) -> None:
        """Where a stored file is meant, the farm's are offered, that no shell can take for anything but a name."""
        world = self.make()
        (world.directory / "a").write_bytes(b"a")
        for name in ("home/a", "home/b.txt", "other/a", "home/$(reboot)", "home/x;y", "home/a b", "home/`x`", "home/*"):
            assert world.run("put", "a", name).exit_code == 0
        for command in ("get", "rm", "stat", "explain", "ls", "check"):
            assert self.offered(command, "home/", world=world) == ["home/a", "home/b.txt"], command
        assert self.offered("put", "a", "o", world=world) == ["other/a"]

    def test_nobody_answers(self) -> None:
        """Then nothing is offered, soon, and nothing is written between the words."""
        world = self.make()
        for server in world.servers.values():
            server.refuses = True
        before = world.clock.seconds()
        assert self.offered("get", "", world=world) == []
        assert world.clock.seconds() - before < 4
        for path in (world.directory / "data").iterdir():
            path.unlink()
        assert self.offered("get", "", world=world) == []

    def test_words(self) -> None:
        """Words of a choice, and prefixes of a watch."""
        assert self.offered("key", "add", "--role", "") == ["read", "write", "admin"]
        assert self.offered("watch", "f") == ["farm/", "files/"]

    def test_the_scripts(self) -> None:
        """For each shell there is a script that asks this command; another shell is a wrong use."""
        world = self.make()
        for shell in ("bash", "zsh", "fish"):
            result = world.run("completion", shell)
            assert result.exit_code == 0
            assert f"_CHUNKFARM_COMPLETE={shell}_complete" in result.stdout
        assert world.run("completion", "csh").exit_code == exits.USAGE

"""`chunkfarm ca`."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import authority, exits
from chunkfarm.rotation import Authorities
from tests.cli.world import World
from tests.test_rotation import NEW, OLD, make_rotation

BEFORE, AFTER = Authorities(signs=OLD.certificate_pem.decode()), Authorities(signs=NEW.certificate_pem.decode())
RUNS = Authorities(signs=OLD.certificate_pem.decode(), rotation=make_rotation(), waits_for=("beta", "gamma"))


class AuthorityTests(SynchronousTestCase):
    def make(self, *told: Authorities) -> World:
        world = World(self.mktemp())
        self.backend = world.servers["alpha"].backend
        self.backend.told_of_ca = list(told)
        return world

    def test_print(self) -> None:
        """The certificate goes to the standard output as it is; both while the farm changes its CA."""
        assert self.make(BEFORE).run("ca").stdout == OLD.certificate_pem.decode()
        assert self.make(RUNS).run("ca").stdout == (OLD.certificate_pem + NEW.certificate_pem).decode()

    def test_json(self) -> None:
        """The same for programs."""
        told = json.loads(self.make(RUNS).run("ca", "--json").stdout)
        assert told["step"] == "trusting"
        assert [(one["role"], one["fingerprint"]) for one in told["certificates"]] == [
            ("signs", OLD.fingerprint),
            ("next", NEW.fingerprint),
        ]

    def test_rotate(self) -> None:
        """It waits until all have the new one, and says for whom it waits meanwhile."""
        result = self.make(BEFORE, BEFORE, RUNS, AFTER).run("ca", "--rotate", "--yes")
        assert result.exit_code == 0, result.output
        assert self.backend.rotated == 1
        assert "trusting, waits for beta, gamma\n" in result.stderr
        assert f"was {OLD.fingerprint}, and is {NEW.fingerprint}" in result.stderr
        assert result.stdout == NEW.certificate_pem.decode()

    def test_not_without_a_word(self) -> None:
        """What it means is said before, and nothing is done without a yes."""
        world = self.make(BEFORE)
        self.patch(authority, "has_terminal", lambda: True)
        result = world.run("ca", "--rotate", input=b"n\n")
        assert result.exit_code == exits.FAILED and self.backend.rotated == 0
        assert "newer config.ini" in result.stderr

    def test_without_a_terminal(self) -> None:
        """Nobody is there who could answer: it says how to do without, and not what nobody reads."""
        world = self.make(BEFORE)
        result = world.run("ca", "--rotate")
        assert result.exit_code == exits.USAGE and "--yes" in result.stderr
        assert "newer config.ini" not in result.stderr and "Change it?" not in result.output
        assert (world.dialled, self.backend.rotated) == ([], 0)

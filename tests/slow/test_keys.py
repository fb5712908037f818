"""Keys on real servers: made, narrow, taken away, and made anew when all are lost."""

from __future__ import annotations

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.line_socket import LineSocket, Refused

pytestmark = pytest.mark.slow


def is_refused(link: LineSocket) -> bool:
    """Whether the key of a link is no longer good."""
    try:
        link.ask("STAT lab/x")
    except Refused as error:
        return error.code == "auth"
    return False


class KeysTests(FarmTestCase):
    def test_a_life(self) -> None:
        """A key for one folder writes there alone, on every server, until it is disabled; a lost one is replaced."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta")
        made = farm.cli("key", "add", "--role", "write", "--prefix", "lab/", "--label", "the lab", "--out", "lab.key")
        assert made.returncode == 0, made.stderr
        path = farm.directory / "lab.key"
        assert path.stat().st_mode & 0o777 == 0o600
        key_id, secret = path.read_text().split()
        (farm.directory / "x").write_text("x")

        def put(name: str, where: str) -> str:
            url = f"{farm.servers[name].url}/{where}"
            arguments = ("-u", f"{key_id}:{secret}", "-o", "out", "-w", "%{http_code}", "-T", "x", url)
            return farm.curl(*arguments, netrc=False).stdout.decode()

        # Delta holds no table, and asks a master; who has not heard of the key yet does not know it.
        for name in farm.servers:
            farm.wait_for(lambda name=name: put(name, "lab/x").startswith("20"), 10, f"{name} takes the key")  # type: ignore[misc]
            told = put(name, "home/x")
            assert told == "403", (name, told)
        with farm.link("delta") as link:
            assert link.ask(f"AUTH {key_id} {secret}").line.startswith("OK role=write prefix=lab/")
            assert farm.cli("key", "disable", key_id).returncode == 0
            farm.wait_for(lambda: is_refused(link), 5, "delta refuses the key")
        # The one key of an admin is gone, and the owner of a master's data directory makes another.
        (farm.directory / "alpha" / "admin.key").unlink()
        made = farm.cli("key", "add", "--role", "admin")
        assert made.returncode == 0 and len(made.stdout.split()) == 2, made


class InviteTests(FarmTestCase):
    def test_a_new_machine(self) -> None:
        """With a code and nothing else a server joins; it comes back without it, and nobody else joins with it."""
        farm = self.make_farm("alpha")
        made = farm.cli("invite", "--valid", "5m", "--out", "code")
        assert made.returncode == 0, made.stderr
        assert (farm.directory / "code").stat().st_mode & 0o777 == 0o600
        elsewhere = farm.directory / "elsewhere"
        for folder in (elsewhere, farm.directory / "thief"):
            folder.mkdir()
        code = f"@{farm.directory / 'code'}"
        farm.start("beta", "--join", code, "--host", "127.0.0.1", config=elsewhere / "config.ini")
        farm.wait_serving("beta")
        assert not (elsewhere / "farm.join").exists()
        farm.wait_for(lambda: "beta = " in (elsewhere / "config.ini").read_text(), 10, "the farm writes its list there")
        told = farm.fails_to_start("gamma", "--join", code, config=farm.directory / "thief" / "config.ini")
        assert "used by another server" in told
        farm.kill9("beta")
        farm.start("beta", config=elsewhere / "config.ini")
        farm.wait_serving("beta")

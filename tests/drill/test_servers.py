"""A server of a drill: its config.ini, its environment, its ports; full disks by a raised reserve; flipped bits."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config import read_config
from chunkfarm.drill import disks, flip_bit
from chunkfarm.drill.farm import FARM
from chunkfarm.drill.relay import OUTSIDE
from chunkfarm.drill.servers import INSIDE, Server, environment, last_words
from chunkfarm.drill.story import DrillFailed


class ServerTests(SynchronousTestCase):
    def make(self, host: str = INSIDE) -> Server:
        server = Server(None, "alpha", 23_000, Path(self.mktemp()).absolute(), host)
        server.write_config(FARM.format(chunksize="1M", replicas=3, more="repair_after = 6s"), "reserve = 1M")
        return server

    def test_nobody_else_reaches_it(self) -> None:
        """It listens on loopback alone, also where it tells the others of a relay."""
        config = read_config(self.make(OUTSIDE).config, {})
        assert config.server.host == OUTSIDE
        for place in (config.server.client, config.server.peer, config.server.files):
            assert place.name == INSIDE
        assert config.server.client.port == 23_000 and config.server.files.port == 23_002
        assert config.farm.repair_after == 6.0 and config.servers == ()

    def test_past_the_relay(self) -> None:
        """People reach it itself, so that a cut between servers does not cut them off."""
        listed = self.make(OUTSIDE).listed()
        assert (listed.host, listed.client, listed.files) == (INSIDE, 23_000, 23_002)

    def test_environment(self) -> None:
        """It knows nothing of the user's own farm, and takes no sockets of the command's."""
        own = {"HOME": "/root", "CHUNKFARM_CONFIG": "mine.ini", "LISTEN_FDS": "2", "NOTIFY_SOCKET": "/run/x"}
        given = environment(own)
        assert given.pop("PYTHONPATH") and given == {"HOME": "/root"}

    def test_full_by_its_reserve(self) -> None:
        """Without a disk of its own a server is made full, and given room again, by one option and a SIGHUP."""
        server = self.make()
        again: list[None] = []
        self.patch(server, "read_config_again", lambda: again.append(None))
        before = read_config(server.config, {}).server
        ways = disks.Reserves()
        ways.fill(server)
        assert read_config(server.config, {}).server.reserve == 1000 << 40
        ways.empty(server)
        assert read_config(server.config, {}).server == before
        assert len(again) == 2

    def test_who_may_not_mount(self) -> None:
        """Only root is given disks of his own, and only where a trial shows that they can be mounted."""
        folder = Path(self.mktemp())
        assert isinstance(disks.disks_for(folder, user=1000), disks.Reserves)

        def refuse(folder: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(disks, "mount", refuse)
        assert isinstance(disks.disks_for(folder, user=0), disks.Reserves)
        assert list(folder.iterdir()) == []

    def test_why_it_ended(self) -> None:
        """Of a server that ended by itself its own reason is told, not what its ports say afterwards."""
        log = "t [x.Farm#critical] chunkfarm: the disk is gone\nt [-] (TCP Port 23101 Closed)\n"
        assert last_words(log) == "chunkfarm: the disk is gone"
        assert last_words("t [-] Received SIGTERM") == "Received SIGTERM"
        assert last_words("") == ""

    def test_one_bit(self) -> None:
        """Exactly one bit of the stored content is changed."""
        data = Path(self.mktemp()).absolute()
        (data / "chunks" / "3f").mkdir(parents=True)
        content = bytes(range(200))
        path = data / "chunks" / "3f" / "3fa9.chunk"
        path.write_bytes(b"head" + content + b"trailer")
        flip_bit.find(data, content).flip()
        changed = [one ^ other for one, other in zip(path.read_bytes()[4:204], content, strict=True)]
        assert sorted(changed)[-2:] == [0, 0x10]
        with self.assertRaises(DrillFailed):
            flip_bit.find(data, content)

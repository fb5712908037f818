"""Listening sockets that a service manager passed on."""

from __future__ import annotations

import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config import parse_config
from chunkfarm.wire.inherited import inherited_ports, port_of, with_ports

CONFIG = "[farm]\nchunksize = 8M\n[servers]\n[server]\nhost = 127.0.0.1\nclient = {client}\nfiles = tcp:4102\n"


class InheritedTests(SynchronousTestCase):
    """A socket is recognised by its name or by the number of its port."""

    def passed(self) -> tuple[int, int]:
        """A listening socket as systemd would pass it: descriptor and port."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        return listening.fileno(), listening.getsockname()[1]

    def find(self, descriptors: dict[str, int]) -> object:
        return lambda reactor, name: descriptors[name]

    def test_by_number(self) -> None:
        """What was passed is found by the port that it listens on; what is no TCP socket is left alone."""
        descriptor, port = self.passed()
        pipe = os.pipe()
        for end in pipe:
            self.addCleanup(os.close, end)
        named = {"client": descriptor, "other": pipe[0]}
        environment = {"LISTEN_FDNAMES": "client:other:missing"}
        assert inherited_ports(environment, self.find(named)) == {port: descriptor}  # type: ignore[arg-type]
        assert inherited_ports({}, self.find(named)) == {}  # type: ignore[arg-type]

    def test_the_row_gets_its_port(self) -> None:
        """A port that `config.ini` gives by name has the number that others must be told."""
        descriptor, port = self.passed()
        config = parse_config(CONFIG.format(client="systemd:domain=INET:name=client"), "config.ini", {}, "alpha")
        seen = with_ports(config, self.find({"client": descriptor}))  # type: ignore[arg-type]
        assert (seen.server.client.port, seen.server.files.port) == (port, 4102)
        assert str(seen.server.client) == "systemd:domain=INET:name=client"

    def test_not_passed(self) -> None:
        """A name that was not passed keeps the port open, for whoever opens it to complain."""
        config = parse_config(CONFIG.format(client="systemd:domain=INET:name=client"), "config.ini", {}, "alpha")
        assert with_ports(config, self.find({})).server.client.port == 0  # type: ignore[arg-type]
        assert port_of(9999) is None

"""Limits of the ports: their options, their defaults, and what becomes of them where there are few descriptors."""

from __future__ import annotations

import re
import resource
from pathlib import Path

from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import chunkfarm
from chunkfarm.config import ConfigError, parse_config
from chunkfarm.descriptors import raise_descriptor_limit
from chunkfarm.limits import LEAST_SHARE, LIMIT_READERS, OWN_DESCRIPTORS, PORTS, Limits, check_limits, limit_text
from chunkfarm.wire.http1 import HEAD_BYTES_MAX
from chunkfarm.wire.lines import LINE_BYTES_MAX
from chunkfarm.wire.tls import HANDSHAKE_TIMEOUT

DOCUMENT = Path(chunkfarm.__file__).parents[1] / "docs" / "operations.md"


def read(*lines: str) -> Limits:
    return parse_config("\n".join(("[farm]", "[limits]", *lines)), "/etc/config.ini", {}, "alpha").limits


class OptionTests(SynchronousTestCase):
    def test_given(self) -> None:
        """An option in [limits] takes the units that other options take."""
        limits = read("files_head_time = 5s", "files_body_rate = 2K", "client_connections = 100", "client_reserved = 0")
        assert limits == Limits(files_head_time=5.0, files_body_rate=2048, client_connections=100, client_reserved=0)

    def test_every_option(self) -> None:
        """Each one can be written as it is, and as it is in the documentation, which names no other."""
        text = DOCUMENT.read_text()
        rows = dict(re.findall(r"^\| `([a-z_]+)` \| `([^`]+)` \|", text[text.index("| `[limits]`") :], re.MULTILINE))
        assert list(rows) == [attribute.name for attribute in fields(Limits)]
        for attribute in fields(Limits):
            default = getattr(Limits(), attribute.name)
            assert rows[attribute.name] == limit_text(attribute.metadata["kind"], default), attribute.name
            assert LIMIT_READERS[attribute.name](rows[attribute.name]) == attribute.default

    def test_mistakes(self) -> None:
        """What cannot be is refused with file, line and what was expected."""
        for line, sentence in (
            ("idle = 1m", "idle is not an option of [limits]: expected one of handshake_time client_connections"),
            ("files_idle = soon", "files_idle = soon: expected a duration such as 10s"),
            ("files_idle = 0s", "files_idle = 0s: expected 1s to 1d"),
            ("files_head = 1K", "files_head = 1K: expected 4K to 1M"),
            ("client_line = 8K", "client_line = 8K: expected 16K to 1M"),
            ("files_connections = 0", "files_connections = 0: expected a whole number from 1 to 1000000"),
            ("files_connections = many", "files_connections = many: expected a whole number"),
            ("client_connections = 200", "client_reserved is 256: expected less than client_connections, which is 200"),
            ("client_payload = 1G", "client_payload is 1G: expected no more than client_payloads, 256M"),
        ):
            error = self.assertRaises(ConfigError, read, line)
            assert str(error).startswith(f"/etc/config.ini, line 3: {sentence}"), error

    def test_the_same_elsewhere(self) -> None:
        """What this server's own links take is what ports take by default."""
        limits = Limits()
        assert limits.client_line == LINE_BYTES_MAX
        assert limits.files_head == HEAD_BYTES_MAX
        assert limits.handshake_time == HANDSHAKE_TIMEOUT
        assert check_limits(limits) is None


class DescriptorTests(SynchronousTestCase):
    def test_enough(self) -> None:
        """With the descriptors of the unit nothing is less."""
        assert Limits().within(65_536) == Limits()

    def test_few(self) -> None:
        """With the usual 1,024 there are fewer connections, and nobody finds the last descriptor taken."""
        limits = Limits().within(1024)
        assert limits.descriptors <= 1024
        assert all(getattr(limits, name) > 100 for name in PORTS)
        assert check_limits(limits) is None

    def test_any(self) -> None:
        """However few there are, the limits fit each other, and the descriptors if those are not absurd."""

        @given(st.integers(1, 70_000), st.integers(1, 10_000), st.integers(0, 10_000))
        def holds(descriptors: int, connections: int, reserved: int) -> None:
            limits = evolve(Limits(), files_connections=connections + 1, files_reserved=min(reserved, connections))
            fitting = limits.within(descriptors)
            assert check_limits(fitting) is None
            assert all(getattr(fitting, name) >= min(LEAST_SHARE, getattr(limits, name)) for name in PORTS)
            if descriptors >= 2 * OWN_DESCRIPTORS + len(PORTS) * LEAST_SHARE:
                assert fitting.descriptors <= descriptors

        holds()

    def test_raised(self) -> None:
        """A process takes what it may have."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        assert raise_descriptor_limit() >= before[0]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]

    def test_forbidden(self) -> None:
        """Where a sandbox forbids that, what there is must do."""

        def refuse(*arguments: object) -> None:
            raise ValueError("not allowed to raise maximum limit")

        self.patch(resource, "getrlimit", lambda kind: (1024, 4096))
        self.patch(resource, "setrlimit", refuse)
        assert raise_descriptor_limit() == 1024

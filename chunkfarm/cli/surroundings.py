"""What a command needs of the world: a reactor, links to servers, a key. Tests give their own."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chunkfarm.cli import screen
from chunkfarm.cli.exits import NobodyAnswered, NoKey, give_up, interrupted
from chunkfarm.cli.farm import Dial, Farm, Probe, in_order
from chunkfarm.cli.stopping import stop_on_hangup
from chunkfarm.cli.threads import RunInThread, in_thread
from chunkfarm.config import Config, Listed, read_config
from chunkfarm.errors import FarmError, Waiting
from chunkfarm.links.lines import LineClient, Reply, connect
from chunkfarm.model import Address
from chunkfarm.trust.contexts import Contexts
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.keys import ADMIN_KEY_FILE, KeyPair, read_key_file
from chunkfarm.trust.private import TrustError, write_private
from chunkfarm.trust.verify import chain_of, check_chain

KEY_VARIABLE = "CHUNKFARM_KEY_FILE"

GREET_TIMEOUT = 5.0
"""Seconds for a server to say HELLO: it answers that also while it waits."""

T = TypeVar("T")
Greet = Callable[[Listed], Deferred[Mapping[str, str]]]
Main = Callable[[Any], Deferred[Any]]


def react(main: Main) -> None:
    """Run `main(reactor)` under a reactor until it is done."""
    from twisted.internet import reactor, task

    running: Any = reactor
    # A step of the wall clock would else fire or freeze every timer.
    running.seconds = time.monotonic
    stop_on_hangup(running)
    # The outcome is told by whoever called.
    with contextlib.suppress(SystemExit):
        task.react(main, (), _reactor=running)


def check_new_file(path: str) -> None:
    """End the command if no new file can be made there: what the farm makes for it, and tells once, would be lost."""
    if os.path.lexists(path):
        raise click.UsageError(f"{path} exists already")
    try:
        write_private(path, b"", replace=False)
        os.unlink(path)
    except FarmError as error:
        give_up(error)


def find_key(config: Config, named: str | None, environment: Mapping[str, str], home: Path) -> KeyPair:
    """The key to show: the first that exists of `--key`, `$CHUNKFARM_KEY_FILE`, `admin.key` in the data
    directory and beside `config.ini`, and the user's own. Raises `NoKey`, or `TrustError` for one that is unfit.
    """
    told = named or environment.get(KEY_VARIABLE)
    if told:
        return read_key_file(told)
    places = (
        config.server.data / ADMIN_KEY_FILE,
        config.path.parent / ADMIN_KEY_FILE,
        home / ".config" / "chunkfarm" / "key",
    )
    for place in places:
        if os.access(place, os.R_OK):
            return read_key_file(place)
    looked = ", ".join(str(place) for place in places)
    raise NoKey(f"there is no key to show: give --key FILE or ${KEY_VARIABLE} (looked at {looked})")


def dial_with(reactor: Any, config: Config, key: KeyPair | Identity, timeout: float, now_ms: Callable[[], int]) -> Dial:
    """Opens links that are encrypted, whose server is of this farm, and that have shown the key.

    In place of a key it may be the identity of a server, whose certificate is shown.
    """
    tls = Contexts(key if isinstance(key, Identity) else None).client_factory()

    async def dial(server: Listed) -> LineClient:
        def check(transport: Any) -> str:
            return check_chain(chain_of(transport), config.farm.ca, server.id or server.host, now_ms())

        address = Address(server.host, server.client)
        client = await connect(reactor, address, tls=tls, check=check, timeout=min(timeout, 5.0))
        try:
            assert client.hello is not None
            state = client.hello.fields.get("state", "")
            if state not in ("serving", "readonly", "waiting"):
                # One that waits may have the table, and say itself what it can do.
                raise Waiting(f"it is {state}")
            if isinstance(key, KeyPair):
                await client.auth(key.id, key.secret)
        except BaseException:
            client.lose()
            raise
        return client

    return lambda server: Deferred.fromCoroutine(dial(server))


def probe_with(reactor: Any) -> Probe:
    """Asks a server HELLO, in the clear: it gives nothing away, and every server answers it."""

    async def probe(server: Listed) -> None:
        client = await connect(reactor, Address(server.host, server.client), tls=None)
        client.lose()

    return lambda server: Deferred.fromCoroutine(probe(server))


def greet_with(reactor: Any) -> Greet:
    """What a server says to HELLO, in the clear."""

    async def greet(server: Listed) -> Mapping[str, str]:
        client = await connect(reactor, Address(server.host, server.client), tls=None, timeout=GREET_TIMEOUT)
        try:
            assert client.hello is not None
            return client.hello.fields
        finally:
            client.lose()

    return lambda server: Deferred.fromCoroutine(greet(server))


@define
class Surroundings:
    """The world of one command. Options of the group are filled in by it."""

    react: Callable[[Main], None] = react
    dial_with: Callable[..., Dial] = dial_with
    probe_with: Callable[[Any], Probe] = probe_with
    greet_with: Callable[[Any], Greet] = greet_with
    in_thread: Callable[[Any], RunInThread] = in_thread
    environment: Mapping[str, str] = field(factory=lambda: os.environ)
    home: Path = field(factory=Path.home)
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    on_wait: Callable[[str], None] = screen.waits
    config_path: str = "config.ini"
    key_path: str | None = None
    timeout: float = 30.0

    def ask(self, line: str, payload: bytes = b"", *, certificate_will_do: bool = False, reads: bool = False) -> Reply:
        """One request to any server that can answer it; ends the command if none does."""

        async def work(farm: Farm, run_in_thread: RunInThread) -> Reply:
            return await farm.run(lambda link: link.request(line, (payload,)))

        return self.run(work, certificate_will_do=certificate_will_do, reads=reads)

    def _key(self, config: Config, certificate_will_do: bool) -> KeyPair | Identity:
        try:
            return find_key(config, self.key_path, self.environment, self.home)
        except NoKey:
            identity = Identity.load_any(config.server.data) if certificate_will_do else None
            if identity is None:
                raise
            return identity

    def run(
        self,
        work: Callable[[Farm, RunInThread], Awaitable[T]],
        *,
        certificate_will_do: bool = False,
        reads: bool = False,
    ) -> T:
        """Do some work with the farm, and return what it gives; ends the command if that fails.

        With `certificate_will_do` the certificate in the data directory is shown where there is no key;
        `reads` says that nothing is written.
        """
        try:
            config = read_config(self.config_path, {})
            if not config.servers:
                raise NobodyAnswered(f"{self.config_path} lists no servers yet: start one with `twistd chunkfarm`")
            key = self._key(config, certificate_will_do)
        except TrustError as error:
            give_up(NoKey(error.sentence))
        except FarmError as error:
            give_up(error)
        outcome: list[T | Failure] = []

        async def main(reactor: Any) -> None:
            dial = self.dial_with(reactor, config, key, self.timeout, self.now_ms)
            servers, probe = in_order(config.servers), self.probe_with(reactor)
            farm = Farm(reactor, servers, dial, probe, self.timeout, on_wait=self.on_wait, reads=reads)
            try:
                outcome.append(await work(farm, self.in_thread(reactor)))
            except Exception:
                outcome.append(Failure())
            finally:
                farm.hang_up()

        self.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
        if not outcome:
            interrupted()
        if not isinstance(outcome[0], Failure):
            return outcome[0]
        fault = outcome[0].value
        assert fault is not None
        if isinstance(fault, FarmError | OSError):
            give_up(fault)
        raise fault

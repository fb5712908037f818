"""Transactions on server rows and farm options."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import InvalidRequest, NotFound
from chunkfarm.model import FarmOptions, Server
from chunkfarm.settings import changed_farm, changed_server
from chunkfarm.table.interface import Compare, Conflict, Put
from chunkfarm.table.registry import Change, Registered, Registry
from tests.builders import make_server, server_id
from tests.memory_table import MemoryTable


class RegistryTests(SynchronousTestCase):
    """Joining, coming back, changing: each one transaction, and config.ini's generation moves with it."""

    def make_registry(self, founded: bool = True) -> Registry:
        self.table = MemoryTable()
        self.time = 5_000
        registry = Registry(self.table, lambda: self.time)
        if founded:
            self.successResultOf(registry.found(make_server(1), FarmOptions(name="lab"), (Put(b"secret/x", b"y"),)))
        return registry

    def state(self, registry: Registry) -> Registered:
        registered = self.successResultOf(registry.read())
        assert isinstance(registered, Registered)
        return registered

    def test_founding(self) -> None:
        """The first transaction holds the options, the first server, generation 1 and the secrets."""
        registry = self.make_registry()
        after = self.state(registry)
        assert after.options.name == "lab"
        assert after.generation == 1
        assert list(after.servers) == [server_id(1)]
        assert after.servers[server_id(1)].seniority > 0
        assert self.successResultOf(self.table.read(b"secret/")).rows[0].value == b"y"

    def test_joining_at_the_end(self) -> None:
        """Whoever joins later is junior, and the generation grows."""
        registry = self.make_registry()
        joined = self.successResultOf(registry.join(make_server(2)))
        after = self.state(registry)
        assert after.generation == 2
        assert joined.seniority == after.servers[server_id(2)].seniority > after.servers[server_id(1)].seniority

    def test_a_returning_server_goes_to_the_end(self) -> None:
        """A process that starts anew joins at the end of the line, and keeps its name."""
        registry = self.make_registry()
        self.successResultOf(registry.join(make_server(2)))
        back = self.successResultOf(registry.join(make_server(1, name="other", incarnation="new")))
        after = self.state(registry).servers
        assert back.name == "s1"
        assert after[server_id(1)].seniority > after[server_id(2)].seniority

    def test_timestamps_never_decrease(self) -> None:
        """A clock that goes back does not reorder what people see."""
        registry = self.make_registry()
        self.time = 1
        joined = self.successResultOf(registry.join(make_server(2)))
        assert joined.joined == 5_000

    def test_names_are_made_unique(self) -> None:
        """Two machines with one host name become `box` and `box-2`."""
        registry = self.make_registry()
        names = [self.successResultOf(registry.join(make_server(number, name="box"))).name for number in (2, 3, 4)]
        assert names == ["box", "box-2", "box-3"]

    def test_a_new_disk_on_the_address_of_a_dead_server(self) -> None:
        """A new id on the host and ports of a row that is down replaces that row."""
        registry = self.make_registry()
        old = self.successResultOf(registry.join(make_server(2)))
        new = make_server(3, host=old.host, peer=old.peer)
        self.successResultOf(registry.join(new))
        assert set(self.state(registry).servers) == {server_id(1), server_id(2), server_id(3)}
        self.successResultOf(registry.enter_state([server_id(2)], "down", only_from=("up",)))
        self.successResultOf(registry.join(new))
        assert set(self.state(registry).servers) == {server_id(1), server_id(3)}

    def test_disks_that_changed_places(self) -> None:
        """A known server that moves to the address of one that is down does not take its row: that one moved too."""
        registry = self.make_registry()
        other = self.successResultOf(registry.join(make_server(2)))
        moving = self.successResultOf(registry.join(make_server(3)))
        self.successResultOf(registry.enter_state([other.id], "down", only_from=("up",)))
        self.successResultOf(registry.join(make_server(3, host=other.host, peer=other.peer)))
        back = self.successResultOf(registry.join(make_server(2, host=moving.host, peer=moving.peer)))
        after = self.state(registry).servers
        assert set(after) == {server_id(1), server_id(2), server_id(3)}
        assert after[back.id].peer_address == moving.peer_address
        assert after[moving.id].peer_address == other.peer_address

    def test_a_restarted_farm_keeps_its_order(self) -> None:
        """Those who resume together keep their places, with their new ports and incarnations."""
        registry = self.make_registry()
        self.successResultOf(registry.join(make_server(2)))
        before = self.state(registry).servers
        back = [make_server(2, incarnation="again", client=9000), make_server(1, incarnation="again")]
        self.successResultOf(registry.resume(back))
        after = self.state(registry).servers
        assert {id: row.seniority for id, row in after.items()} == {id: row.seniority for id, row in before.items()}
        assert after[server_id(2)].client == 9000
        assert {row.incarnation for row in after.values()} == {"again"}

    def test_many_keep_their_places(self) -> None:
        """Also those whose rows are long, of which one transaction holds few."""
        registry = self.make_registry()
        for number in range(2, 101):
            self.successResultOf(registry.join(make_server(number)))
        before = self.state(registry).servers
        again = (make_server(number, incarnation="again", note="n" * 500) for number in range(1, 101))
        self.successResultOf(registry.resume(again))
        after = self.state(registry).servers
        assert {row.incarnation for row in after.values()} == {"again"}
        assert {id: row.seniority for id, row in after.items()} == {id: row.seniority for id, row in before.items()}

    def test_free_space_does_not_move_the_generation(self) -> None:
        """What config.ini does not show is no reason to rewrite it."""
        registry = self.make_registry()
        self.successResultOf(registry.measure({server_id(1): {"free": 7}, server_id(9): {"free": 8}}))
        after = self.state(registry)
        assert after.servers[server_id(1)].free == 7
        assert after.generation == 1

    def test_states_change_only_from_where_they_may(self) -> None:
        """A server that left meanwhile is not marked down again."""
        registry = self.make_registry()
        self.successResultOf(registry.enter_state([server_id(1)], "down", only_from=("draining",)))
        assert self.state(registry).servers[server_id(1)].state == "up"
        assert self.state(registry).generation == 1

    def test_what_is_emptied_stays_so(self) -> None:
        """A server that is emptied is so again when it is back, started anew, or the whole farm is."""
        registry = self.make_registry()
        self.successResultOf(
            registry.set_server("s1", lambda row, before: evolve(row, draining=True, state="draining"))
        )

        def state() -> tuple[str, bool]:
            row = self.state(registry).servers[server_id(1)]
            return row.state, row.draining

        self.successResultOf(registry.enter_state([server_id(1)], "down", only_from=("draining",)))
        assert state() == ("down", True)
        self.successResultOf(registry.enter_state([server_id(1)], "up", only_from=("down",)))
        assert state() == ("draining", True)
        self.successResultOf(registry.join(make_server(1, incarnation="again")))
        assert state() == ("draining", True)
        since = self.state(registry).servers[server_id(1)].since
        self.time += 1000
        self.successResultOf(registry.resume([make_server(1, incarnation="again2")]))
        assert state() == ("draining", True) and self.state(registry).servers[server_id(1)].since == since

    def test_a_change_in_between_is_not_lost(self) -> None:
        """Two who change the same row at once both succeed, one after the other."""
        registry = self.make_registry()
        other = Registry(self.table, lambda: self.time)
        interfered: list[Server] = []

        def change(row: Server, before: Registered) -> Server:
            if not interfered:
                interfered.append(self.successResultOf(other.join(make_server(2))))
            return evolve(row, zone="attic")

        self.successResultOf(registry.set_server("s1", change))
        after = self.state(registry)
        assert after.servers[server_id(1)].zone == "attic"
        assert server_id(2) in after.servers

    def test_what_can_never_hold_is_not_tried_again(self) -> None:
        """Of two servers that use one code at once the second is told so, and holds up no other change."""
        registry = self.make_registry()
        code = Compare(b"invites/x", "==", self.table.put(b"invites/x", b"good"))
        self.table.put(b"invites/x", b"used")
        tried = len(self.table.transactions)
        failure = self.failureResultOf(registry.join(make_server(2), compares=(code,)), Conflict)
        assert b"used" in [row.value for row in failure.value.rows]
        assert len(self.table.transactions) - tried <= 1
        assert server_id(2) not in self.state(registry).servers

    def test_what_is_read_anew_may_hold(self) -> None:
        """Rows that change while all are set are compared as they are the next time."""
        registry = self.make_registry()
        self.successResultOf(registry.join(make_server(2)))
        values = [b"s1 again", b"s1 once more"]

        def change_another(operations: object) -> None:
            if values:
                row = evolve(self.state(registry).servers[server_id(1)], note=values.pop().decode())
                self.table.put(row.key, row.to_value())

        self.table.before_transact = change_another
        changed = registry.set_servers(lambda before: (evolve(before.servers[server_id(2)], weight=7),))
        assert self.successResultOf(changed) == 1 and values == []
        assert self.state(registry).servers[server_id(2)].weight == 7

    def test_nothing_to_do_commits_nothing(self) -> None:
        """An edit that changes nothing leaves the revision alone."""
        registry = self.make_registry()
        revision = self.table.revision
        self.successResultOf(registry.edit(lambda before: Change(put=tuple(before.servers.values()))))
        assert self.table.revision == revision

    def test_an_unknown_server(self) -> None:
        """Setting a field of nobody is `notfound`."""
        registry = self.make_registry()
        self.failureResultOf(registry.set_server("nobody", lambda row, before: row), NotFound)

    def test_farm_options(self) -> None:
        """A farm option is changed in the table, and the generation says so."""
        registry = self.make_registry()
        options: Deferred[FarmOptions] = registry.set_farm(lambda old: changed_farm(old, {"replicas": "2"}))
        assert self.successResultOf(options).replicas == 2
        assert self.state(registry).generation == 2

    def test_a_bad_option_changes_nothing(self) -> None:
        """A value out of range is refused with a sentence."""
        registry = self.make_registry()
        failed = registry.set_farm(lambda old: changed_farm(old, {"replicas": "none"}))
        assert "replicas" in str(self.failureResultOf(failed, InvalidRequest).value)
        assert self.state(registry).generation == 1


class SettingsTests(SynchronousTestCase):
    """What an admin may set."""

    def refusal(self, fields: dict[str, str]) -> str:
        with self.assertRaises(InvalidRequest) as caught:
            changed_server(make_server(1), fields, {"taken"})
        return str(caught.exception)

    def test_fields_are_read_and_set(self) -> None:
        """Each settable field arrives as what it means."""
        row = changed_server(make_server(1), {"weight": "0", "master": "no", "zone": "rack7", "name": "new"}, set())
        assert (row.weight, row.master, row.zone, row.name) == (0, False, "rack7", "new")

    def test_a_name_that_two_have(self) -> None:
        """Whatever else is wrong in the table, another field can be set."""
        assert changed_server(make_server(1, name="taken"), {"weight": "3"}, {"taken"}).weight == 3

    def test_refusals(self) -> None:
        """A field that is not settable, a bad value and a taken name each get their sentence."""
        assert "state cannot be set" in self.refusal({"state": "down"})
        assert "weight=-1" in self.refusal({"weight": "-1"})
        assert "taken" in self.refusal({"name": "taken"})

    def test_what_only_the_farm_writes(self) -> None:
        """Nobody sets the farm's id."""
        with self.assertRaises(InvalidRequest):
            changed_farm(FarmOptions(), {"id": "0" * 32})

    def test_options_that_contradict_each_other(self) -> None:
        """To forget a server before its chunks are copied is refused."""
        with self.assertRaises(InvalidRequest):
            changed_farm(FarmOptions(forget_after=60.0), {"repair_after": "61s"})

    def test_a_short_time_of_repair(self) -> None:
        """`repair_after` may be set alone, also to less than `master_grace` is by default."""
        assert changed_farm(FarmOptions(), {"repair_after": "5s"}).repair_after == 5.0

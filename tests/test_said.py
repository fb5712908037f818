"""What servers say of themselves, and what of it is believed."""

from __future__ import annotations

import json
from typing import Any

from attrs import asdict
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config_render import render
from chunkfarm.config_text import parse_config
from chunkfarm.config_values import read_host
from chunkfarm.membership import succession
from chunkfarm.model import Drain, FarmOptions, Server
from chunkfarm.risk import Exposed, Risk
from chunkfarm.said import NOTE_LENGTH_MAX, TIME_MAX, report_of, row_of, told, unheld_of
from chunkfarm.table.duties import Report
from chunkfarm.unheld import Unheld
from tests.builders import make_server, server_id

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
FIELDS = sorted(asdict(make_server(1)))


def text_of(**changes: Any) -> str:
    return json.dumps({**asdict(make_server(9)), **changes})


class RowTests(SynchronousTestCase):
    def test_a_good_row(self) -> None:
        """What a server says of itself is taken as it stands."""
        row = row_of(text_of(note="cannot write /etc/x", zone="rack 7".replace(" ", "-")))
        assert (row.name, row.host, row.zone, row.note) == ("s9", "127.0.0.1", "rack-7", "cannot write /etc/x")

    def test_a_zone_that_is_the_host(self) -> None:
        """A server without a zone gives its host as one, however long the name is."""
        host = ".".join(["x" * 60] * 3)
        assert row_of(text_of(host=host, zone=host)).zone == host

    def test_its_place_is_not_its_own_to_say(self) -> None:
        """Seniority, times and state that a server claims are left out."""
        row = row_of(text_of(seniority=1, joined=1, since=1, state="down"))
        assert (row.seniority, row.joined, row.since, row.state) == (0, 0, 0, "up")

    def test_rows_that_would_harm_others(self) -> None:
        """Each of these would break config.ini, a line of the protocol, or the arithmetic of some server."""
        for changes in (
            {"host": "10.0.0.1 4100 4101 4102 up x\n[server]\ndata = /"},
            {"host": "fe80::1%eth0\n[farm]"},
            {"host": "fe80::1%a b"},
            {"host": ["10.0.0.1"]},
            {"peer": True},
            {"client": 4100.0},
            {"files": 2**70},
            {"weight": float("nan")},
            {"weight": 10**40},
            {"weight": True},
            {"zone": ["a"]},
            {"zone": "a b"},
            {"zone": "x" * 100},
            {"free": "much"},
            {"used": -1},
            {"full": 1},
            {"master": "no"},
            {"incarnation": 7},
            {"version": "1\n2"},
            {"version": "x" * 1000},
            {"note": 5},
            {"name": "a b"},
            {"id": "../x"},
        ):
            with self.assertRaises(ValueError, msg=str(changes)):
                row_of(text_of(**changes))

    def test_what_is_no_row(self) -> None:
        """Nonsense is refused as such, however deeply nested."""
        for text in ("", "[]", "7", "{}", "[" * 4000, '{"id": 1}', text_of(note="x" * 5000), "\ud800"):
            with self.assertRaises(ValueError, msg=text[:20]):
                row_of(text)

    def test_a_note_is_one_line(self) -> None:
        """Line breaks would make two lines of a log, and surrogates cannot be written at all."""
        assert row_of(text_of(note="a\nb\ud800c")).note == "a b c"
        assert len(report_of({"incarnation": "x", "note": "n" * 9000}).note) == NOTE_LENGTH_MAX

    @given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3))
    def test_what_passes_harms_nobody(self, changes: dict[str, Any]) -> None:
        """Whatever is said, it is refused, or config.ini can be written and read again with it."""
        try:
            row = row_of(text_of(**changes))
        except ValueError:
            return
        written = render("", FarmOptions(id=server_id(1), ca="sha256:" + "0" * 64), 1, [row, make_server(1)])
        assert {listed.id for listed in parse_config(written, "config.ini").servers} == {row.id, server_id(1)}
        assert len(succession([row, make_server(1)])) == 2
        assert Server.from_value(row.to_value()) == row


class ReportTests(SynchronousTestCase):
    def test_a_good_report(self) -> None:
        """Unknown fields are of a newer version, and are passed over."""
        report = report_of({"incarnation": "run1", "free": 5, "leaving": True, "unheard": [1]})
        assert (report.incarnation, report.free, report.leaving) == ("run1", 5, True)

    def test_reports_that_are_none(self) -> None:
        """The first reckons with every field of a report, each round anew."""
        for said in (
            {},
            {"incarnation": 1},
            {"incarnation": "x", "free": "much"},
            {"incarnation": "x", "free": -1},
            {"incarnation": "x", "used": float("nan")},
            {"incarnation": "x", "full": "yes"},
            {"incarnation": "x", "revision": True},
            {"incarnation": "x", "note": None},
            {"incarnation": "x", "leaving": 1},
        ):
            with self.assertRaises(ValueError, msg=str(said)):
                report_of(said)

    def test_what_is_told(self) -> None:
        """A server at rest says little, and is understood: that nothing can be lost is not that nobody has looked."""
        at_rest = Report(incarnation="x", free=5, risk=Risk())
        assert told(at_rest) == {"incarnation": "x", "free": 5, "risk": {"sets": ()}}
        assert told(Report(incarnation="x")) == {"incarnation": "x"}
        risk = Risk(sets=(Exposed((server_id(1),), 3, 0),), unknown=1)
        busy = Report(incarnation="x", short=3, leaving=True, note="n", risk=risk, drain=Drain(left=2, paused="why"))
        for report in (at_rest, busy, Report(incarnation="x"), Report(incarnation="x", drain=Drain(), risk=Risk())):
            assert report_of(json.loads(json.dumps(told(report)))) == report

    def test_what_is_lost(self) -> None:
        """What the first says of chunks that no server has is read as it is told, if it is what it should be."""
        for unheld in (Unheld(chunks=0), Unheld(chunks=3, at_least=True, since=5, looked=6)):
            assert unheld_of(json.loads(json.dumps(told(unheld)))) == unheld
        good = {"chunks": 1}
        wrong: tuple[Any, ...] = (
            5,
            [],
            {},
            {"chunks": True},
            good | {"chunks": -1},
            good | {"at_least": 1},
            good | {"since": "x"},
            good | {"since": TIME_MAX + 1},
            good | {"looked": TIME_MAX + 1},
        )
        for said in wrong:
            self.assertRaises(ValueError, unheld_of, said)

    def test_what_can_be_lost(self) -> None:
        """What a server says of copies is checked like all else, and what the first says is read alike."""
        risk = Risk(sets=(Exposed((server_id(1), server_id(2)), 3, 5),), more_sets=1, unknown=1)
        assert report_of({"incarnation": "x", "risk": json.loads(json.dumps(asdict(risk)))}).risk == risk
        good = {"holders": [server_id(1)], "chunks": 1, "bytes": 1}
        wrong: tuple[Any, ...] = (
            1,
            {},
            {"sets": {}},
            {"sets": [good] * 65},
            {"sets": [1]},
            {"sets": [good | {"holders": []}]},
            {"sets": [good | {"holders": "ab"}]},
            {"sets": [good | {"holders": ["alpha"]}]},
            {"sets": [good | {"holders": [server_id(1), server_id(2), server_id(3)]}]},
            {"sets": [good | {"chunks": -1}]},
            {"sets": [good | {"bytes": 2**63}]},
            {"sets": [good | {"bytes": True}]},
            {"sets": [{"holders": [server_id(1)]}]},
            {"sets": [], "unknown": "1"},
        )
        for said in wrong:
            with self.assertRaises(ValueError, msg=str(said)):
                report_of({"incarnation": "x", "risk": said})


class HostTests(SynchronousTestCase):
    def test_the_zone_of_an_address(self) -> None:
        """An IPv6 address may name an interface, and nothing else behind the percent sign."""
        assert read_host("fe80::1%eth0") == "fe80::1%eth0"
        for text in ("fe80::1%eth0 4100", "fe80::1%a\nb", "fe80::1%" + "x" * 100, "fe80::1%;"):
            with self.assertRaises(ValueError, msg=text):
                read_host(text)

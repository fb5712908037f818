"""What can be lost with one disk or two: the sums, against counting everything anew."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.at_risk import AtRisk
from chunkfarm.model import digest_of
from chunkfarm.risk import COUNT_MAX, Exposed, FilesOf, LostFiles, Risk, of_down, pairs, ranked, summed
from tests.builders import make_server, server_id

A, B, C = (server_id(number) for number in (1, 2, 3))
SERVERS = (make_server(1, name="alpha"), make_server(2, name="beta"), make_server(3, name="gamma"))
DIGESTS = [digest_of(bytes([number])) for number in range(8)]
# Two that begin alike, which share a part of the arrays.
DIGESTS += [DIGESTS[0][:1] + digest[1:] for digest in DIGESTS[1:3]]
STEPS = st.lists(
    st.tuples(st.sampled_from(DIGESTS), st.integers(1, 2**26), st.sets(st.sampled_from([A, B, C]), max_size=3)),
    max_size=40,
)


class AtRiskTests(SynchronousTestCase):
    @settings(max_examples=60)
    @given(STEPS, st.sets(st.sampled_from(DIGESTS)))
    def test_as_counted_anew(self, steps: list[tuple[bytes, int, set[str]]], stay: set[bytes]) -> None:
        """Whatever is noted in whatever order, the sums are those of what was noted last."""
        at_risk, last = AtRisk(), dict[bytes, tuple[int, set[str]]]()
        for digest, length, holders in steps:
            at_risk.note(digest, length, holders)
            last[digest] = length, holders
        for prefix in range(256):
            at_risk.keep(prefix, [digest for digest in stay if digest[0] == prefix])
        totals: dict[tuple[str, ...], tuple[int, int]] = {}
        for digest, (length, holders) in last.items():
            if digest in stay and 0 < len(holders) < 3:
                chunks, size = totals.get(tuple(sorted(holders)), (0, 0))
                totals[tuple(sorted(holders))] = chunks + 1, size + length
        risk = at_risk.risk(looked=True)
        assert {one.holders: (one.chunks, one.bytes) for one in risk.sets} == totals
        assert risk == ranked(totals, 64)
        assert len(at_risk) == sum(chunks for chunks, _ in totals.values())
        for digest in DIGESTS:
            at_risk.forget(digest)
        assert at_risk.risk(looked=False) == Risk(unknown=1) and not len(at_risk)

    def test_many_sets(self) -> None:
        """Of more pairs than fit the largest are named, and the others are one sum."""
        at_risk = AtRisk()
        for number in range(100):
            at_risk.note(digest_of(bytes([number])), 1000 + number, [A, server_id(number + 2)])
        risk = at_risk.risk(looked=True)
        assert len(risk.sets) == 64 and risk.sets[0] == Exposed(tuple(sorted([A, server_id(101)])), 1, 1099)
        assert (risk.more_sets, risk.more_chunks, risk.more_bytes) == (36, 36, sum(range(1000, 1036)))


class SumTests(SynchronousTestCase):
    def test_sum(self) -> None:
        """A pair is told by both of it; single servers come first; who has told nothing is counted."""
        told = [
            Risk(sets=(Exposed((A,), 1, 5), Exposed((A, B), 2, 70))),
            Risk(sets=(Exposed((A, B), 3, 30), Exposed((B, C), 1, 99)), more_sets=1, more_chunks=2, more_bytes=3),
            Risk(unknown=1),
            None,
        ]
        assert summed(told) == Risk(
            sets=(Exposed((A,), 1, 5), Exposed((A, B), 5, 100), Exposed((B, C), 1, 99)),
            more_sets=1,
            more_chunks=2,
            more_bytes=3,
            unknown=2,
        )
        assert summed(told, limit=1) == Risk(
            sets=(Exposed((A,), 1, 5),), more_sets=3, more_chunks=8, more_bytes=202, unknown=2
        )

    def test_a_server_that_tells_nonsense(self) -> None:
        """No sum grows beyond what others read."""
        nonsense = Risk(sets=(Exposed((A,), COUNT_MAX, COUNT_MAX),), more_chunks=COUNT_MAX, unknown=COUNT_MAX)
        total = summed([nonsense, nonsense])
        assert total.sets == (Exposed((A,), COUNT_MAX, COUNT_MAX),)
        assert total.more_chunks == total.unknown == COUNT_MAX

    def test_last_words(self) -> None:
        """Of a server that is down counts what others that are up do not have."""
        risk = Risk(sets=(Exposed((A,), 1, 1), Exposed((A, B), 2, 2), Exposed((A, C), 3, 3)), unknown=1)
        assert of_down(risk, {A, C}) == Risk(sets=(Exposed((A,), 1, 1), Exposed((A, C), 3, 3)))

    def test_status(self) -> None:
        """STATUS says in words that nothing can be lost, or names the servers; it says so if it is not known."""
        nothing = dict(pairs(Risk(), SERVERS))
        assert nothing["can-be-lost"] == "nothing with any one server, and nothing with any two"
        assert (nothing["one-copy"], nothing["two-copies-bytes"]) == ("0", "0") and "lost-with" not in nothing
        risk = Risk(sets=(Exposed((C,), 1, 5), Exposed((A, B), 2, 7)), more_sets=1, more_chunks=2, more_bytes=3)
        told = pairs(risk, SERVERS)
        assert [value for name, value in told if name == "lost-with"] == [
            "gamma chunks=1 bytes=5",
            "alpha,beta chunks=2 bytes=7",
        ]
        assert dict(told)["can-be-lost"] == "chunks with one server, and more with two"
        assert dict(told)["lost-with-others"] == "sets=1 chunks=2 bytes=3"
        assert (dict(told)["one-copy-bytes"], dict(told)["two-copies"]) == ("5", "2")
        files = LostFiles(sets=(FilesOf((A, B), 1, True),), one=0, one_at_least=True, two=1)
        told = pairs(risk, SERVERS, files)
        assert [value for name, value in told if name == "lost-with"] == [
            "gamma chunks=1 bytes=5",
            "alpha,beta chunks=2 bytes=7 files=1+",
        ]
        assert dict(told)["can-be-lost"] == "chunks of at least 0 files with one server, and of 1 file with two"
        assert (dict(told)["one-copy-files"], dict(told)["two-copies-files"]) == ("0+", "1")
        doubt = dict(pairs(Risk(unknown=2), SERVERS))
        assert doubt["can-be-lost"] == "not known yet: 2 servers have yet to look at all chunks"
        assert doubt["risk-unknown-servers"] == "2"
        assert pairs(None, ()) == [("can-be-lost", "not known: the first has not told it")]

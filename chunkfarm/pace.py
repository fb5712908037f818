"""How often servers report to the first, and what silence means, by how many servers there are. Pure.

All servers count the same rows, so that nobody has to be told.
"""

from __future__ import annotations

INTERVAL = 1.0
"""Seconds between looks of a server at who leads, and between its reports in all but the largest farms: often enough to
miss a server within seconds."""
SERVERS_A_SECOND = 500
"""Reports for a first to answer, and half as many more before all slow down: each takes it a tenth of a millisecond,
and nine tenths of a core are for other things."""
LOST_REPORTS = 3
"""Reports in a row without an answer until a server calls itself read-only: two may be lost by chance."""
DOWN_REPORTS = 5
"""Reports in a row that did not come until a server counts as down."""


def report_interval(servers: int) -> float:
    """Seconds between two reports of one of so many servers: 1 for up to 750 of them, and 2 for a thousand."""
    return INTERVAL * max(1, int(servers / SERVERS_A_SECOND + 0.5))


def lost_after(servers: int) -> float:
    """Seconds without an answered report until a server calls itself read-only: 3, if there are not very many."""
    return LOST_REPORTS * report_interval(servers)


def down_after(servers: int) -> float:
    """Seconds of silence until one of so many servers counts as down: 5, if there are not very many."""
    return DOWN_REPORTS * report_interval(servers)

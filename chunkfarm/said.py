"""What another server says of itself, checked field by field before it goes into a row. Pure.

A row is read by every server, and stands in every `config.ini`: one wrong field would harm them all. Whoever
holds a certificate of the farm may be broken, or of another version, so nothing of it is taken on trust.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import asdict, evolve, fields

from chunkfarm.config_values import WEIGHT_MAX, read_host, read_port, read_server_name, read_weight, read_zone
from chunkfarm.errors import InvalidRequest
from chunkfarm.model import (
    GENERATION_KEY,
    OPTIONS_KEY,
    SERVERS,
    Drain,
    FarmOptions,
    Server,
    check_file_name,
    check_server_id,
)
from chunkfarm.risk import COPIES_MAX, SUMMED_MAX, TOLD_MAX, Exposed, FilesOf, LostFiles, Risk
from chunkfarm.table.duties import Report
from chunkfarm.unheld import Unheld

ROW_CHARACTERS_MAX = 4096
"""A row takes some 500; the largest that passes still lets ten of them into one transaction."""
BYTES_MAX = 2**63 - 1
"""Of a disk, and every count: what fits 64 bits everywhere."""
TIME_MAX = 253_402_300_799_999
"""In ms since 1970: the last moment that can be shown as a date."""
NOTE_LENGTH_MAX = 500
"""Characters of a note: a sentence with a path in it."""

_NUMBERS = (
    frozenset(["client", "peer", "files", "weight", "free", "used", "revision", "joined", "seniority", "since"])
    | {"chunks", "left", "bytes_left", "rate", "bytes", "more_sets", "more_chunks", "more_bytes", "unknown", "in_files"}
    | {"short", "missed", "looked"}
)
_FLAGS = frozenset(
    ["master", "full", "leaving", "given_up", "table_full", "draining", "drained", "counted", "secrets", "at_least"]
)
_WORD = re.compile(r"[!-~]{0,64}\Z")
"""Versions and incarnations: what needs no quoting anywhere."""
_COUNT = re.compile(rb"[0-9]{1,18}\Z")
_DEFAULTS = FarmOptions()
_FINGERPRINT = re.compile(r"(sha256:[0-9a-f]{64})?\Z")
_REPORT_FIELDS = tuple(attribute.name for attribute in fields(Report))
_RISK_NUMBERS = tuple(attribute.name for attribute in fields(Risk) if attribute.name != "sets")
_DRAIN_FIELDS = tuple(attribute.name for attribute in fields(Drain))
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]+")


def row_of(text: str) -> Server:
    """The row that a server gives of itself; raises `ValueError` for anything that may not stand in the table.

    Its place in the line, its state, when it joined and its key are for the farm to say, so they are left out.
    """
    if len(text) > ROW_CHARACTERS_MAX:
        raise ValueError("it is too long")
    try:
        given = json.loads(text)
        row = Server.from_value(text.encode()) if isinstance(given, dict) else None
    except (TypeError, RecursionError) as error:
        raise ValueError(f"it is no row: {error}") from error
    if row is None:
        raise ValueError("it is no row")
    for name, value in asdict(row).items():
        _check(name, value)
    return evolve(
        row,
        joined=0,
        seniority=0,
        state="up",
        since=0,
        note=note_of(row.note),
        given_up=False,
        draining=False,
        public_key="",
        secrets=row.master,
    )


def report_of(told: Mapping[str, Any]) -> Report:
    """A report; raises `ValueError` for what is none. Fields that are not known here are passed over."""
    try:
        report = Report(**{name: value for name, value in told.items() if name in _REPORT_FIELDS})
    except TypeError as error:
        raise ValueError(str(error)) from error
    for name in _REPORT_FIELDS:
        if name not in ("drain", "risk"):
            _check(name, getattr(report, name))
    if report.drain is not None:
        report = evolve(report, drain=drain_of(report.drain))
    if report.risk is not None:
        report = evolve(report, risk=risk_of(report.risk))
    return evolve(report, note=note_of(report.note)) if report.note else report


def told(record: Report | Drain | Risk | Unheld) -> dict[str, Any]:
    """A record as it is told to others. What is as it is by default is left out: a report comes every second."""
    return asdict(record, filter=lambda attribute, value: value != attribute.default or attribute.name == "sets")


def drain_of(told: Any) -> Drain:
    """How far a server is that is emptied; raises `ValueError` for what does not say that."""
    if not isinstance(told, dict):
        raise ValueError("drain is not what it should be")
    drain = Drain(**{name: value for name, value in told.items() if name in _DRAIN_FIELDS})
    for name in _DRAIN_FIELDS:
        _check(name, getattr(drain, name))
    return evolve(drain, paused=note_of(drain.paused))


def risk_of(told: Any) -> Risk:
    """What can be lost, as a server or the first tells it; raises `ValueError` for what does not say that."""
    if not isinstance(told, dict) or not isinstance(told.get("sets"), list) or len(told["sets"]) > TOLD_MAX:
        raise ValueError("risk is not what it should be")
    numbers = {name: told.get(name, 0) for name in _RISK_NUMBERS}
    for name, number in numbers.items():
        _check(name, number)
    return Risk(sets=tuple(map(_exposed, told["sets"])), **numbers)


def unheld_of(told: Any) -> Unheld:
    """How many chunks no server has, as the first tells it; raises `ValueError` for what does not say that."""
    if not isinstance(told, dict):
        raise ValueError("lost is not what it should be")
    unheld = Unheld(
        chunks=count_of(told.get("chunks")),
        at_least=told.get("at_least", False),
        since=told.get("since", 0),
        looked=told.get("looked", 0),
    )
    for name, value in asdict(unheld).items():
        _check(name, value)
    if max(unheld.since, unheld.looked) > TIME_MAX:
        raise ValueError("lost is of a time that cannot be shown")
    return unheld


def _exposed(told: Any) -> Exposed:
    holders = _holders(told)
    chunks, size = told.get("chunks"), told.get("bytes")
    _check("chunks", chunks)
    _check("bytes", size)
    return Exposed(holders, chunks, size)


def _holders(told: Any) -> tuple[str, ...]:
    holders = told.get("holders") if isinstance(told, dict) else None
    if not isinstance(holders, list) or not 0 < len(holders) <= COPIES_MAX:
        raise ValueError("holders is not what it should be")
    for holder in holders:
        _check("id", holder)
    return tuple(sorted(set(holders)))


def lost_files_of(text: str) -> LostFiles:
    """What the first tells of the files that can be lost; raises `ValueError` for what does not say that."""
    try:
        told = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is too deep") from error
    if not isinstance(told, dict) or not isinstance(told.get("sets"), list) or len(told["sets"]) > SUMMED_MAX:
        raise ValueError("it does not say which files can be lost")
    _check("in_files", told.get("one"))
    _check("in_files", told.get("two"))
    for name in ("one_at_least", "two_at_least"):
        _check("at_least", told.get(name))
    return LostFiles(
        sets=tuple(map(_files_of, told["sets"])),
        one=told["one"],
        one_at_least=told["one_at_least"],
        two=told["two"],
        two_at_least=told["two_at_least"],
    )


def _files_of(told: Any) -> FilesOf:
    holders = _holders(told)
    names = told.get("names")
    if not isinstance(names, list):
        raise ValueError("names is not what it should be")
    for name in names:
        try:
            check_file_name(name if isinstance(name, str) else "")
        except InvalidRequest as error:
            raise ValueError(str(error)) from None
    _check("in_files", told.get("files"))
    _check("at_least", told.get("at_least"))
    return FilesOf(holders, told["files"], told["at_least"], tuple(names))


def check_put(key: bytes, value: bytes) -> None:
    """Raise `ValueError` for a row of a server or of the farm that another server puts, and that could not be read.

    Every server reads these rows, and a single one that cannot be read keeps all of them from knowing the others: then
    nobody could even forget the server that put it there.
    """
    try:
        if key.startswith(SERVERS):
            server = Server.from_value(value)
            for name, given in asdict(server).items():
                _check(name, given)
            if server.key != key or max(server.joined, server.since) > TIME_MAX:
                raise ValueError("it is another server's, or of a time that cannot be shown")
        elif key == OPTIONS_KEY:
            _check_options(FarmOptions.from_value(value))
        elif key == GENERATION_KEY and not _COUNT.match(value):
            raise ValueError("it is no number")
    except (KeyError, TypeError, AttributeError, RecursionError, AssertionError, InvalidRequest) as error:
        raise ValueError(f"it cannot be read: {type(error).__name__}") from error


def _check_options(options: FarmOptions) -> None:
    for name, value in asdict(options).items():
        kind = type(getattr(_DEFAULTS, name))
        if kind is int:
            _check("chunks", value)
        elif kind is float and type(value) in (int, float):
            # Neither infinite nor without a value, of which no duration can be made.
            if not 0 <= value <= BYTES_MAX:
                raise ValueError(f"{name} is not what it should be")
        elif type(value) is not kind:
            raise ValueError(f"{name} is not what it should be")


def note_of(text: str) -> str:
    """A note as it may stand in a row: one line, and not too long."""
    return _UNPRINTABLE.sub(" ", text)[:NOTE_LENGTH_MAX]


def count_of(value: Any) -> int:
    """A number of something; raises `ValueError` for what is none."""
    _check("chunks", value)
    return int(value)


def _check(name: str, value: Any) -> None:
    if name in _FLAGS:
        good = type(value) is bool
    elif name in _NUMBERS:
        # To Python a bool is a number too, but in config.ini it would not read as one.
        good = type(value) is int and 0 <= value <= BYTES_MAX
    else:
        good = type(value) is str
    if not good:
        raise ValueError(f"{name} is not what it should be")
    reader = _READERS.get(name)
    if reader is not None:
        try:
            reader(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _zone(text: str) -> None:
    try:
        read_zone(text)
    except ValueError:
        # Whoever has named no zone is one of its own, called as its host, whose name may be longer.
        read_host(text)


def _word(text: str) -> None:
    if not _WORD.match(text):
        raise ValueError("expected one word")


def _fingerprint(text: str) -> None:
    if not _FINGERPRINT.match(text):
        raise ValueError("expected a fingerprint")


def _port(number: int) -> None:
    read_port(str(number))


def _weight(number: int) -> None:
    if number > WEIGHT_MAX:
        read_weight(str(number))


_READERS: Mapping[str, Callable[[Any], object]] = {
    "ca": _fingerprint,
    "ready": _fingerprint,
    "id": check_server_id,
    "name": read_server_name,
    "host": read_host,
    "zone": _zone,
    "version": _word,
    "incarnation": _word,
    "client": _port,
    "peer": _port,
    "files": _port,
    "weight": _weight,
}

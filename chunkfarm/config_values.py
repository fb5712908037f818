"""What the text of one option means: sizes, durations, endpoints, names. Pure.

A reader here takes text and returns a value, or raises `ValueError` whose message says what was expected, in
words that finish the sentence "<option> = <text>: expected ...". Who knows the file and the line makes a
`ConfigError` of it.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attrs import evolve, fields, frozen

from chunkfarm.errors import FarmError
from chunkfarm.model import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, FarmOptions, check_server_id, check_server_name

REPLICAS_MAX = 16
"""More copies than that cost every write without making a loss any less likely."""
WEIGHT_MAX = 1_000_000_000
"""Weights are compared with each other only; this keeps their sum exact in a float."""
NAME_LENGTH_MAX = 63
"""Farm names and zones, as the labels of DNS have it."""
PORT_MAX = 65535
LOG_LEVELS = ("debug", "info", "warn", "error", "critical")
LOG_FORMATS = ("text", "json")
PORTS_PER_SERVER = 3
DEFAULT_PORT = 4100
"""The client port; the peer port and the file port are the next two."""

_T = TypeVar("_T")

SHOWN_MAX = 60
"""Characters of a wrong value that are repeated in the sentence about it."""

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)\Z")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)\Z")
_NUMBER = re.compile(r"[0-9]{1,12}\Z")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9._-]+")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}\Z")
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


class ConfigError(FarmError):
    """Something in `config.ini` or on the command line is wrong: one sentence that says where and what was expected."""

    code = "syntax"
    http_status = 400

    def __init__(self, sentence: str, *, line: int = 0, option: str = "") -> None:
        super().__init__(sentence)
        self.line = line
        self.option = option


@frozen
class ListenDescription:
    """Where to listen: a port number on an interface, or a socket that systemd has opened.

    `name` is the address of the interface (empty: all of that kind), or for `systemd` the name of the
    file descriptor; `port` is 0 for `systemd`. `domain` is `INET` or `INET6`, of `systemd` sockets only.
    """

    kind: str
    port: int
    name: str = ""
    domain: str = ""

    def __str__(self) -> str:
        if self.kind == "systemd":
            return f"systemd:domain={self.domain}:name={self.name}"
        address = self.name.replace(":", "\\:")
        return f"{self.kind}:{self.port}" + (f":interface={address}" if address else "")

    def on_port(self, port: int) -> ListenDescription:
        """The same with another port number; a systemd socket has none to change."""
        return self if self.kind == "systemd" else evolve(self, port=port)


def read_size(text: str) -> int:
    match = _SIZE.match(text)
    if match is None:
        raise ValueError("expected a size in bytes such as 8M (K, M, G and T are powers of 1024)")
    return int(match[1]) * _UNITS[match[2]]


def parse_size(text: str) -> int:
    """Bytes, from text such as `8M`; raises `ConfigError`."""
    return _or_config_error(read_size, text)


def format_size(size: int) -> str:
    """The shortest exact text for a number of bytes: `8M`, `1536K`, `1000`."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def read_duration(text: str) -> float:
    match = _DURATION.match(text)
    if match is None:
        raise ValueError("expected a duration such as 10s, 5m, 2h or 7d")
    return round(float(match[1]) * _SECONDS[match[2]], 3)


def parse_duration(text: str) -> float:
    """Seconds, from text such as `10s`, `5m`, `2h`, `7d` or a plain number; raises `ConfigError`."""
    return _or_config_error(read_duration, text)


def format_duration(seconds: float) -> str:
    """Text for a duration, exact to a millisecond: `10m`, `7d`, `0.5s`."""
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m"):
        if milliseconds and milliseconds % (_SECONDS[unit] * 1000) == 0:
            return f"{milliseconds // (_SECONDS[unit] * 1000)}{unit}"
    return f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"


def read_yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return text == "yes"


def read_port(text: str, room_for: int = 1) -> int:
    """A port number that leaves room for `room_for - 1` more behind it."""
    highest = PORT_MAX + 1 - room_for
    if not _NUMBER.match(text) or not 1 <= int(text) <= highest:
        raise ValueError(f"expected a port number from 1 to {highest}")
    return int(text)


def read_host(text: str) -> str:
    """A host name or an IP address that others can connect to (IPv6 without brackets)."""
    expected = "expected a host name or an IP address that other servers can connect to"
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        # A last label of digits alone is never a name: it is an IPv4 address with a mistake in it.
        if len(text) > 253 or not all(map(_HOST_LABEL.match, labels)) or labels[-1].isdigit():
            raise ValueError(expected) from None
        return text
    _, zone_mark, zone = text.partition("%")
    if zone_mark and not _INTERFACE.match(zone):
        # To Python any text may follow the percent sign, line breaks included.
        raise ValueError(expected)
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{expected}, which {text} is not")
    return text


def is_loopback(host: str) -> bool:
    """Whether an advertised host can only be reached from its own machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    # A port for IPv6 sees the machine's own IPv4 address in this form.
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def read_zone(text: str) -> str:
    if len(text) > NAME_LENGTH_MAX or _NOT_PRINTABLE.search(text) or any(character.isspace() for character in text):
        raise ValueError(f"expected one word of at most {NAME_LENGTH_MAX} characters")
    return text


def read_farm_name(text: str) -> str:
    """A farm's name: printable, and such that it can stand in config.ini without looking like a comment."""
    if (
        not 1 <= len(text) <= NAME_LENGTH_MAX
        or _NOT_PRINTABLE.search(text)
        or text != text.strip()
        or re.search(r"(?:^|\s)[;#]", text)
    ):
        raise ValueError(
            f"expected a name of 1 to {NAME_LENGTH_MAX} printable characters, none of its words begun by ; or #"
        )
    return text


def clean_name(host_name: str) -> str:
    """A legal server name made from a host name: its first label, in lower case, odd characters replaced."""
    label = _NOT_IN_NAMES.sub("-", host_name.lower().partition(".")[0]).strip("-._")
    # The farm may append -2, -3 and so on to make the name unique.
    return label[: NAME_LENGTH_MAX - 4].rstrip("-._") or "server"


def read_listen(text: str) -> ListenDescription:
    """An endpoint: `tcp:4100`, `tcp6:4100`, `tcp:4100:interface=127.0.0.1`, `systemd:domain=INET:name=client`."""
    kind, positional, named = _split_endpoint(text)
    if kind == "systemd":
        return _read_systemd(positional, named)
    expected = "expected an endpoint such as tcp:4100, tcp6:4100 or systemd:domain=INET:name=client"
    if kind not in ("tcp", "tcp6"):
        raise ValueError(expected)
    if unknown := set(named) - {"port", "interface"}:
        raise ValueError(f"{expected}; {min(unknown)} is not an argument that is known here")
    if len(positional) + ("port" in named) != 1:
        if kind == "tcp6" or ":" in text.partition("interface=")[2]:
            raise ValueError(rf"{expected}; a colon inside an IPv6 address is written \: as in interface=\:\:1")
        raise ValueError(expected)
    port = read_port(positional[0] if positional else named["port"])
    interface = named.get("interface", "")
    if interface:
        version = 4 if kind == "tcp" else 6
        try:
            address = ipaddress.ip_address(interface)
        except ValueError:
            address = None
        if address is None or address.version != version:
            raise ValueError(f"expected interface= to be an IPv{version} address of this machine")
    return ListenDescription(kind, port, interface)


def _split_endpoint(text: str) -> tuple[str, list[str], dict[str, str]]:
    """The kind, the positional and the named arguments; a backslash takes the next character as it is."""
    parts = [[""]]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            parts[-1].append("\\" + next(characters, ""))
        elif character == ":":
            parts.append([""])
        else:
            parts[-1].append(character)
    positional: list[str] = []
    named: dict[str, str] = {}
    for part in map("".join, parts):
        name, equals, value = part.partition("=")
        if not equals:
            positional.append(re.sub(r"\\(.)", r"\1", part))
        elif name in named:
            raise ValueError(f"expected {name}= only once")
        else:
            named[name] = re.sub(r"\\(.)", r"\1", value)
    return (positional[0] if positional else ""), positional[1:], named


def _read_systemd(positional: list[str], named: dict[str, str]) -> ListenDescription:
    # Sockets are found by name: their numbers are not stable when a socket unit gains a line.
    if positional or set(named) != {"domain", "name"} or named["domain"] not in ("INET", "INET6") or not named["name"]:
        raise ValueError("expected systemd:domain=INET:name=<FileDescriptorName of the socket unit> (or INET6)")
    return ListenDescription("systemd", 0, named["name"], named["domain"])


def read_peer_listen(text: str) -> ListenDescription:
    """An endpoint for the peer port, which is never handed over by systemd.

    Servers take its refusal as proof that the process is gone, and a socket unit would accept in its place.
    """
    description = read_listen(text)
    if description.kind == "systemd":
        raise ValueError("expected tcp: or tcp6:, since others take a refusing peer port as a sign that we are gone")
    return description


def read_log_level(text: str) -> str:
    return _one_of(text, LOG_LEVELS)


def read_log_format(text: str) -> str:
    return _one_of(text, LOG_FORMATS)


def _one_of(text: str, words: tuple[str, ...]) -> str:
    if text not in words:
        raise ValueError(f"expected {', '.join(words[:-1])} or {words[-1]}")
    return text


def read_names(text: str) -> tuple[str, ...]:
    """Names for the certificate, separated by spaces or commas."""
    return tuple(read_host(name) for name in re.split(r"[\s,]+", text) if name)


def read_path(text: str) -> str:
    if "\0" in text or text.startswith("~"):
        raise ValueError("expected a path, absolute or relative to the file, without ~")
    return text


def read_weight(text: str) -> int:
    return read_whole_number(text, 0, WEIGHT_MAX)


def read_server_name(text: str) -> str:
    try:
        return check_server_name(text)
    except ValueError:
        raise ValueError(
            f"expected at most {NAME_LENGTH_MAX} lower-case letters, digits, dots, dashes and underscores, "
            "the first a letter or digit"
        ) from None


def read_whole_number(text: str, lowest: int, highest: int) -> int:
    if not _NUMBER.match(text) or not lowest <= int(text) <= highest:
        raise ValueError(f"expected a whole number from {lowest} to {highest}")
    return int(text)


def _read_chunk_size(text: str) -> int:
    size = read_size(text)
    if not CHUNK_SIZE_MIN <= size <= CHUNK_SIZE_MAX:
        raise ValueError(f"expected a size from {format_size(CHUNK_SIZE_MIN)} to {format_size(CHUNK_SIZE_MAX)}")
    return size


def _read_grace(text: str) -> float:
    seconds = read_duration(text)
    if not 1 <= seconds <= 3600:
        raise ValueError("expected a duration from 1s to 1h")
    return seconds


def _read_long_duration(text: str) -> float:
    seconds = read_duration(text)
    if not 1 <= seconds <= 3650 * 86400:
        raise ValueError("expected a duration from 1s to 3650d")
    return seconds


def _read_farm_id(text: str) -> str:
    try:
        return check_server_id(text)
    except ValueError:
        raise ValueError("expected the farm's id of 32 hexadecimal digits; only the farm writes this option") from None


def _read_fingerprint(text: str) -> str:
    if not _FINGERPRINT.match(text):
        raise ValueError("expected sha256: and 64 hexadecimal digits; only the farm writes this option")
    return text


def read_generation(text: str) -> int:
    return read_whole_number(text, 0, 10**12 - 1)


def _read_engine(text: str) -> str:
    if text != "embedded":
        raise ValueError("expected embedded, the one engine of this version")
    return text


def _read_takeover(text: str) -> str:
    if text not in ("auto", "manual"):
        raise ValueError("expected auto or manual")
    return text


FARM_READERS: Mapping[str, Callable[[str], Any]] = {
    "chunksize": _read_chunk_size,
    "name": read_farm_name,
    "id": _read_farm_id,
    "ca": _read_fingerprint,
    "replicas": lambda text: read_whole_number(text, 1, REPLICAS_MAX),
    "table": _read_engine,
    "master_grace": _read_grace,
    "repair_after": _read_long_duration,
    "forget_after": _read_long_duration,
    "collect_grace": _read_long_duration,
    "two_server_takeover": _read_takeover,
}
"""How to read each option of `[farm]` that stands in `FarmOptions`."""

assert set(FARM_READERS) == {attribute.name for attribute in fields(FarmOptions)}

_FARM_WRITERS: Mapping[str, Callable[[Any], str]] = {
    "chunksize": format_size,
    "master_grace": format_duration,
    "repair_after": format_duration,
    "forget_after": format_duration,
    "collect_grace": format_duration,
}


def read_farm_option(option: str, text: str) -> Any:
    """The value of one option of `[farm]`, as `SET farm` and the file both take it; raises `ConfigError`."""
    if option not in FARM_READERS:
        raise ConfigError(f"{option} is not an option of the farm", option=option)
    try:
        return FARM_READERS[option](text)
    except ValueError as error:
        raise ConfigError(f"{option} = {shown(text)}: {error}", option=option) from None


def farm_option_text(option: str, value: Any) -> str:
    """The text that stands in the file for a value of one option of `[farm]`."""
    return _FARM_WRITERS.get(option, str)(value)


RELATED = ("repair_after", "forget_after")
"""Each may be no longer than the next: the chunks of a lost server are copied first, then it is forgotten. A
`master_grace` may be longer than both: a master that nobody can replace goes when both times are over."""


def check_farm(farm: FarmOptions) -> None:
    """Check the relations between options; raises `ConfigError` naming both."""
    for shorter, longer in itertools.pairwise(RELATED):
        if getattr(farm, shorter) > getattr(farm, longer):
            raise ConfigError(
                f"{longer} = {format_duration(getattr(farm, longer))}: expected no less than "
                f"{shorter}, which is {format_duration(getattr(farm, shorter))}",
                option=longer,
            )


def shown(text: str) -> str:
    """A wrong value as it is repeated in a sentence: cut short, and quoted where it would not show."""
    short = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."
    return short if short and short.isprintable() else repr(short)


def _or_config_error(reader: Callable[[str], _T], text: str) -> _T:
    try:
        return reader(text)
    except ValueError as error:
        raise ConfigError(f"{shown(text)}: {error}") from None

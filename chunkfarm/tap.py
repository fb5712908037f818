"""What `twistd chunkfarm` sees: the options, and the service that they make."""

from __future__ import annotations

import os
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path

from twisted.application.service import IService
from twisted.python import usage

from chunkfarm import logs
from chunkfarm.config import ServerOptions, format_size, read_config
from chunkfarm.data_directory import is_unused
from chunkfarm.errors import FarmError
from chunkfarm.kept_room import give_back
from chunkfarm.model import FarmOptions
from chunkfarm.trust.invitation import CODE_LENGTH_MAX, Invitation
from chunkfarm.trust.private import NoSuchFile, TrustError, check_private
from chunkfarm.wire.sockets import why_taken

EMPTY_CONFIG = f"""\
[farm]
chunksize = {format_size(FarmOptions().chunksize)}

[servers]
; The farm keeps this list: oldest first.

[server]
data = ./data
"""


def _plain(text: str) -> str:
    return text


class Options(usage.Options):
    """The command line. What it says overrides `[server]` of the config file."""

    synopsis = "[options]"
    longdesc = (
        "One server of a chunkfarm: start it on each machine with the same config.ini (or a copy of it), "
        "and the servers find each other."
    )
    optParameters = [
        ["config", "c", "config.ini", "The farm's config file.", _plain],
        ["data", None, None, "The data directory (relative to the working directory).", _plain],
        ["name", None, None, "This server's name.", _plain],
        ["host", None, None, "The address that other servers and clients are told.", _plain],
        ["ports", None, None, "Client port; peer port and file port are the next two.", _plain],
        ["weight", None, None, "Share of the chunks (0: none).", _plain],
        ["zone", None, None, "What fails together with this server, such as a rack.", _plain],
        ["join", None, None, "Join with this code of `chunkfarm invite`, or with the one in a file: @FILE.", _plain],
    ]
    optFlags = [
        ["found", None, "Make a new farm although config.ini names one that nobody answers for."],
    ]

    invitation: Invitation | None = None
    """What the code of `--join` says."""

    def __getitem__(self, name: str) -> str | None:
        value: str | None = super().__getitem__(name)
        return value

    @property
    def overrides(self) -> dict[str, str | None]:
        """What overrides `[server]`."""
        return {name: self[name] for name in ("data", "name", "host", "ports", "weight", "zone")}

    def postOptions(self) -> None:
        """Refuse a bad config before anything else happens, and put the pid file where this server's data are."""
        if isinstance(self["data"], str):
            self["data"] = os.path.abspath(self["data"])
        path = os.path.abspath(self["config"] or "config.ini")
        self["config"] = path
        try:
            if isinstance(self["join"], str):
                self.invitation = _read_code(self["join"])
                _make_config(path)
            config = read_config(path, self.overrides, socket.gethostname())
        except FarmError as error:
            # UsageError would print the whole usage before the sentence.
            raise SystemExit(f"chunkfarm: {error}") from None
        self._check_secrets(config.server, Path(path).parent)
        self._check_free(config.server)
        # Before twistd writes its pid.
        give_back(config.server.data)
        self._place_files(os.fspath(config.server.data))
        self._direct_log(config.server)

    def _direct_log(self, server: ServerOptions) -> None:
        """Have the log written in the wanted form, unless twistd was given a way of its own."""
        parent = self.parent
        if parent is not None and not parent.get("logger") and not parent.get("syslog"):
            logs.of_process.direct(server.log_level, server.log_format, parent)
            parent["logger"] = logs.OBSERVER_NAME

    def _check_secrets(self, server: ServerOptions, folder: Path) -> None:
        """Refuse files that the start would fail on: in the background only the log would hear of it."""
        # Imported late: OpenSSL takes a while, and most mistakes are found before it is needed.
        from chunkfarm.trust.contexts import Certificate
        from chunkfarm.trust.identity import CERTIFICATE_FILE
        from chunkfarm.trust.proof import JOIN_FILE, read_join_key

        try:
            if server.certificate is not None:
                Certificate.load(server.certificate)
            # Who has joined does without.
            if self.invitation is None and not Path(server.data, CERTIFICATE_FILE).exists():
                with suppress(NoSuchFile):
                    read_join_key(folder / JOIN_FILE)
        except FarmError as error:
            raise SystemExit(f"chunkfarm: {error}") from None

    def _check_free(self, server: ServerOptions) -> None:
        """Refuse what another process has. Told here, a person sees it also when the server goes to the background."""
        try:
            if not is_unused(server.data):
                raise SystemExit(f"chunkfarm: the data directory {server.data} is in use by another chunkfarm process")
        except OSError as error:
            raise SystemExit(f"chunkfarm: the data directory {server.data} cannot be used: {error.strerror}") from None
        for name, place in (("client", server.client), ("peer", server.peer), ("file", server.files)):
            if (why := why_taken(place)) is not None:
                raise SystemExit(f"chunkfarm: the {name} port {place} cannot be opened: {why}")

    def _place_files(self, data: str) -> None:
        """Keep twistd's own files with the data, so that several servers of one machine do not share them."""
        parent = self.parent
        if parent is None:
            return
        wants_log = not (parent.get("nodaemon") or parent.get("logfile") or parent.get("syslog"))
        wants_pid = parent.get("pidfile") == "twistd.pid"
        if not (wants_log or wants_pid):
            return
        pid_file = Path(data, "twistd.pid")
        try:
            pid_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if wants_pid:
                # After a kill its number may belong to any process, for whose sake twistd would not start.
                pid_file.unlink(missing_ok=True)
                parent["pidfile"] = os.fspath(pid_file)
        except OSError as error:
            raise SystemExit(f"chunkfarm: the data directory {data} cannot be used: {error.strerror}") from None
        if wants_log:
            parent["logfile"] = os.path.join(data, "twistd.log")


def _read_code(given: str) -> Invitation:
    """The code on the command line, or in the file that it names; raises `TrustError`."""
    if not given.startswith("@"):
        return Invitation.from_code(given)
    path = given[1:]
    try:
        with open(path, encoding="ascii") as file:
            status = os.fstat(file.fileno())
            # What comes by a pipe or from a terminal lies nowhere for others to read.
            if stat.S_ISREG(status.st_mode):
                check_private(path, status.st_mode)
            return Invitation.from_code(file.read(CODE_LENGTH_MAX + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise TrustError(
            f"--join: {path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}"
        ) from None


def _make_config(path: str) -> None:
    """A file for the farm to write its list into, if there is none: who joins with a code needs no other."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(EMPTY_CONFIG)
    except FileExistsError:
        return
    except OSError as error:
        raise TrustError(f"{path} cannot be written: {error.strerror}") from None


SWITCH_SECONDS = 0.0005
"""After which a thread that computes lets others go on. The reactor's thread waits so long whenever it has asked the
kernel for something while another one sums or packs, several times for one answer; Python's own 5 ms are felt then."""


def makeService(options: Options) -> IService:
    """The farm's service: one MultiService with the three ports."""
    sys.setswitchinterval(SWITCH_SECONDS)
    # Imported late: importing the reactor installs one, and twistd may have been told which.
    from chunkfarm.farm import make_farm
    from chunkfarm.startup import Wish

    wish = Wish(
        config=options["config"] or "config.ini",
        overrides=options.overrides,
        host_name=socket.gethostname(),
        found_anyway=bool(options["found"]),
        invitation=options.invitation,
    )
    stays = options.parent is not None and bool(options.parent.get("nodaemon"))
    return make_farm(wish, logs.of_process, has_terminal=stays and os.isatty(0))

"""Large files, through real processes: byte-equal from every server, and in little memory."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
from pathlib import Path
from unittest import SkipTest

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import GIB, MIB, blocks, digest_of, size_under, write_file
from tests.slow.real_farm import RealFarm, RealServer, find_curl

pytestmark = pytest.mark.slow

MEMORY_MAX = 250 * MIB
"""Of a server that moves a file of any size."""
TRANSFER_SECONDS = 240.0
"""For a GiB or more on a machine that is busy with other things."""


def need_space(size: int) -> None:
    """Skip where the disk is too small."""
    if shutil.disk_usage(".").free < size + 2 * GIB:
        raise SkipTest(f"needs {size // GIB + 2} GiB on the disk")


class LargeFileTests(FarmTestCase):
    def test_a_gibibyte_by_the_command_line(self) -> None:
        """What `chunkfarm put` stored comes back the same from each of three servers, and each holds all of it."""
        need_space(6 * GIB)
        farm = self.make_farm("alpha", "beta", "gamma")
        digest = write_file(farm.directory / "big", GIB)

        stored = farm.cli("put", "big", "home/big", seconds=TRANSFER_SECONDS)

        assert stored.returncode == 0, stored.stderr
        (farm.directory / "big").unlink()
        for name in ("alpha", "beta", "gamma"):
            lone = only(farm, name)
            fetched = farm.cli("--config", str(lone), "get", "home/big", f"from-{name}", seconds=TRANSFER_SECONDS)
            assert fetched.returncode == 0, fetched.stderr
            assert digest_of(farm.directory / f"from-{name}") == digest, f"what {name} gave is not what was stored"
            (farm.directory / f"from-{name}").unlink()
            farm.wait_for(
                lambda data=farm.directory / name / "chunks": size_under(data) >= GIB,  # type: ignore[misc]
                30,
                f"{name} holds a copy of every chunk",
            )

    def test_a_gibibyte_by_curl(self) -> None:
        """What curl put through one server, curl gets from each of three, with nothing but the farm's CA and a key."""
        find_curl()
        need_space(6 * GIB)
        farm = self.make_farm("alpha", "beta", "gamma")
        digest = write_file(farm.directory / "big", GIB, seed=1)

        stored = farm.curl("-f", "-T", "big", f"{farm.server('beta').url}/home/big.bin", seconds=TRANSFER_SECONDS)

        assert stored.returncode == 0, stored.stderr
        for name in ("alpha", "beta", "gamma"):
            url = f"{farm.server(name).url}/home/big.bin"
            fetched = farm.curl("-f", "-o", f"from-{name}", url, seconds=TRANSFER_SECONDS)
            assert fetched.returncode == 0, fetched.stderr
            assert digest_of(farm.directory / f"from-{name}") == digest, f"what {name} gave is not what was stored"
            (farm.directory / f"from-{name}").unlink()

    def test_four_gibibytes_in_little_memory(self) -> None:
        """A file of 4 GiB goes in and out of one server, which never takes 250 MiB of memory for it."""
        find_curl()
        need_space(4 * GIB)
        farm = self.make_farm("alpha", replicas=1)
        alpha = farm.server("alpha")
        digest = put_stream(farm, alpha, "home/huge", 4 * GIB)
        stored = alpha.peak_memory()

        assert get_digest(farm, alpha, "home/huge") == digest

        peak = alpha.peak_memory()
        print(f"memory at most: {stored // MIB} MiB to store, {peak // MIB} MiB in all")
        assert peak < MEMORY_MAX, f"{peak // MIB} MiB"

    def test_copies_in_little_memory(self) -> None:
        """Nor do three servers that pass copies of half a GiB to each other, and fetch them from each other."""
        find_curl()
        need_space(2 * GIB)
        farm = self.make_farm("alpha", "beta", "gamma")
        digest = put_stream(farm, farm.server("alpha"), "home/huge", 512 * MIB)

        for name in ("alpha", "beta", "gamma"):
            assert get_digest(farm, farm.server(name), "home/huge") == digest

        peaks = {name: server.peak_memory() // MIB for name, server in farm.servers.items()}
        print(f"MiB of memory at most: {peaks}")
        assert max(peaks.values()) * MIB < MEMORY_MAX, peaks


def only(farm: RealFarm, name: str) -> Path:
    """A config that lists one server of the farm, so that a command can ask no other."""
    lines = farm.config_path.read_text().splitlines()
    listed = [row.name for row in farm.config().servers]
    others = tuple(f"{other} = " for other in listed if other != name)
    path = farm.directory / f"only-{name}.ini"
    path.write_text("\n".join(line for line in lines if not line.startswith(others)) + "\n")
    return path


def put_stream(farm: RealFarm, server: RealServer, name: str, size: int) -> str:
    """Give curl a generated stream of unknown length; returns the SHA-256 of what it was given."""
    data = farm.directory / "alpha"
    command = [find_curl(), "-sSf", "--cacert", str(data / "ca.pem"), "--netrc-file", str(data / "netrc")]
    curl = subprocess.Popen(
        [*command, "-T", "-", f"{server.url}/{name}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert curl.stdin is not None and curl.stderr is not None
    watchdog = threading.Timer(TRANSFER_SECONDS, curl.kill)
    watchdog.start()
    digest = hashlib.sha256()
    try:
        with curl.stdin as pipe:
            for block in blocks(size):
                digest.update(block)
                pipe.write(block)
        error = curl.stderr.read().decode()
        assert curl.wait() == 0, error
    finally:
        watchdog.cancel()
        curl.kill()
        curl.wait()
        curl.stderr.close()
    return digest.hexdigest()


def get_digest(farm: RealFarm, server: RealServer, name: str) -> str:
    """The SHA-256 of a file as curl gets it; nothing is kept."""
    data = farm.directory / "alpha"
    command = [find_curl(), "-sSf", "--cacert", str(data / "ca.pem"), "--netrc-file", str(data / "netrc")]
    curl = subprocess.Popen(
        [*command, "--max-time", str(int(TRANSFER_SECONDS)), f"{server.url}/{name}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert curl.stdout is not None and curl.stderr is not None
    digest = hashlib.sha256()
    with curl.stdout as pipe, curl.stderr:
        while block := pipe.read(MIB):
            digest.update(block)
        assert curl.wait() == 0, curl.stderr.read().decode()
    return digest.hexdigest()

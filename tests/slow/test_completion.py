"""The words of the command, completed by a real shell."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from unittest import TestCase

import pytest

from tests.slow.real_farm import CLI

_ASK = """
eval "$(chunkfarm completion bash)"
try() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); COMPREPLY=()
    _chunkfarm_completion chunkfarm
    echo "${COMPREPLY[*]}"
}
complete -p chunkfarm
try chunkfarm dr
try chunkfarm --config config.ini drain be
try chunkfarm check --re
"""
CONFIG = """\
[farm]
chunksize = 8M
[servers]
alpha = 10.0.0.1 4100
beta = 10.0.0.2 4100
[server]
data = data
"""


@pytest.mark.slow
class CompletionTests(TestCase):
    def test_in_bash(self) -> None:
        """bash takes the script, and completes commands, servers and options with it."""
        bash = shutil.which("bash")
        if bash is None:
            self.skipTest("there is no bash")
        with tempfile.TemporaryDirectory() as folder:
            command = Path(folder) / "chunkfarm"
            command.write_text(f'#!/bin/sh\nexec {shlex.join(CLI)} "$@"\n')
            command.chmod(0o755)
            (Path(folder) / "config.ini").write_text(CONFIG)
            environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
            done = subprocess.run(
                [bash, "--norc", "-c", _ASK], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
            )
        assert done.stdout.splitlines() == [
            "complete -o nosort -F _chunkfarm_completion chunkfarm",
            "drain drill",
            "beta",
            "--repair",
        ], done

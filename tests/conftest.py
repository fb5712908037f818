"""What holds for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How fast this machine is just now says nothing about what is tested.
settings.register_profile("chunkfarm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chunkfarm")


for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        # A shell ignores Ctrl-C for what it runs in the background, and nohup the end of a terminal. Commands that
        # tests interrupt would inherit that.
        signal.signal(_number, _usual)


@pytest.fixture(autouse=True, scope="session")
def _working_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trial's `mktemp` makes its directories in the working directory: keep them out of the checkout."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield
    os.chdir(before)

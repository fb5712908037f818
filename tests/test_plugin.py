"""What makes `twistd chunkfarm` a command, and the files that start it in other ways."""

from __future__ import annotations

import configparser
import os
import runpy
from pathlib import Path
from unittest import mock

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

import chunkfarm

CHECKOUT = Path(chunkfarm.__file__).parent.parent


class PluginTests(SynchronousTestCase):
    def test_found(self) -> None:
        """twistd finds the farm's command, and still finds its own."""
        assert {"chunkfarm", "web"} <= {maker.tapname for maker in getPlugins(IServiceMaker)}

    def test_no_packages(self) -> None:
        """The folders that hold the plugin are no packages: as such they would hide the plugin, or all of Twisted."""
        assert list((CHECKOUT / "twisted").rglob("__init__.py")) == []


class TacTests(SynchronousTestCase):
    def test_same_words(self) -> None:
        """The application file reads the config named by the environment, and tells mistakes as twistd does."""
        config = Path(self.mktemp()).absolute()
        config.write_text("[farm]\nreplicas = 99\n")
        with mock.patch.dict(os.environ, CHUNKFARM_CONFIG=str(config)):
            error = self.assertRaises(SystemExit, runpy.run_path, str(CHECKOUT / "tac" / "chunkfarm.tac"))
        assert "line 2: replicas = 99: expected a whole number from 1 to 16" in str(error)


class UnitTests(SynchronousTestCase):
    def test_unit(self) -> None:
        """The unit waits for READY, lets the server write its state, and leaves TLS its executable memory."""
        # Options may be repeated in a unit file, which only an unstrict parser takes.
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read(CHECKOUT / "systemd" / "chunkfarm.service")
        service = unit["Service"]
        assert service["Type"] == "notify"
        assert "--config %S/chunkfarm/config.ini" in service["ExecStart"]
        assert service["StateDirectory"] == "chunkfarm"
        assert "AF_UNIX" in service["RestrictAddressFamilies"]
        assert "MemoryDenyWriteExecute" not in service

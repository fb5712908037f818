"""What a release consists of."""

from __future__ import annotations

import importlib
import importlib.util
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

import chunkfarm

ROOT = Path(chunkfarm.__file__).parents[1]
UNITS = ("chunkfarm.service", "chunkfarm@.service", "chunkfarm.socket", "chunkfarm-files.socket")


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


class ProjectTests(SynchronousTestCase):
    """`pyproject.toml`, by which all of it is made."""

    def test_the_command(self) -> None:
        """`chunkfarm` is there to be called."""
        module, name = project()["project"]["scripts"]["chunkfarm"].split(":")
        assert callable(getattr(importlib.import_module(module), name))

    def test_the_plugin(self) -> None:
        """Twisted's own package is added to, and never replaced or hidden."""
        assert project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["chunkfarm", "twisted"]
        assert [path.relative_to(ROOT).as_posix() for path in (ROOT / "twisted").rglob("*.py")] == [
            "twisted/plugins/chunkfarm_plugin.py"
        ]

    def test_what_comes_along(self) -> None:
        """Everything that an administrator copies somewhere exists; types are told; the licence is there."""
        shared = project()["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
        for source, target in shared.items():
            assert (ROOT / source).exists(), source
            assert target.startswith("share/")
        assert {path.name for path in (ROOT / "systemd").iterdir()} == set(UNITS)
        assert (ROOT / "chunkfarm" / "py.typed").exists()
        assert all((ROOT / name).exists() for name in project()["project"]["license-files"])
        assert project()["tool"]["hatch"]["version"]["path"] == "chunkfarm/__init__.py"


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
class BuildTests(SynchronousTestCase):
    """The wheel and the source archive themselves."""

    def build(self, kind: str) -> Path:
        builders = importlib.import_module(f"hatchling.builders.{kind}")
        builder = {"wheel": "WheelBuilder", "sdist": "SdistBuilder"}[kind]
        (path,) = getattr(builders, builder)(str(ROOT)).build(directory=str(Path(self.mktemp()).absolute()))
        return Path(path)

    def test_wheel(self) -> None:
        """Package, plugin, command, licence and the files to be copied; nothing of Twisted's, no tests."""
        with zipfile.ZipFile(self.build("wheel")) as wheel:
            names = wheel.namelist()
        assert {"chunkfarm/tap.py", "chunkfarm/py.typed", "twisted/plugins/chunkfarm_plugin.py"} <= set(names)
        assert [name for name in names if name.startswith("twisted/")] == ["twisted/plugins/chunkfarm_plugin.py"]
        for wanted in (*UNITS, "alerts.yml", "config.ini", "entry_points.txt", "LICENSE", "operations.md"):
            assert any(name.endswith(f"/{wanted}") for name in names), wanted
        assert not any("tests/" in name or name.endswith((".pyc", "dropin.cache")) for name in names)

    def test_source(self) -> None:
        """All that is needed to change it and to test it."""
        with tarfile.open(self.build("sdist")) as source:
            names = {name.partition("/")[2] for name in source.getnames()}
        for wanted in ("tests/test_packaging.py", "docs/architecture.md", "systemd/chunkfarm.service", "config.ini"):
            assert wanted in names, wanted
        assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"} <= names
        assert not any(name.endswith((".pyc", "dropin.cache")) for name in names)

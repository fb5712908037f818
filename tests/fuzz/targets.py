"""The targets by name. Each is imported when it is wanted, and the product with it: libFuzzer looks on then."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from tests.fuzz.fuzzer import Target

_CLASSES: Mapping[str, str] = {
    "lines": "LinesTarget",
    "boxes": "BoxesTarget",
    "http": "HttpTarget",
    "config": "ConfigTarget",
    "answers": "AnswersTarget",
}
NAMES = tuple(_CLASSES)


def make_target(name: str) -> Target:
    """A target, from its beginning."""
    target: Target = getattr(import_module(f"tests.fuzz.{name}"), _CLASSES[name])()
    return target

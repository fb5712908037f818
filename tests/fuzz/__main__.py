"""Fuzz one way into a server, what it is answered by others, or all:

    python -m tests.fuzz --target lines|boxes|http|config|answers|all --seconds 3600

It says how many inputs were tried, how many ways through the code they took, and how many are kept to be changed
again. An input that breaks a promise is saved, and the command is shown that tries it again. With `--atheris` the
inputs come from libFuzzer, which is quicker and needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.fuzzer import Finding, Fuzzer, Target, told
from tests.fuzz.promises import Broken
from tests.fuzz.targets import NAMES, make_target

SHOW_SECONDS = 10.0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=[*NAMES, "all"], default="all")
    parser.add_argument("--seconds", type=float, help="for how long each target is fuzzed (60)")
    parser.add_argument("--inputs", type=int, help="how many inputs each target gets, instead of a time")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same inputs")
    parser.add_argument("--replay", metavar="FILE", type=Path, help="try the one input in that file")
    parser.add_argument("--atheris", action="store_true", help="let libFuzzer find the inputs")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where an input is saved that breaks a promise")
    options = parser.parse_args(arguments)
    if (options.replay or options.atheris) and options.target == "all":
        parser.error("--replay and --atheris want one --target")
    if options.seconds is None and options.inputs is None:
        options.seconds = 60.0
    return options


def save(target: str, data: bytes, folder: Path) -> Path:
    """Keep an input that breaks a promise."""
    path = folder / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}.input"
    path.write_bytes(data)
    return path


def _report(target: str, finding: Finding, folder: Path) -> None:
    path = save(target, finding.data, folder)
    print(f"\n{target}: input {finding.inputs} breaks a promise: {finding.why}")
    print(f"saved as {path} ({len(finding.data)} bytes); again: python -m tests.fuzz --target {target} --replay {path}")


def _fuzz(name: str, options: argparse.Namespace) -> bool:
    """Whether all promises were kept."""
    fuzzer = Fuzzer(make_target(name), options.seed)
    began = last = time.monotonic()

    def line(fuzzer: Fuzzer) -> str:
        seconds = time.monotonic() - began
        return (
            f"{name}: {fuzzer.inputs} inputs in {seconds:.0f} s ({fuzzer.inputs / max(seconds, 0.001):.0f} a second), "
            f"{len(fuzzer.known)} ways, {len(fuzzer.corpus)} kept"
        )

    def show(fuzzer: Fuzzer) -> None:
        nonlocal last
        if time.monotonic() - last >= SHOW_SECONDS:
            last = time.monotonic()
            print(line(fuzzer), flush=True)

    finding = fuzzer.run(options.inputs, options.seconds, show)
    print(line(fuzzer), flush=True)
    if finding is not None:
        _report(name, finding, options.folder)
        return False
    try:
        fuzzer.look_for_growth()
    except Broken as error:
        print(f"{name}: {error}")
        return False
    return True


def _replay(target: Target, path: Path) -> bool:
    try:
        target.run(path.read_bytes())
    except Exception as error:
        print(f"{target.name}: {path} breaks a promise: {told(error)}")
        return False
    print(f"{target.name}: {path} breaks no promise")
    return True


def _with_libfuzzer(options: argparse.Namespace) -> None:
    from tests.fuzz import libfuzzer

    libfuzzer.fuzz(
        lambda: make_target(options.target),
        options.seconds,
        options.inputs,
        options.seed,
        lambda data: save(options.target, data, options.folder),
    )


def main(arguments: Sequence[str]) -> int:
    """The exit status is 1 if a promise was broken."""
    options = _options(arguments)
    if options.replay:
        return 0 if _replay(make_target(options.target), options.replay) else 1
    if options.atheris:
        _with_libfuzzer(options)
    kept = [_fuzz(name, options) for name in (NAMES if options.target == "all" else (options.target,))]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The same targets under libFuzzer, by `atheris`: several times quicker, for hours on a machine of one's own.

It instruments modules as they are imported, so nothing of the product may be imported before, and it ends the process
when it is done: of use from the command line alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import atheris

from tests.fuzz.fuzzer import LONGEST, Target, little_to_collect, told
from tests.fuzz.mutations import Mutations


def fuzz(
    make_target: Callable[[], Target],
    seconds: float | None,
    inputs: int | None,
    seed: int,
    save: Callable[[bytes], Path],
) -> None:
    """Until the time is over, or an input breaks a promise, which is saved. Does not return."""
    with atheris.instrument_imports(include=["chunkfarm"]):
        target = make_target()
    mutations = Mutations(Random(seed), target.tokens, target.separator, LONGEST)

    def run(data: bytes) -> None:
        try:
            target.run(data)
        except Exception as error:
            path = save(data)
            print(f"\n{target.name}: {told(error)}\nsaved as {path}; again: ", end="")
            print(f"python -m tests.fuzz --target {target.name} --replay {path}")
            raise

    def change(data: bytes, longest: int, number: int) -> bytes:
        mutations.random.seed(number)
        if mutations.random.random() < 0.4:
            return bytes(atheris.Mutate(data, longest))
        changed = target.changed(data, mutations) if mutations.random.random() < 0.5 else None
        return (changed if changed is not None else mutations.of(data, mutations.random.choice(target.seeds)))[:longest]

    with tempfile.TemporaryDirectory(prefix="chunkfarm-fuzz-") as corpus, little_to_collect():
        for number, one in enumerate(target.seeds):
            (Path(corpus) / f"{number:04}").write_bytes(one)
        limits = [f"-max_total_time={round(seconds)}"] if seconds is not None else [f"-runs={inputs}"]
        atheris.Setup(
            [sys.argv[0], corpus, f"-seed={seed}", f"-max_len={LONGEST}", "-rss_limit_mb=0", "-timeout=60", *limits],
            run,
            custom_mutator=change,
        )
        atheris.Fuzz()

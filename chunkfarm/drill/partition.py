"""The first server is cut off from the others: which side goes on, what the other one says, and how they become one."""

from __future__ import annotations

from chunkfarm.cli.farm import sentence_of
from chunkfarm.drill.farm import DrillFarm
from chunkfarm.drill.people import put
from chunkfarm.drill.run import Run
from chunkfarm.drill.story import in_short
from chunkfarm.errors import FarmError

TITLE = "the first server is cut off from all others, and people go on on both sides"
SERVERS_MIN = 3
BEFORE = 10
SOME = 5
WRITES_AGAIN_SECONDS = 30.0
SAYS_SO_SECONDS = 20.0
"""Until the side without a majority calls itself read-only: three reports that were not answered, and some."""
CUT_SECONDS = 11.0
"""The whole of it: longer than `master_grace`, so that the farm rearranges itself around the one that is gone."""
HEALED_SECONDS = 60.0
AGREED_SECONDS = 20.0
"""For all to agree again who leads: a junior hands the lead on when all is quiet for `master_grace`."""
GIVE_UP_SECONDS = 4.0
"""After which people on the small side take no for an answer."""


async def partition(run: Run) -> None:
    """The drill."""
    farm, story = run.farm, run.story
    await run.begin()
    assert farm.relays is not None
    story.tell("servers reach each other through relays of this drill, which it can cut; people reach each of them")
    first = await farm.first()
    others = [name for name in farm.servers if name != first]
    here = run.load(*others, prefix="many")
    there = run.load(first, prefix="one", people=1, timeout=GIVE_UP_SECONDS)
    await here.some_more(BEFORE, WRITES_AGAIN_SECONDS)
    await there.some_more(1, WRITES_AGAIN_SECONDS)
    story.tell(f"{first} is the first; people store files through it, and others through {', '.join(others)}")

    cut = run.seconds()
    farm.relays.cut_off(first, others)
    story.tell(f"{first} is cut off: nothing passes between it and the others, and nobody is told")
    again = await here.first_begun_after(cut, WRITES_AGAIN_SECONDS) - cut
    story.figure(
        "takeover",
        again,
        f"the first write that began after that is acknowledged on the side of {len(others)}, {{}} later",
    )
    second = await farm.first(*others, but=first)
    story.tell(f"{second} leads there now")

    async def says_so() -> bool:
        return await farm.state(first) == "readonly"

    await farm.until(says_so, SAYS_SO_SECONDS, f"{first} says that it is read-only")
    read_only = run.seconds()
    story.figure("readonly", read_only - cut, f"{first} calls itself read-only {{}} after the cut")

    async def misses() -> str:
        return (await farm.status(first)).get("waits-for", "")

    missed = await farm.until(misses, SAYS_SO_SECONDS, f"{first} says what it waits for")
    story.tell(f"it says what it waits for: {missed}")
    await _is_refused(run, first)
    before = len(there.acknowledged)
    await here.some_more(SOME, WRITES_AGAIN_SECONDS)
    await farm.sleep(max(0.0, cut + CUT_SECONDS - run.seconds()))
    story.check(
        len(there.acknowledged) == before,
        f"{first} has acknowledged no write since it called itself read-only",
        f"{first} has acknowledged {len(there.acknowledged) - before} writes since it called itself read-only",
    )

    farm.relays.heal()
    healed = run.seconds()
    story.tell(f"everything passes again, {healed - cut:.1f} s after the cut")
    await farm.serving(first, seconds=HEALED_SECONDS)
    await there.first_begun_after(healed, HEALED_SECONDS)
    story.figure("healed", run.seconds() - healed, f"a write through {first} is acknowledged again {{}} after that")
    await here.stop()
    await there.stop()
    story.check(
        not here.refusals,
        f"on the side of {len(others)} no write was refused; through {first} {len(there.refusals)} were",
        f"on the side of {len(others)} {len(here.refusals)} writes were refused: {in_short(here.refusals)}",
    )
    leads = await agreed(farm)
    story.tell(f"all of them say that {leads} leads")
    await farm.until_whole(HEALED_SECONDS)
    await run.read_back({**here.acknowledged, **there.acknowledged}, list(farm.servers))
    await run.all_is_whole()


async def agreed(farm: DrillFarm) -> str:
    """Who leads, as all servers tell it. Raises `DrillFailed` if they do not agree.

    The lead may be handed on while they are asked one after the other, so they are asked again.
    """

    async def leader() -> str:
        told = {await farm.first(name) for name in farm.servers}
        return told.pop() if len(told) == 1 else ""

    return await farm.until(leader, AGREED_SECONDS, "all servers say the same of who leads")


async def _is_refused(run: Run, name: str) -> None:
    """A write through the server that was cut off."""
    way = run.farm.people(name, timeout=GIVE_UP_SECONDS)
    try:
        await put(way, "one/refused", b"refused")
    except (FarmError, OSError) as error:
        run.story.tell(f"a write through it is refused: {sentence_of(error).partition('. Cure: ')[0]}")
    else:
        run.story.check(False, "", f"{name} took a write although it was cut off")
    finally:
        way.hang_up()

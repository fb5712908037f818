"""The first server is killed while people write: who takes over, how long that takes, and when all copies are back."""

from __future__ import annotations

from chunkfarm.drill.run import Run
from chunkfarm.drill.story import in_short

TITLE = "the first server is killed (kill -9) while people store files"
SERVERS_MIN = 4
"""So that three copies of everything can be made again when one is gone."""
REPAIR_AFTER = 6.0
"""Seconds, instead of ten minutes: a drill shows the repair, not the patience before. A server is down after five."""
BEFORE = 30
"""Files that are acknowledged before the fault, so that there is something to lose."""
WRITES_AGAIN_SECONDS = 30.0
GOES_ON_SECONDS = 1.0
REPAIR_SECONDS = 60.0


async def kill_first(run: Run) -> None:
    """The drill."""
    farm, story = run.farm, run.story
    await run.begin(farm=f"repair_after = {REPAIR_AFTER:g}s")
    first = await farm.first()
    load = run.load()
    await load.some_more(BEFORE, WRITES_AGAIN_SECONDS)
    story.tell(
        f"{first} is the first; {len(load.orders)} people store files, {len(load.acknowledged)} are acknowledged"
    )

    story.tell(f"{first} is killed with kill -9; writes that wait for an answer just now: {load.under_way}")
    killed = run.seconds()
    await farm.kill9(first)
    again = await load.first_begun_after(killed, WRITES_AGAIN_SECONDS) - killed
    story.figure("takeover", again, "the first write that began after that is acknowledged {} later")
    second = await farm.first(but=first)
    story.tell(f"{second} leads the farm now")
    await farm.sleep(GOES_ON_SECONDS)
    await load.stop()
    story.check(
        not load.refusals,
        f"{len(load.acknowledged)} files are acknowledged, none was refused: people noticed a pause",
        f"{len(load.refusals)} writes were refused: {in_short(load.refusals)}",
    )

    story.tell(f"{first} is given up {REPAIR_AFTER:g} s after its last word (repair_after, 10 min by default)")
    await farm.until_whole(REPAIR_SECONDS)
    story.figure("repair", run.seconds() - killed, "every chunk has all its copies again, {} after the kill")
    await run.read_back(load.acknowledged, [name for name in farm.servers if name != first])
    await run.all_is_whole()

    farm.servers[first].start()
    started = run.seconds()
    await farm.serving(first)
    order = [row["name"] for row in (await farm.ask("WHO", second)).parsed()]
    story.check(
        order[-1:] == [first],
        f"{first}, started again, serves after {run.seconds() - started:.1f} s and stands at the end of the line",
        f"{first} came back, and the line of succession is {', '.join(order)}",
    )

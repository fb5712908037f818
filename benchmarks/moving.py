"""How evenly placement spreads chunks, and how many move when a server joins: `python -m benchmarks.moving`.

Placement draws lots for each chunk, so the fewer chunks there are, the more the servers' shares differ by chance. This
says how many it takes, with the real rules and chunks of one size: for each number of chunks, over many farms with ids
of their own, what part of its fair share moves to a sixth server, and by how much the fullest and the emptiest differ.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

from chunkfarm.chunks import placement
from chunkfarm.model import Server

REPLICAS = 3


def servers(count: int, chance: random.Random) -> tuple[Server, ...]:
    """Servers of one weight, each in a zone of its own."""
    ids = [f"{chance.getrandbits(128):032x}" for _ in range(count)]
    return tuple(Server(id=id, name=id[:4], host="", client=1, peer=2, files=3, zone=id) for id in ids)


def trial(chunks: int, before: int, chance: random.Random) -> tuple[float, float]:
    """The new server's share, 1.0 being the fair one, and fullest over emptiest minus 1 of all then."""
    farm = servers(before + 1, chance)
    held: Counter[str] = Counter()
    for _ in range(chunks):
        held.update(owner.id for owner in placement.owners(chance.randbytes(32), farm, REPLICAS))
    fair = chunks * REPLICAS / (before + 1)
    return held[farm[-1].id] / fair, max(held.values()) / min(held.values()) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=5, help="before one more joins")
    parser.add_argument("--trials", type=int, default=40)
    arguments = parser.parse_args()
    chance = random.Random(1)
    print(f"{arguments.servers} servers and one more, {REPLICAS} replicas, {arguments.trials} farms each")
    print("chunks   moves (of a fair share)   fullest over emptiest")
    print("         least    most             mean     most")
    for chunks in (64, 256, 1024, 4096, 16384):
        found = [trial(chunks, arguments.servers, chance) for _ in range(arguments.trials)]
        shares, spreads = zip(*found, strict=True)
        mean = sum(spreads) / len(spreads)
        print(f"{chunks:6}   {min(shares):5.2f}    {max(shares):5.2f}            {mean:5.1%}    {max(spreads):5.1%}")


if __name__ == "__main__":
    main()

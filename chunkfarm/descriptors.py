"""How many files and connections this process may have open."""

from __future__ import annotations

import resource
import sys


def raise_descriptor_limit() -> int:
    """Take as many descriptors as this process may have without asking anybody; gives their number.

    The usual soft limit of 1,024 is there for programs that use select(2), which none of this does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            # A sandbox may forbid the call; then what there is must do.
            pass
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft

"""What is the same for every link of the client port. What a machine may have otherwise is in `chunkfarm.limits`."""

from __future__ import annotations

from chunkfarm.model import KIB

CLOSE_TIMEOUT = 10.0
"""Seconds to take the last answer, after which the connection is cut."""
CHECK_INTERVAL = 15.0
"""Seconds between two looks at what takes time; shorter where a limit is."""
EMIT_WHOLE = 64 * KIB
"""Answers are joined up to about this size before they are written."""
LINES_IN_TURN = 64
"""Lines of one link that are taken before all others have a turn: a read may bring fifty thousand of them, and a
stranger's too would keep everybody waiting for seconds."""

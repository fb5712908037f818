"""What one link of the client port may take: memory and time. What all of them may take stands in `factory`."""

from __future__ import annotations

from chunkfarm.model import KIB, MIB

PENDING_MAX = 64
"""Commands of one link that are read and not yet answered: enough to keep a link of a long way busy."""
PAYLOAD_BYTES_MAX = 24 * MIB
"""Payloads of one link in memory: three chunks of the usual size, one on its way in, one being hashed and
written, one waiting for its copies. A single larger one passes alone."""
WATCH_BACKLOG_MAX = 1 * MIB
"""Bytes of events that wait for a slow watcher; some thousand rows. It reads and watches again."""
IDLE_TIMEOUT = 600.0
"""Seconds without a word from a link that has proved who it is: longer than any pause within a job."""
STRANGER_TIMEOUT = 60.0
"""The same for all others: time to type a command by hand, and little for those who only hold connections."""
CLOSE_TIMEOUT = 10.0
"""Seconds to take the last answer, after which the connection is cut."""
PAYLOAD_RATE_MIN = 1 * KIB
"""Bytes a second that a payload must arrive with on average, because it holds memory until it is whole."""
PAYLOAD_PATIENCE = 60.0
"""Seconds before that average is looked at."""
CHECK_INTERVAL = 15.0
"""Seconds between two looks at these limits."""
EMIT_WHOLE = 64 * KIB
"""Answers are joined up to about this size before they are written."""

"""`/-/health`: what this server does and waits for, for whoever watches it. No key is needed."""

from __future__ import annotations

from typing import Any

from chunkfarm.model import timestamp
from chunkfarm.ports.files.answers import RETRY_AFTER_SECONDS, Answer, json_answer
from chunkfarm.state import ServerState
from chunkfarm.wire.http1 import fields


def health(state: ServerState) -> Answer:
    """200 while files can be read here, 503 otherwise; never more than HELLO on the client port tells."""
    value: dict[str, Any] = {"state": state.phase, "server": state.server_id}
    if state.farm_id:
        value["farm"] = state.farm_id
    if state.waits:
        value["waits"] = [
            {
                "address": str(wait.address),
                "error": wait.error,
                "since": timestamp(wait.since),
                "tries": wait.tries,
            }
            for wait in state.waits
        ]
    if state.phase in ("serving", "readonly"):
        return json_answer(200, value)
    return json_answer(503, value, fields(("Retry-After", str(RETRY_AFTER_SECONDS))))

"""One client with one kept TLS connection, in a process of its own: small files one after the other.

Prints JSON: `seconds` for all, and `each`, the milliseconds of every request. Nothing but the standard
library, so that it costs any server the same; what it costs itself is about 0.2 ms a request.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import ssl
import time


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("verb", choices=["PUT", "GET"])
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--prefix", required=True, help="what the names begin with")
    options.add_argument("--count", type=int, required=True)
    options.add_argument("--size", type=int, required=True)
    options.add_argument("--ca", required=True)
    options.add_argument("--key", default="", help="<key id>:<secret>")
    chosen = options.parse_args()
    context = ssl.create_default_context(cafile=chosen.ca)
    context.check_hostname = False
    connection = http.client.HTTPSConnection("127.0.0.1", chosen.port, context=context, timeout=60)
    headers = {}
    if chosen.key:
        headers["Authorization"] = "Basic " + base64.b64encode(chosen.key.encode()).decode()
    bodies = [os.urandom(chosen.size) for _ in range(chosen.count)] if chosen.verb == "PUT" else []
    # The handshake, and what a first request does once, are not what is measured.
    ask(connection, "GET", f"{chosen.prefix}none", None, headers)
    each = []
    begin = time.perf_counter()
    for number in range(chosen.count):
        before = time.perf_counter()
        body = bodies[number] if bodies else None
        status, length = ask(connection, chosen.verb, f"{chosen.prefix}{number}", body, headers)
        assert status in (200, 201, 204), status
        assert chosen.verb == "PUT" or length == chosen.size, length
        each.append((time.perf_counter() - before) * 1000)
    print(json.dumps({"seconds": time.perf_counter() - begin, "each": each}))


def ask(
    connection: http.client.HTTPSConnection, verb: str, path: str, body: bytes | None, headers: dict[str, str]
) -> tuple[int, int]:
    """One request; its status, and how many bytes the answer has."""
    connection.request(verb, path, body=body, headers=headers)
    answer = connection.getresponse()
    return answer.status, len(answer.read())


if __name__ == "__main__":
    main()

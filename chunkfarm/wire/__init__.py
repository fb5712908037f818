"""Bytes on a wire, without meaning: transports, framing, HTTP heads."""

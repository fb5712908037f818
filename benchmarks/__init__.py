"""Measurements. Each is run by hand, starts what it needs on 127.0.0.1, and ends it again."""

"""Chunks: this disk, who should hold what, and moving bytes between servers."""

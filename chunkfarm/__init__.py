"""chunkfarm turns a handful of ordinary machines into one file store."""

__version__ = "0.1.0"

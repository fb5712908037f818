"""`config.ini`: parse, validate once into frozen values, rewrite atomically.

This is the door that other rooms come in by. Behind it, `config_values` says what one option means,
`config_text` reads a whole file, `config_render` writes the farm's sections anew (all three pure), and
`config_file` moves the text to and from the disk.
"""

from __future__ import annotations

from chunkfarm.config_file import ConfigFile, ForeignFarm, HeldConfig, LockHeld, read_config
from chunkfarm.config_render import Difference, render
from chunkfarm.config_text import Config, Listed, ServerOptions, parse_config
from chunkfarm.config_values import (
    ConfigError,
    ListenDescription,
    check_farm,
    clean_name,
    farm_option_text,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    read_farm_option,
    read_host,
)

__all__ = [
    "Config",
    "ConfigError",
    "ConfigFile",
    "Difference",
    "ForeignFarm",
    "HeldConfig",
    "Listed",
    "ListenDescription",
    "LockHeld",
    "ServerOptions",
    "check_farm",
    "clean_name",
    "farm_option_text",
    "format_duration",
    "format_size",
    "parse_config",
    "parse_duration",
    "parse_size",
    "read_config",
    "read_farm_option",
    "read_host",
    "render",
]

"""The line protocol that people, scripts and other servers speak."""

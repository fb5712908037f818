"""Connections that this server opens to others."""

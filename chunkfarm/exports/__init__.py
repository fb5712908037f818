"""Exports of the table: all its rows as chunks, from which the names outlive the disks of every master.

`form` says what an export looks like, `maker` makes one an hour on the first, `keeper` keeps the pieces on the
servers. `finding` looks for them without any table, and `chunkfarm.restoring` reads one back.
"""

"""The page that people see at a folder's address: self-contained, nothing on it comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import quote, urlencode

from chunkfarm.model import KIB, File, timestamp

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.2em 1em .2em 0}"
    "th{border-bottom:1px solid}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#9cf}}"
)


def listing_page(
    prefix: str, after: str, folders: Sequence[str], files: Sequence[File], following: str | None
) -> bytes:
    """Folders (with their `/`) and files under `prefix`, all of them escaped."""
    title = escape(prefix or "all files")
    rows = [f'<tr><td><a href="{_link(name)}">{escape(name[len(prefix) :])}</a><td><td><td>' for name in folders]
    rows += [
        f'<tr><td><a href="{_link(file.name)}">{escape(file.name[len(prefix) :])}</a>'
        f'<td class="n" title="{file.size}">{_size(file.size)}'
        f"<td>{timestamp(file.modified)[:19].replace('T', ' ')}<td>{escape(file.content_type)}"
        for file in files
    ]
    if not rows:
        rows = ['<tr><td colspan="4">nothing here']
    more = ""
    if following is not None:
        folder, partial = prefix[: prefix.rfind("/") + 1], prefix[prefix.rfind("/") + 1 :]
        query = urlencode(({"prefix": partial} if partial else {}) | {"after": following})
        more = f'<p><a href="{_link(folder)}?{escape(query)}">more</a></p>'
    note = f"<p>after {escape(after)}</p>" if after else ""
    return (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{_crumbs(prefix)}</h1>{note}<table>"
        '<tr><th>name<th class="n">size<th>modified (UTC)<th>type'
        f"{''.join(rows)}</table>{more}</html>\n"
    ).encode()


def _crumbs(prefix: str) -> str:
    """Where we are, each step a link."""
    crumbs, path = ['<a href="/">all files</a>'], ""
    for part in prefix.split("/")[:-1]:
        path += part + "/"
        crumbs.append(f'<a href="{_link(path)}">{escape(part)}</a>')
    rest = prefix.rpartition("/")[2]
    return " / ".join(crumbs) + (f" / {escape(rest)}…" if rest else "")


def _link(name: str) -> str:
    return escape("/" + quote(name))


def _size(size: int) -> str:
    if size < KIB:
        return f"{size} B"
    value, units = size / KIB, ["KiB", "MiB", "GiB", "TiB"]
    while value >= KIB and len(units) > 1:
        value /= KIB
        del units[0]
    return f"{value:.1f} {units[0]}"

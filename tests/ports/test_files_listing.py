"""Listings: JSON for programs, a page for people."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.ports.files import listing
from tests.ports.files_caller import Answered, Caller

NAMES = ("home/a.txt", "home/b-c", "home/b/1", "home/b/2", "home/b/deep/3", "home/c", "work/x")


class Links(HTMLParser):
    """The links of a page, and the tags on it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name == "href" and value is not None]


class JsonTests(SynchronousTestCase):
    """Listings as JSON."""

    def make(self, names: tuple[str, ...] = NAMES) -> Caller:
        caller = Caller()
        for name in names:
            caller.backend.catalog.add(name, name.encode(), "text/plain")
        return caller

    def look(self, caller: Caller, target: str, **query: Any) -> Any:
        answer = caller.one("GET", f"{target}?{urlencode({'format': 'json'} | query)}", key="reader")
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"
        return answer.json

    def names(self, value: Any) -> list[str]:
        return [file["name"] for file in value["files"]]

    def test_fields(self) -> None:
        """A listing says of each file what a program wants to know."""
        caller = self.make(("home/a.txt",))
        assert self.look(caller, "/") == {
            "prefix": "",
            "files": [
                {
                    "name": "home/a.txt",
                    "size": 10,
                    "modified": "2026-11-22T10:00:00.123Z",
                    "etag": caller.backend.catalog.files["home/a.txt"].etag,
                    "content_type": "text/plain",
                }
            ],
            "more": False,
            "next": None,
        }

    def test_accept(self) -> None:
        """JSON is asked for by header or by query; otherwise there is a page."""
        caller = self.make()
        answer = caller.one("GET", "/", "Accept: application/json")
        assert answer.headers["content-type"] == "application/json" and answer.headers["vary"] == "Accept"
        for lines in ((), ("Accept: text/html,*/*",)):
            assert caller.one("GET", "/", *lines).headers["content-type"] == "text/html; charset=utf-8"

    def test_prefixes(self) -> None:
        """A bucket, a folder in it, and the beginning of a name."""
        caller = self.make()
        assert self.names(self.look(caller, "/")) == list(NAMES)
        assert self.names(self.look(caller, "/home")) == list(NAMES[:6])
        assert self.names(self.look(caller, "/home/")) == list(NAMES[:6])
        assert self.names(self.look(caller, "/home/b/")) == list(NAMES[2:5])
        assert self.names(self.look(caller, "/home/", prefix="b")) == list(NAMES[1:5])
        assert self.names(self.look(caller, "/", prefix="work/")) == ["work/x"]
        assert self.names(self.look(caller, "/none/")) == []

    def test_pages(self) -> None:
        """With `next` as `after` every file is listed once."""
        caller, after = self.make(), ""
        found: list[str] = []
        while True:
            page = self.look(caller, "/", limit=2, after=after)
            found += self.names(page)
            assert page["more"] is (page["next"] is not None)
            if not page["more"]:
                break
            after = page["next"]
        assert found == list(NAMES)

    def test_folders(self) -> None:
        """With a delimiter folders are one entry each, in pages too."""
        caller = self.make()
        page = self.look(caller, "/home/", delimiter="/")
        assert (page["folders"], self.names(page)) == (["home/b/"], ["home/a.txt", "home/b-c", "home/c"])
        assert self.look(caller, "/", delimiter="/")["folders"] == ["home/", "work/"]
        folders: list[str] = []
        files: list[str] = []
        after: str | None = ""
        for _ in range(4):
            page = self.look(caller, "/home/", delimiter="/", limit=1, after=after)
            folders += page["folders"]
            files += self.names(page)
            after = page["next"]
        assert (folders, files, after) == (["home/b/"], ["home/a.txt", "home/b-c", "home/c"], None)

    def test_large_folders(self) -> None:
        """A folder of many files costs one more step, not one for each page of its files."""
        caller = Caller()
        for number in range(listing.FOLD_READ * 8):
            caller.backend.catalog.add(f"home/large/{number:06}", b"")
        caller.backend.catalog.add("home/z", b"")
        page = self.look(caller, "/home/", delimiter="/")
        assert (page["folders"], self.names(page), page["more"]) == (["home/large/"], ["home/z"], False)
        assert len([call for call in caller.backend.catalog.calls if call[0] == "list"]) == 2

    def test_names_at_the_very_end(self) -> None:
        """Whoever stores names with the last character there is keeps nobody from the folders behind theirs."""
        caller = Caller()
        last = "\U0010ffff"
        for number in range(3 * listing.FOLD_READ):
            caller.backend.catalog.add(f"home/a/{last}{last}{number}", b"")
        caller.backend.catalog.add("home/b/c", b"")
        assert self.look(caller, "/home/", delimiter="/")["folders"] == ["home/a/", "home/b/"]
        folders: list[str] = []
        after: str | None = ""
        for _ in range(3):
            page = self.look(caller, "/home/", delimiter="/", limit=1, after=after)
            folders += page["folders"]
            after = page["next"]
            if after is None:
                break
        assert (folders, after) == (["home/a/", "home/b/"], None)

    def test_very_many_folders(self) -> None:
        """When one answer would take too many steps, it ends early and says where to go on."""
        self.patch(listing, "FOLD_READS_MAX", 2)
        self.patch(listing, "FOLD_READ", 1)
        caller = self.make(tuple(f"b{number}/x" for number in range(5)))
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            page = self.look(caller, "/", delimiter="/", after=after)
            found += page["folders"]
            after = page["next"]
        assert found == [f"b{number}/" for number in range(5)]

    def test_any_tree(self) -> None:
        """Whatever the names are, folding and paging show each file and each folder exactly once."""
        part = st.text("ab-/0", min_size=1, max_size=6)
        legal = part.filter(lambda text: all(text.split("/")))

        @given(st.sets(legal, max_size=12), st.integers(1, 5), st.integers(1, 4))
        def holds(paths: set[str], limit: int, read: int) -> None:
            self.patch(listing, "FOLD_READ", read)
            caller = self.make(tuple("home/" + path for path in paths))
            folders: list[str] = []
            files: list[str] = []
            after: str | None = ""
            while after is not None:
                page = self.look(caller, "/home/", delimiter="/", limit=limit, after=after)
                assert len(page["folders"]) + len(page["files"]) <= limit
                folders += page["folders"]
                files += self.names(page)
                after = page["next"]
            assert files == sorted("home/" + path for path in paths if "/" not in path)
            assert folders == sorted({"home/" + path.split("/")[0] + "/" for path in paths if "/" in path})

        holds()

    def test_refused(self) -> None:
        """A listing that cannot be meant is refused with a sentence."""
        caller = self.make()
        for target in (
            "/-x/",
            "/a%20b/",
            "/home//",
            "/?limit=0",
            "/?limit=1001",
            "/?limit=x",
            "/?limit=-1",
            "/?delimiter=,",
            "/?format=xml",
            "/?after=a&after=b",
            "/?prefix=%ff",
            "/?prefix=" + "x" * 1100,
        ):
            answer = caller.one("GET", target)
            assert (answer.status, answer.text[:7]) == (400, "syntax "), target

    def test_stale(self) -> None:
        """Without a majority the listing says of which revision it is."""
        caller = self.make()
        caller.backend.catalog.stale = 9
        for query in ("?format=json", "?format=html"):
            assert caller.one("GET", "/" + query).headers["warning"] == '110 chunkfarm "as of revision 9"'

    def test_head(self) -> None:
        """HEAD of a listing has the head of GET."""
        caller = self.make()
        assert caller.one("HEAD", "/home/").headers == caller.one("GET", "/home/").headers


class PageTests(SynchronousTestCase):
    """Listings as a page."""

    def page(self, *names: str, target: str = "/") -> tuple[Answered, Links]:
        caller = Caller()
        for name in names:
            caller.backend.catalog.add(name, b"x" * 2000, "text/plain")
        answer = caller.one("GET", target)
        assert answer.status == 200
        return answer, Links(answer.text)

    def test_links(self) -> None:
        """Folders and files are links that lead there, and the way back is on top."""
        answer, page = self.page(*NAMES, target="/home/")
        assert page.links == ["/", "/home/", "/home/b/", "/home/a.txt", "/home/b-c", "/home/c"]
        assert "2.0 KiB" in answer.text and "2026-11-22 10:00:00" in answer.text

    def test_links_work(self) -> None:
        """Every link of a page is answered, whatever the names are."""
        caller = Caller()
        name = 'home/ä & b/"<x>?#%41'
        caller.backend.catalog.add(name, b"found")
        target = "/"
        for _ in range(3):
            page = Links(caller.one("GET", target).text)
            target = page.links[-1]
        assert target == "/" + quote(name)
        assert caller.one("GET", target).body == b"found"

    def test_escaped(self) -> None:
        """A name is never part of the page itself, and the page may fetch nothing from elsewhere."""
        answer, page = self.page("home/<script>alert(1)</script>", 'home/" onclick="x', target="/home/")
        assert "script" not in page.tags and "<script" not in answer.text and 'onclick="x' not in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert not re.search(r'(src|href)="(https?:)?//', answer.text)

    def test_more(self) -> None:
        """A long listing ends with a link to the rest."""
        caller = Caller()
        for number in range(5):
            caller.backend.catalog.add(f"home/a b&{number}", b"")
        first = Links(caller.one("GET", "/home/?limit=3&prefix=a").text)
        assert first.links[-1] == "/home/?prefix=a&after=home%2Fa+b%262"
        second = Links(caller.one("GET", first.links[-1]).text)
        assert [link for link in second.links if "26" in link] == ["/home/a%20b%263", "/home/a%20b%264"]

    def test_nothing(self) -> None:
        """An empty farm has a page that says so."""
        answer, _ = self.page()
        assert "nothing here" in answer.text

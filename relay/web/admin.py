"""/admin/…: Icecast's commands for control panels, and who may give them.

Rules of this room
  1. Every command wants the admin's password. One about a mount takes that of the mount's source,
     too, as Icecast 2.4 has it; where it changes something, by POST alone. Titles are taken from a
     source in any way (titles.py).
  2. What changes something is refused when a page of another site asked: a browser may hold the
     operator's password. Control panels and scripts send none of those headers.
  3. Answers have Icecast 2.4's shapes (icestats.py); refusals are 400, 401, 403, 404 with a
     message, where 2.4 says 400 to nearly everything.
  4. `.xsl` is the same for people: the tree as a page (admin_page.py).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from relay.auth import REALM, credentials
from relay.config import Config
from relay.errors import ConfigError, MountError, RelayError
from relay.web import admin_page, icestats, pages, titles
from relay.web.facts import Desk

if TYPE_CHECKING:
    from relay.web.icestats import Node

XML = {"Content-Type": "text/xml; charset=utf-8"}
PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


_OF_ALL = frozenset({"", "listmounts", "streamlist"})  # they tell of mounts that are not named


class Refused(Exception):
    """A command that is not carried out, with its status and why."""

    def __init__(self, status: int, why: str) -> None:
        self.status = status
        super().__init__(why)


def is_admin(config: Config, header: str | None) -> bool:
    """Whether this Authorization header has the admin's credentials."""
    return titles.is_admins(config, credentials(header))


def refusal(status: int, why: str) -> web.Response:
    """A command that was refused, as Icecast answers one."""
    headers = {**XML, **({"WWW-Authenticate": f'Basic realm="{REALM}"'} if status == 401 else {})}
    return web.Response(text=icestats.response(why, done=False), status=status, headers=headers)


@dataclass(frozen=True, slots=True)
class Asked:
    """A command: its fields, and how this node is called by who asks."""

    fields: dict[str, str]
    base_url: str

    def mount(self, name: str = "mount") -> str:
        """The mount that a field names; Refused when it is missing."""
        mount = self.fields.get(name, "")
        if not mount:
            raise Refused(400, f"Missing parameter: {name}")
        return mount if mount.startswith("/") else f"/{mount}"

    def number(self) -> int:
        """The listener's id; 0: none is named. Refused when it is no number."""
        text = self.fields.get("id", "")
        if text and not (text.isascii() and text.isdigit() and 0 < len(text) <= 18 and int(text)):
            raise Refused(400, "id must be the number of a listener, as listclients tells it")
        return int(text or 0)


Command = Callable[[Asked], Awaitable["Node | str"]]


class Admin:
    """The commands of one node.

    Args:
        desk: the node.
        base_url: how it is called by who asks.
    """

    def __init__(self, desk: Desk, base_url: Callable[[web.Request], str]) -> None:
        self._desk = desk
        self._base_url = base_url
        self._tells: dict[str, Command] = {
            "": self._stats,
            "stats": self._stats,
            "listmounts": self._mounts,
            "streamlist": self._mounts,
            "listclients": self._clients,
        }
        self._changes: dict[str, Command] = {
            "killclient": self._kill_client,
            "killsource": self._kill_source,
            "moveclients": self._move_clients,
            "fallbacks": self._fallbacks,
            "fallback": self._fallbacks,  # Icecast-KH's word
            "updatemetadata": self._update_metadata,
        }

    def route(self, router: web.UrlDispatcher) -> None:
        """Put the commands on their paths."""
        for path in ("/admin/streamlist.txt", "/admin/streams"):  # Icecast's, Icecast-KH's
            router.add_get(path, self.stream_list)
        router.add_get("/admin/buildm3u", self.build_m3u)
        router.add_get("/admin", self.answer)
        for path in ("/admin/{command:[a-z]*}", "/admin/{command:[a-z]*}.xsl"):
            router.add_get(path, self.answer)
            router.add_post(path, self.answer)

    async def answer(self, request: web.Request) -> web.Response:
        """GET or POST /admin/COMMAND."""
        name = request.match_info.get("command", "")
        command = self._tells.get(name) or self._changes.get(name)
        try:
            asked = await self._admitted(request, name)
            if command is None:
                raise Refused(404, f"Unrecognised command: {name}")
            told = await command(asked)
        except Refused as wrong:
            return refusal(wrong.status, str(wrong))
        except MountError as wrong:
            return refusal(404, f"Source does not exist: {wrong}")
        except RelayError as wrong:
            return refusal(503, str(wrong))
        if name == "" or request.path.endswith(".xsl"):
            return admin_page.page(told, self._desk.facts().name)
        text = told if isinstance(told, str) else icestats.xml_document(told)
        return web.Response(text=text, headers=XML)

    async def _admitted(self, request: web.Request, name: str) -> Asked:
        """The command, if it may be given."""
        raw: list[str | bytes] = [request.raw_path.partition("?")[2]]
        if request.method == "POST":
            raw.append(await request.read())
        fields = {n: titles.decode(value, "") for n, value in titles.parse_fields(*raw).items()}
        asked = Asked(fields, self._base_url(request))
        if not is_admin(self._desk.config, request.headers.get("Authorization")):
            await self._admit_source(request, name, asked)
        if name in self._changes and titles.is_foreign(request.headers):
            raise Refused(403, "a page of another site may not do this")
        return asked

    async def _admit_source(self, request: web.Request, name: str, asked: Asked) -> None:
        """Refuse who is not the source of each mount that the command names."""
        account = credentials(request.headers.get("Authorization"))
        named = [asked.mount(n) for n in ("mount", "destination") if asked.fields.get(n)]
        if name in _OF_ALL or account is None or not asked.fields.get("mount"):
            raise Refused(401, "You need to authenticate: user admin, the admin's password")
        where = request.remote or "", request.headers.get("User-Agent", "")
        for mount in named:
            is_known = await self._desk.knows_source(mount, account, *where)
            if not account[0] or not titles.may_set_title(
                self._desk.config, mount, account, is_known
            ):
                raise Refused(401, "You need to authenticate: user admin, the admin's password")
        if name in self._changes and name != "updatemetadata" and request.method != "POST":
            raise Refused(403, "a GET that changes something wants the admin's password; use POST")

    # --- what tells ---

    async def stream_list(self, request: web.Request) -> web.Response:
        """GET /admin/streamlist.txt, /admin/streams: one mount a line, for relays.

        Icecast-KH writes `/admin/streams?mount=/x` there and has its relays pull that; of a line
        that is a mount they pull the mount.
        """
        try:
            await self._admitted(request, "streamlist")
        except Refused as wrong:
            return refusal(wrong.status, str(wrong))
        lines = (f"{stream.mount}\r\n" for stream in icestats.live_streams(self._desk.facts()))
        return web.Response(text="".join(lines), headers=PLAIN)

    async def build_m3u(self, request: web.Request) -> web.Response:
        """GET /admin/buildm3u: a playlist with a listener's name and password in it."""
        try:
            asked = await self._admitted(request, "buildm3u")
            mount = asked.mount()
            user, secret = (asked.fields.get(name, "") for name in ("username", "password"))
            if not user or not secret:
                raise Refused(400, "Missing parameter: username and password")
        except Refused as wrong:
            return refusal(wrong.status, str(wrong))
        account = f"{quote(user, safe='')}:{quote(secret, safe='')}"
        url = asked.base_url.replace("://", f"://{account}@", 1) + pages.path_of(mount)
        headers = {
            "Content-Type": pages.PLAYLISTS["m3u"],
            "Content-Disposition": "attachment; filename=listen.m3u",
        }
        return web.Response(body=f"{url}\r\n".encode(), headers=headers)

    async def _stats(self, asked: Asked) -> Node:
        mount = asked.mount() if asked.fields.get("mount") else None
        if mount is not None:
            self._live(mount)
        return icestats.stats(self._desk.facts(), asked.base_url, mount)

    async def _mounts(self, asked: Asked) -> Node:
        return icestats.mounts(self._desk.facts(), time.time())

    async def _clients(self, asked: Asked) -> Node:
        mount = asked.mount()
        return icestats.clients(mount, await self._desk.roll(mount))

    def _live(self, mount: str) -> None:
        if not icestats.live_streams(self._desk.facts(), mount):
            raise MountError(f"{mount} has no source")

    # --- what changes ---

    async def _kill_client(self, asked: Asked) -> str:
        mount, number = asked.mount(), asked.number()
        if not number:
            raise Refused(400, "Missing parameter: id")
        ended = await self._desk.end_listeners(mount, number)
        what = "removed" if ended else "not found"
        return icestats.response(f"Client {number} {what}", done=bool(ended))

    async def _kill_source(self, asked: Asked) -> str:
        self._desk.end_source(asked.mount())
        return icestats.response("Source Removed")

    async def _move_clients(self, asked: Asked) -> Node | str:
        mount, number = asked.mount(), asked.number()
        if not asked.fields.get("destination"):
            return icestats.destinations(mount, self._desk.facts(), time.time())
        to = asked.mount("destination")
        if mount == to:
            raise Refused(400, "supplied mountpoints are identical")
        try:
            found, stayed = await self._desk.move_listeners(mount, to, number)
        except MountError as wrong:
            raise Refused(404, str(wrong)) from None
        text = f"Clients moved from {mount} to {to}: {found - stayed}"
        if stayed:
            text += f"; {stayed} had to stay, since {to} is full or has another format"
        return icestats.response(text, done=found > stayed or not found)

    async def _fallbacks(self, asked: Asked) -> str:
        mount = asked.mount()
        if "fallback" not in asked.fields:
            chain = self._desk.fallback_chain(mount)
            return icestats.response(", ".join(chain) if chain else f"{mount} has no fallback")
        wanted = asked.mount("fallback") if asked.fields["fallback"] else None
        try:
            self._desk.set_fallback(mount, wanted)
        except ConfigError as wrong:
            raise Refused(400, str(wrong)) from None
        return icestats.response("Fallback configured" if wanted else "Fallback removed")

    async def _update_metadata(self, asked: Asked) -> Node | str:
        mount = asked.mount()
        self._live(mount)
        fields = {name: value.encode() for name, value in asked.fields.items()}
        title = titles.title_of(fields)
        if title is None:
            return icestats.one_mount(mount)
        self._desk.set_title(mount, title, titles.url_of(fields))
        return icestats.response("Metadata update successful")

"""The routes of the slow door: which path is answered by whom.

Rules of this room
  1. Handlers are thin: they read the request, ask the desk, and give its answer a form.
  2. Every reply closes its connection, is small and says `nosniff`; errors are JSON of one line.
  3. Bodies are bounded (BODY_BYTES_MAX); nothing here waits for anything but its own body.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from relay.address import parse_base_url
from relay.auth import REALM
from relay.errors import MountError
from relay.recorder import KEEP_S, RECORDS_DEFAULT, RECORDS_MAX, seconds
from relay.web import icestats, metrics, pages, titles
from relay.web.admin import Admin, is_admin
from relay.web.events import COUNTED, Events
from relay.web.facts import Desk, status_document, stream_document

BODY_BYTES_MAX = 16384
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "Icy-MetaData, Range, If-Range, Authorization, Content-Type",
    "Access-Control-Expose-Headers": (
        "icy-metaint, icy-name, icy-br, icy-genre, icy-url, icy-description, ice-audio-info, "
        "Content-Length, Content-Range"
    ),
    "Access-Control-Max-Age": "86400",
}
ALLOW = "GET, HEAD, OPTIONS, PUT, SOURCE, POST"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_reply(document: Any, status: int = 200, **headers: str) -> web.Response:
    """A JSON document on one line."""
    return web.Response(
        body=msgspec.json.encode(document) + b"\n",
        status=status,
        content_type="application/json",
        charset="utf-8",
        headers={"Access-Control-Allow-Origin": "*", **headers},
    )


def error_reply(status: int, message: str, **headers: str) -> web.Response:
    """An error as one line of JSON."""
    return json_reply({"error": message}, status, **headers)


@web.middleware
async def one_line_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer OPTIONS everywhere; turn aiohttp's own errors into our form."""
    if request.method == "OPTIONS":
        return web.Response(status=204, headers={**CORS, "Allow": ALLOW})
    try:
        return await handler(request)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return error_reply(error.status, _in_words(error), **headers)


def _in_words(error: web.HTTPException) -> str:
    """What was wrong, and what would be right."""
    if error.status == 404:
        return "no such page or stream here; GET / lists the streams"
    if error.status == 405:
        return f"this page takes {error.headers['Allow']}"
    if error.status == 413:
        return f"the body is too long; at most {BODY_BYTES_MAX} bytes"
    return error.reason.lower()


async def no_tls(request: web.Request) -> web.Response:
    """This door speaks plain HTTP, whatever `Upgrade` asks for (RFC 9110 §7.8 lets it)."""
    return error_reply(400, "there is no TLS here")


async def finish(request: web.Request, response: web.StreamResponse) -> None:
    """The lines that every reply carries."""
    response.force_close()
    response.headers["Connection"] = "close"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "Relay"
    response.headers.setdefault("Cache-Control", "no-store")


def not_admin() -> web.Response:
    """What strangers are told."""
    why = "this page wants the admin's password (Basic)"
    return error_reply(401, why, **{"WWW-Authenticate": f'Basic realm="{REALM}"'})


class Pages:
    """The handlers of one node."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._metrics = metrics.exposition(desk.facts)

    def base_url(self, request: web.Request) -> str:
        """This node as the settings call it, or as the asker knows it; its own address when the
        Host header is odd."""
        if told := self._desk.config.http.base_url:
            return parse_base_url(told)
        host = request.headers.get("Host", "")
        if not re.fullmatch(
            r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](:\d{1,5})?", host
        ):
            host = self._desk.facts().http or "localhost"
        return f"http://{host}"

    async def index(self, request: web.Request) -> web.Response:
        """GET /."""
        return web.Response(
            text=pages.index(self._desk.facts()),
            content_type="text/html",
            headers={
                "Content-Security-Policy": pages.CONTENT_SECURITY_POLICY,
                "Referrer-Policy": "no-referrer",
            },
        )

    async def status(self, request: web.Request) -> web.Response:
        """GET /api/v1/status."""
        return json_reply(status_document(self._desk.facts()))

    async def streams(self, request: web.Request) -> web.Response:
        """GET /api/v1/streams."""
        streams = [stream_document(stream) for stream in self._desk.facts().streams]
        return json_reply({"streams": streams})

    async def recorder(self, request: web.Request) -> web.Response:
        """GET /api/v1/recorder: what was decided in the last minutes; for the admin alone."""
        if not is_admin(self._desk.config, request.headers.get("Authorization")):
            return not_admin()
        since_s = seconds(request.query.get("since", f"{KEEP_S}"))
        limit = request.query.get("limit", str(RECORDS_DEFAULT))
        if since_s is None:
            return error_reply(400, "since must be a time, such as 90s or 5m")
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 9):
            return error_reply(400, f"limit must be a number, at most {RECORDS_MAX}")
        records_max = min(int(limit), RECORDS_MAX)
        return json_reply(self._desk.recording(since_s, request.query.get("stream"), records_max))

    async def listeners(self, request: web.Request) -> web.Response:
        """GET /api/v1/streams/MOUNT/listeners; for the admin alone."""
        if not is_admin(self._desk.config, request.headers.get("Authorization")):
            return not_admin()
        try:
            roll = await self._desk.roll("/" + request.match_info["mount"].removeprefix("/"))
        except MountError as wrong:
            return error_reply(404, str(wrong))
        told = [listener._asdict() for listener in roll.listeners]
        return json_reply({"found": roll.found, "listeners": told})

    async def icestats(self, request: web.Request) -> web.Response:
        """GET /status-json.xsl."""
        mount = request.query.get("mount")
        return json_reply(icestats.stats_json(self._desk.facts(), self.base_url(request), mount))

    async def seven(self, request: web.Request) -> web.Response:
        """GET /7.html, as SHOUTcast 1 has it."""
        text = icestats.seven(self._desk.facts(), request.query.get("mount"))
        return web.Response(text=text, content_type="text/html")

    async def health(self, request: web.Request) -> web.Response:
        """GET /healthz: the process lives."""
        facts = self._desk.facts()
        document = {
            "status": "ok",
            "name": facts.name,
            "id": facts.id,
            "version": facts.version,
            "uptime_s": facts.uptime_s,
            "insecure": facts.insecure,
            "trust": facts.trust,
        }
        return json_reply(document)

    async def ready(self, request: web.Request) -> web.Response:
        """GET /readyz: new listeners may be sent here."""
        problems = self._desk.problems()
        document = {"ready": not problems, "problems": problems}
        return json_reply(document, 503 if problems else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        return web.Response(body=self._metrics(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def metadata(self, request: web.Request) -> web.Response:
        """GET or POST /admin/metadata, /admin.cgi."""
        if titles.is_foreign(request.headers):
            refused = titles.Answer(403, "a page of another site may not do this")
            return web.Response(text=refused.xml, status=403, content_type="text/xml")
        raw: list[str | bytes] = [request.raw_path.partition("?")[2]]
        if request.method == "POST":
            raw.append(await request.read())
        fields = titles.parse_fields(*raw)
        streams = self._desk.facts().streams
        with_source = [s.mount for s in streams if s.role == "origin" and s.state == "live"]
        meant = titles.mounts_meant(self._desk.config, fields, with_source)
        account = titles.account_of(fields, request.headers.get("Authorization"))
        says: dict[str, bool | None] = {}
        if account is not None and not titles.is_admins(self._desk.config, account):
            where = request.remote or "", request.headers.get("User-Agent", "")
            says = {m: await self._desk.knows_source(m, account, *where) for m in meant}
        answer = titles.update(self._desk, fields, meant, account, says)
        headers = {"WWW-Authenticate": f'Basic realm="{REALM}"'} if answer.status == 401 else {}
        return web.Response(
            text=answer.xml, status=answer.status, content_type="text/xml", headers=headers
        )

    async def playlist(self, request: web.Request) -> web.Response:
        """GET /live.m3u, .pls, .xspf."""
        mount, kind = f"/{request.match_info['mount']}", request.match_info["kind"]
        found = [s for s in self._desk.facts().streams if s.mount == mount]
        if not found:
            raise web.HTTPNotFound
        url = self.base_url(request) + pages.path_of(mount)
        return web.Response(
            body=pages.playlist(kind, url, found[0].name or mount).encode(),
            headers={"Content-Type": pages.PLAYLISTS[kind], "Access-Control-Allow-Origin": "*"},
        )


def make_app(desk: Desk) -> web.Application:
    """The slow door of one node, as an aiohttp application."""
    here = Pages(desk)
    app = web.Application(middlewares=[one_line_errors], client_max_size=BODY_BYTES_MAX)
    app.on_response_prepare.append(finish)
    app.router.add_get("/", here.index)
    app.router.add_get("/api/v1/status", here.status)
    app.router.add_get("/api/v1/streams", here.streams)
    app.router.add_get("/api/v1/recorder", here.recorder)
    app.router.add_get("/status-json.xsl", here.icestats)
    app.router.add_get("/status.xsl", here.index)
    app.router.add_get("/7.html", here.seven)
    # libshout asks for TLS here; of what it understands this is the answer for "no".
    app.router.add_get("/admin/!POKE", no_tls)
    app.router.add_get("/healthz", here.health)
    app.router.add_get("/readyz", here.ready)
    app.router.add_get("/metrics", here.metrics)
    for path in ("/admin/metadata", "/admin/metadata.xsl", "/admin.cgi"):
        app.router.add_get(path, here.metadata)
        app.router.add_post(path, here.metadata)
    Admin(desk, here.base_url).route(app.router)
    events = Events(desk)
    app[COUNTED] = events.snapshot
    app.router.add_get("/api/v1/streams/{mount:.+}/events", events.answer)
    app.router.add_get("/api/v1/streams/{mount:.+}/listeners", here.listeners)
    app.on_shutdown.append(events.close)
    app.router.add_get(r"/{mount:.+}.{kind:m3u|pls|xspf}", here.playlist)
    return app

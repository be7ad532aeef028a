"""/admin/metadata and /admin.cgi: what is playing, as encoders tell it.

Rules of this room
  1. Source or admin credentials; in `pass=` too, for SHOUTcast's form: what its encoders have for
     a password may have a user before it, and the stream id behind it. Where a script says who may
     be the source of a mount, it says who may set its titles.
  2. Raw bytes are decoded by `charset=`, else as UTF-8, else as Latin-1: nothing is refused for it.
  3. A browser that another site sent is refused: it may hold the operator's password (CSRF).
  4. Titles are hostile input: control characters go here, each page escapes for itself.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

from relay.auth import as_text, credentials, same_secret, secrets_in, shoutcast_secret
from relay.config import Config
from relay.errors import MountError
from relay.web.facts import Desk

FIELDS_MAX = 32
TITLE_CHARACTERS_MAX = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and message of a reply."""

    status: int
    message: str

    @property
    def xml(self) -> str:
        """The reply as Icecast writes it."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<iceresponse><message>{escape(self.message)}</message>"
            f"<return>{int(self.status == 200)}</return></iceresponse>\n"
        )


def parse_fields(*raw: str | bytes) -> dict[str, bytes]:
    """Query strings or form bodies as raw values by name; of a name given twice, the last."""
    fields: dict[str, bytes] = {}
    for text in raw:
        told = text.decode("latin-1") if isinstance(text, bytes) else text
        try:
            pairs = parse_qsl(
                told, keep_blank_values=True, encoding="latin-1", max_num_fields=FIELDS_MAX
            )
        except ValueError:
            return {}
        for name, value in pairs:
            fields[name] = value.encode("latin-1", "replace")
    return fields


def decode(raw: bytes, charset: str) -> str:
    """The text in the charset that was named, if it is that; else UTF-8, else Latin-1."""
    try:
        if charset and codecs.lookup(charset)._is_text_encoding:
            return raw.decode(charset)
    except (LookupError, ValueError):
        pass
    return as_text(raw)


def title_of(fields: dict[str, bytes]) -> str | None:
    """The title that these fields tell; None when they tell none.

    Artist and title win over `song`: Mixxx sends both, and its song may be stale.
    """
    charset = decode(fields.get("charset", b""), "")
    told = {
        name: _one_line(decode(fields[name], charset))
        for name in ("artist", "title", "song")
        if name in fields
    }
    if told.get("artist") and told.get("title"):
        return f"{told['artist']} - {told['title']}"[:TITLE_CHARACTERS_MAX]
    for name in ("song", "title", "artist"):
        if told.get(name):
            return told[name][:TITLE_CHARACTERS_MAX]
    return "" if told else None


def url_of(fields: dict[str, bytes]) -> str:
    """The URL that goes with the title; nothing else than one is taken for it (source.py)."""
    return decode(fields.get("url", b""), "").strip()


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a page of another site made a browser send this; encoders and scripts never do.

    Args:
        headers: of the request, names in any case (`CIMultiDict`).
    """
    # https://www.w3.org/TR/fetch-metadata/: "none" is the address bar.
    if headers.get("Sec-Fetch-Site", "").strip().lower() in {"cross-site", "same-site"}:
        return True
    page = headers.get("Origin", headers.get("Referer", "")).strip()
    here = _host_of(f"//{headers.get('Host', '').strip()}")
    return bool(page) and (here is None or _host_of(page) != here)


def _host_of(url: str) -> str | None:
    """Host and port of a URL, without a default port (a proxy may have ended TLS); None: none."""
    try:
        return re.sub(r":(80|443)?$", "", urlsplit(url).netloc.lower()) or None
    except ValueError:
        return None


Account = tuple[str, str]
"""User and password; the user is empty where SHOUTcast's form may have it before the password."""


def account_of(fields: dict[str, bytes], header: str | None) -> Account | None:
    """Who asks: by the Authorization header, or by SHOUTcast's `pass`; None: nobody says so."""
    told = credentials(header)
    if told is None and "pass" in fields:
        told = "", decode(fields["pass"], "")
    return told


def is_admins(config: Config, account: Account | None) -> bool:
    """Whether these are the admin's credentials (user `admin`, or none)."""
    user, secret = account or ("", "")
    secrets = [secret]
    if not user:  # SHOUTcast's form
        secrets.append(shoutcast_secret(secret)[0])
        secrets += [told.removeprefix("admin:") for told in secrets]
    knows = any([same_secret(told, config.http.admin_password) for told in secrets])
    return user in {"", "admin"} and knows


def may_set_title(
    config: Config, mount: str, account: Account | None, is_known: bool | None
) -> bool:
    """Whether this account is the mount's source's or the admin's. is_known: what the script says
    that knows its sources; None: there is none."""
    user, secret = account or ("", "")
    wanted = config.source_password(mount)
    secrets = (secret,) if user else secrets_in(secret)
    as_source = user in {"", "source"} and any([same_secret(told, wanted) for told in secrets])
    return is_admins(config, account) or (as_source if is_known is None else is_known)


def mounts_meant(config: Config, fields: dict[str, bytes], here: Iterable[str]) -> list[str]:
    """The mounts that these fields may mean, the likeliest first. `here`: who has a source here.

    SHOUTcast's form names a stream id, or nothing: then its default is meant, of which nothing may
    have been heard yet (libshout tells the title first), or the only one here.
    """
    if named := decode(fields.get("mount", b""), ""):
        return [named]
    _, sid = shoutcast_secret(decode(fields.get("pass", b""), ""))
    asked = decode(fields.get("sid", b""), "") or str(sid or "")
    told = [m for m, own in config.streams.items() if asked and str(own.shoutcast_sid) == asked]
    if told:
        return told[:1]
    default = [] if config.http.shoutcast is None else [config.http.shoutcast_mount]
    only = list(here)
    return [*default, *(only if len(only) == 1 else [])]


def update(
    desk: Desk,
    fields: dict[str, bytes],
    meant: Sequence[str],
    account: Account | None,
    says: Mapping[str, bool | None] = MappingProxyType({}),
) -> Answer:
    """Carry out one request; a status of 401 wants credentials.

    Args:
        desk: what the pages know of the node.
        fields: of the request (`parse_fields`).
        meant: the mounts that it may mean (`mounts_meant`).
        account: who asks (`account_of`).
        says: for each of those mounts, whether its script knows the account as its source.
    """
    known = [
        mount
        for mount in meant or [""]
        if may_set_title(desk.config, mount, account, says.get(mount))
    ]
    if not known:
        return Answer(401, "user or password is wrong")
    if decode(fields.get("mode", b""), "") != "updinfo":
        return Answer(400, "mode must be updinfo")
    title = title_of(fields)
    if not known[0] or title is None:
        return Answer(400, f"{'song' if known[0] else 'mount'} is missing")
    wrong: list[str] = []
    for mount in known:
        try:
            desk.set_title(mount, title, url_of(fields))
        except MountError as error:
            wrong.append(str(error))
        else:
            return Answer(200, "Metadata update successful")
    return Answer(404, wrong[0])

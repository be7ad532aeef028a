"""/admin/metadata and /admin.cgi: what is playing, as encoders tell it.

Rules of this room
  1. Source or admin credentials; in `pass=` too, for SHOUTcast's form.
  2. Raw bytes are decoded by `charset=`, else as UTF-8, else as Latin-1: nothing is refused for it.
  3. A browser that another site sent is refused: it may hold the operator's password (CSRF).
  4. Titles are hostile input: control characters go here, each page escapes for itself.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

from relay.auth import as_text, credentials, same_secret
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


def may_set_title(config: Config, mount: str, header: str | None, password: str | None) -> bool:
    """Whether these credentials are the mount's source's or the admin's."""
    user, secret = credentials(header) or ("", password or "")
    as_source = same_secret(secret, config.source_password(mount))
    as_admin = same_secret(secret, config.http.admin_password)
    return (as_source and user in {"", "source"}) or (as_admin and user in {"", "admin"})


def update(
    desk: Desk, fields: dict[str, bytes], header: str | None, mounts: Iterable[str]
) -> Answer:
    """Carry out one request; a status of 401 wants credentials."""
    here = list(mounts)
    mount = decode(fields.get("mount", b""), "") or (here[0] if len(here) == 1 else "")
    password = decode(fields["pass"], "") if "pass" in fields else None
    if not may_set_title(desk.config, mount, header, password):
        return Answer(401, "user or password is wrong")
    if decode(fields.get("mode", b""), "") != "updinfo":
        return Answer(400, "mode must be updinfo")
    title = title_of(fields)
    if not mount or title is None:
        return Answer(400, f"{'song' if mount else 'mount'} is missing")
    try:
        desk.set_title(mount, title)
    except MountError as wrong:
        return Answer(404, str(wrong))
    return Answer(200, "Metadata update successful")

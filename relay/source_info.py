"""What a source says of itself, and what listeners are told of it.

Rules of this room
  1. It is hostile: control characters go, every line is bounded, unknown names are left out.
  2. Text in, header lines out: no stream, no socket.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

INFO_VALUE_BYTES_MAX = 512
TITLE_BYTES_MAX = 4000
AGENT_BYTES_MAX = 190

# What encoders call it (after ice-, icy- or x-audiocast-), and what listeners are told.
_TOLD = {
    "br": "icy-br",
    "bitrate": "icy-br",
    "genre": "icy-genre",
    "name": "icy-name",
    "pub": "icy-pub",
    "public": "icy-pub",
    "url": "icy-url",
    "description": "icy-description",
    "desc": "icy-description",
    "audio-info": "ice-audio-info",
    "relay-via": "icy-relay-via",  # of a pulled stream: relay.pull_http
}
_URL = re.compile(r"https?://[!#-&(-:=?-_a-z~]{1,500}")  # no quotes, no `;`, no `<>`
_PREFIX = re.compile(r"(?:ice|icy|x-audiocast)-(.+)")


def clean(text: str, bytes_max: int) -> str:
    """The text on one line, without control characters, cut between characters."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return line.encode(errors="replace")[:bytes_max].decode(errors="ignore").rstrip()


def title_text(text: str, url: str = "") -> str:
    """A title as the engine takes it: its URL, where it has one, behind a NUL (_core/icy.pxd)."""
    if not _URL.fullmatch(url):
        return clean(text, TITLE_BYTES_MAX)
    return f"{clean(text, TITLE_BYTES_MAX - len(url) - 1)}\0{url}"


def agent_of(headers: Mapping[str, str]) -> str:
    """The program that it says it is, on one line; names of header lines are in lower case."""
    return clean(headers.get("user-agent", ""), AGENT_BYTES_MAX)


def info_lines(content_type: str, headers: Mapping[str, str]) -> bytes:
    """The header lines that listeners get, from those that the source gave.

    Args:
        content_type: what listeners are to be told.
        headers: any header lines; those of ice-, icy- and x-audiocast- are taken, in any case.

    Returns:
        lines ended by CRLF, at most 4,096 bytes, Content-Type first. No space after the colon of
        icy- lines: old players expect none.
    """
    told: dict[str, str] = {}
    for name, value in headers.items():
        found = _PREFIX.fullmatch(name.lower())
        word = _TOLD.get(found[1]) if found else None
        line = clean(value, INFO_VALUE_BYTES_MAX)
        if word and line:
            told.setdefault(word, line)
    bit_rate = _bit_rate_kbps(told.get("icy-br", ""), told.get("ice-audio-info", ""))
    told.pop("icy-br", None)
    if bit_rate:
        told["icy-br"] = bit_rate
    told["icy-pub"] = "1" if told.get("icy-pub", "").lower() in {"1", "true", "yes"} else "0"
    lines = [f"Content-Type: {content_type}"]
    lines += [f"{word}:{told[word]}" for word in dict.fromkeys(_TOLD.values()) if word in told]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _bit_rate_kbps(told: str, audio_info: str) -> str:
    """Digits from ice-bitrate, else from `bitrate=` or `ice-bitrate=` in ice-audio-info."""
    for text in (told, *re.findall(r"(?:^|;)\s*(?:ice-)?bitrate=([^;]*)", audio_info)):
        if re.fullmatch(r"[0-9]{1,6}", text.strip()):
            return str(text).strip()
    return ""


def read_info(lines: bytes) -> dict[str, str]:
    """The header lines of a stream as names in lower case and values."""
    fields = (line.partition(":") for line in lines.decode(errors="replace").split("\r\n"))
    return {name.lower(): value.strip() for name, colon, value in fields if colon}

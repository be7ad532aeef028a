"""Settings of what goes beyond one fleet: pulled streams, call-outs, recordings, directories.

Rules of this room
  1. As in relay.config, which lays these beside its own: a setting is one annotated field.
  2. A URL's account is checked, and never shown (relay.urls).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from relay.address import parse_base_url, show
from relay.config_sources import ShoutcastSettings, SourceSettings
from relay.errors import ConfigError
from relay.options import Table
from relay.urls import parse_http_url

PULL_URLS_MAX = 8
DIRECTORIES_MAX = 4
_URL_FORM = "URL, http://[USER:PASSWORD@]HOST[:PORT]/PATH"


def _check_url(text: str | None) -> None:
    if text is not None:
        parse_http_url(text)


def _check_pull(text: str) -> None:
    parse_http_url(text)


# --- of one mount --------------------------------------------------------------------------------

PullUrls = Annotated[
    Annotated[tuple[str, ...], Meta(max_length=PULL_URLS_MAX)],
    Meta(
        description="Where the stream is fetched from: an Icecast or SHOUTcast server, or any HTTP "
        "stream; of several the first that gives it.",
        extra={
            "form": f"{_URL_FORM}, or a list of up to {PULL_URLS_MAX}",
            "check": _check_pull,
            "alone": True,
        },
    ),
]
PullOnDemand = Annotated[
    bool, Meta(description="Pull only while somebody listens, or a downstream node asks for it.")
]
PullIdle = Annotated[
    float,
    Meta(ge=0, le=3600, description="How long it is pulled on after the last one has left."),
]


# --- of every stream, unless its own table says otherwise -----------------------------------------


_URL_EXTRA = {"form": _URL_FORM, "check": _check_url, "default": "none"}


def _check_record(text: str | None) -> None:
    if text is None:
        return
    if not text.isprintable() or "\0" in text:
        raise ConfigError(f"{show(text)}: must be printable characters")
    if text.endswith("/") or ".." in text.split("/"):
        raise ConfigError(f"{show(text)}: must be the path of a file, without ..")
    if "%" not in text.replace("%%", ""):
        raise ConfigError(
            f"{show(text)}: names one file for all recordings; put the time into it, as in "
            "/srv/{mount}/%Y-%m-%d/%H%M%S.mp3"
        )
    for field in re.findall(r"\{[^}]*\}?|\}", text):
        if field not in {"{mount}", "{title}"}:
            raise ConfigError(
                f"{show(text)}: {show(field)} is no field; {{mount}} and {{title}} are"
            )


class SharedSettings(SourceSettings, Table, frozen=True, kw_only=True):
    """What `[defaults]` has beside relay.config's own."""

    record: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1024)] | None,
        Meta(
            description="Record to files of these names: strftime's directives, {mount} and "
            "{title}.",
            extra={"form": "path, /srv/{mount}/%Y-%m-%d/%H%M%S.mp3", "check": _check_record,
                   "default": "none"},
        ),
    ] = None  # fmt: skip
    record_cut_s: Annotated[
        float,
        Meta(
            ge=0,
            le=604_800,
            description="A new file each so many seconds of the local day; 0: one for each run of "
            "the source.",
        ),
    ] = 3600.0
    record_cut_on_title: Annotated[
        bool, Meta(description="A new file with each title as well.")
    ] = False
    record_bytes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 60,
            description="What the recordings of a mount may take; the oldest go first. 0: no "
            "bound.",
        ),
    ] = 0
    record_age_max_s: Annotated[
        float,
        Meta(
            ge=0, le=3.2e9, description="How long a recording is kept after its end; 0: for ever."
        ),
    ] = 0.0
    listener_add: Annotated[
        str | None,
        Meta(description="URL that is asked who may listen, as Icecast does.", extra=_URL_EXTRA),
    ] = None
    listener_remove: Annotated[
        str | None,
        Meta(
            description="URL that is told who has left: duration and bytes.",
            extra=_URL_EXTRA,
        ),
    ] = None
    stream_auth: Annotated[
        str | None,
        Meta(
            description="URL that is asked who may be the source, and set its titles, instead of a "
            "password.",
            extra=_URL_EXTRA,
        ),
    ] = None
    mount_add: Annotated[
        str | None,
        Meta(description="URL that is told that the mount has a source here.", extra=_URL_EXTRA),
    ] = None
    mount_remove: Annotated[
        str | None,
        Meta(description="URL that is told that it has none any more.", extra=_URL_EXTRA),
    ] = None
    callout_timeout_s: Annotated[
        float, Meta(ge=0.1, le=60, description="How long an answer to such a URL is waited for.")
    ] = 5.0
    on_outage: Annotated[
        Literal["allow", "deny"],
        Meta(description="Whether listeners are let in while listener_add does not answer."),
    ] = "deny"


# --- how a node is called, and directories -------------------------------------------------------


def _check_base(text: str | None) -> None:
    if text is not None:
        parse_base_url(text)


class DoorSettings(ShoutcastSettings, frozen=True, kw_only=True):
    """Of `[http]`: how its door is called, and SHOUTcast's."""

    base_url: Annotated[
        str | None,
        Meta(
            description="The URL under which listeners reach this node, as playlists, statistics "
            "and directories tell it; https where a proxy ends TLS.",
            extra={
                "form": "base URL, https://HOST or http://HOST:PORT",
                "default": "http and each request's Host",
                "check": _check_base,
            },
        ),
    ] = None


class DirectoryConfig(Table, frozen=True, kw_only=True):
    """`[directory]`: public lists of stations (YP)."""

    url: Annotated[
        Annotated[tuple[str, ...], Meta(max_length=DIRECTORIES_MAX)],
        Meta(
            description="Directories in which streams are listed that say they are public.",
            extra={
                "flag": "directory",
                "form": f"{_URL_FORM}, or a list of up to {DIRECTORIES_MAX}",
                "check": _check_pull,
                "alone": True,
            },
        ),
    ] = ()
    base_url: Annotated[
        str | None,
        Meta(
            description="The same as http.base_url, for those directories alone.",
            extra={
                "flag": "directory-base-url",
                "form": "base URL, http://HOST:PORT",
                "default": "http.base_url",
                "check": _check_base,
            },
        ),
    ] = None


def check_directory(told: DirectoryConfig, base_url: str | None) -> Iterator[tuple[set[str], str]]:
    """A directory must be told where listeners find the streams; `base_url`: http's."""
    if told.url and told.base_url is None and base_url is None:
        yield (
            {"directory.url", "directory.base_url", "http.base_url"},
            f"directory.url = {show(told.url)}: needs http.base_url, the URL under which "
            "listeners reach this node, such as http://radio.example.org:8000",
        )

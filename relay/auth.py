"""Who somebody says he is, and whether that is so: Basic credentials and secrets.

Rules of this room
  1. A comparison takes a time that tells nothing about the secret, not even its length.
  2. Where no secret is set, nobody knows it: all are refused.
  3. Nothing here logs, stores or raises: strangers are None and False.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

REALM = "Icecast2 Server"  # what encoders and control panels were written against
SOURCE_USER = "source"  # of who tells a password alone
CREDENTIAL_BYTES_MAX = 1024

_WITH_ID = re.compile(r"(.*):#([0-9]{1,5})", re.DOTALL)


def as_text(raw: bytes) -> str:
    """Bytes from a stranger as text: UTF-8 where they are that, else Latin-1 (never fails)."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def credentials(header: str | None) -> tuple[str, str] | None:
    """User and password of an `Authorization: Basic` value (RFC 7617); None for anything else."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic" or len(encoded) > CREDENTIAL_BYTES_MAX:
        return None
    try:
        raw = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    user, colon, password = as_text(raw).partition(":")
    return (user, password) if colon else None


def account_in(secret: str) -> tuple[str, str]:
    """User and password in what SHOUTcast 1 has for a password: `password` or `user:password`."""
    user, colon, password = secret.partition(":")
    return (user, password) if colon else (SOURCE_USER, secret)


def basic(user: str, password: str) -> str:
    """The `Authorization` value that says so (RFC 7617)."""
    account = f"{user}:{password}".encode(errors="replace")
    return f"Basic {base64.b64encode(account).decode()}"


def shoutcast_secret(said: str) -> tuple[str, int | None]:
    """What a SHOUTcast 1 encoder has for a password: the secret, and the stream id behind it."""
    found = _WITH_ID.fullmatch(said)
    return (found[1], int(found[2])) if found else (said, None)


def secrets_in(said: str) -> tuple[str, ...]:
    """What may be the secret in what a SHOUTcast 1 encoder has for a password: a user may stand
    before it and an id behind it, and it may hold what looks like either itself."""
    whole = dict.fromkeys((said, shoutcast_secret(said)[0]))
    return (*whole, *(text.partition(":")[2] for text in whole if ":" in text))


def same_secret(given: str, wanted: str | None) -> bool:
    """Whether the two are the same; False when `wanted` is not set."""
    digests = [hashlib.sha256(t.encode(errors="replace")).digest() for t in (given, wanted or "")]
    return hmac.compare_digest(*digests) and bool(wanted)

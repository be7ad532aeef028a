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

REALM = "Icecast2 Server"  # what encoders and control panels were written against
CREDENTIAL_BYTES_MAX = 1024


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


def same_secret(given: str, wanted: str | None) -> bool:
    """Whether the two are the same; False when `wanted` is not set."""
    digests = [hashlib.sha256(t.encode(errors="replace")).digest() for t in (given, wanted or "")]
    return hmac.compare_digest(*digests) and bool(wanted)

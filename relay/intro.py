"""An intro: the file that each new listener of a mount hears first, cut into whole frames.

Rules of this room
  1. Read once, when the node opens; what cannot be sent is refused then, with the reason.
  2. What the file is, its bytes tell, not its name. What it holds beside frames (tags) is left out,
     so that a listener goes from its last frame to the first one of the stream.
  3. Bounds: INTRO_BYTES_MAX of memory, kept once a mount, whoever listens.
"""

from __future__ import annotations

from pathlib import Path

from relay import _core
from relay.address import printable, show
from relay.errors import ConfigError, SourceError
from relay.formats import DETECT_BYTES, KINDS, detect

INTRO_BYTES_MAX = 16 << 20
READ_BYTES = 4096


def read_intro(path: str, mount: str) -> tuple[bytes, str]:
    """The frames of the file, and their content type. Blocks on the disk.

    Args:
        path: of the file.
        mount: for the message.

    Raises:
        ConfigError: no such file, too long, not a format that is carried, or no frame in it.
    """
    key = f"streams.{show(mount)}.intro = {show(printable(path))}"
    try:
        with Path(path).open("rb") as file:
            raw = file.read(INTRO_BYTES_MAX + 1)
    except (OSError, ValueError) as wrong:  # ValueError: a NUL in the name
        reason = wrong.strerror if isinstance(wrong, OSError) else str(wrong)
        raise ConfigError(f"{key}: cannot be read: {reason}") from None
    if len(raw) > INTRO_BYTES_MAX:
        raise ConfigError(f"{key}: too long for an intro; at most {INTRO_BYTES_MAX} bytes")
    found = detect(raw)
    if found not in KINDS:
        carried = ", ".join(kind.content_type for kind in KINDS.values())
        raise ConfigError(
            f"{key}: is {found or 'no audio that Relay knows'}; an intro must be what the mount "
            f"is: {carried}"
        )
    try:
        frames = cut(raw, found)
    except SourceError as wrong:
        raise ConfigError(f"{key}: {wrong}") from None
    if not frames:
        raise ConfigError(f"{key}: there is no whole frame of {KINDS[found].content_type} in it")
    return frames, KINDS[found].content_type


def misfit(path: str, mount: str, content_type: str) -> str | None:
    """Why listeners of a source with this content type do not hear the intro; None: they do.

    Looks at the first bytes of the file only: it was read when the node opened.
    """
    try:
        with Path(path).open("rb") as file:
            found = detect(file.read(DETECT_BYTES))
    except OSError:
        return None  # it is in memory since then; what it was is not known any more
    if found not in KINDS or KINDS[found].content_type == content_type:
        return None
    return (
        f"{mount}: its intro {show(printable(path))} is {KINDS[found].content_type}, its source "
        f"sends {content_type}: new listeners do not hear it"
    )


def cut(raw: bytes, kind: str) -> bytes:
    """The whole frames of these bytes, one behind the other; SourceError: they are not `kind`."""
    engine = _core.Engine(streams_max=1, listeners_max=16, heads_max=16)
    try:
        engine.configure(ring_s=600)
        stream = engine.add_stream("/intro")
        stream.claim()
        stream.begin()
        source = _core.Source(stream, kind)
        frames: list[bytes] = []
        for at in range(0, len(raw), READ_BYTES):
            source.feed(raw[at : at + READ_BYTES])
            while (frame := stream.read(len(frames))) is not None:
                frames.append(frame[0])
        return b"".join(frames)
    finally:
        engine.close()

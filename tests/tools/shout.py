"""Debian's encoders that speak through libshout: what they are told, and where they connect.

Rules of this room
  1. Settings as their own examples have them, with nothing that is there for Relay's sake.
  2. SHOUTcast 1 is two doors side by side: audio goes to the port above that of titles.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Self
from xml.sax.saxutils import escape

from tools.nodes import PASSWORD
from tools.programs import Tap

PAIRS_MAX = 50  # tries at two free ports in a row

EZSTREAM = """<ezstream>
  <servers><server>
    <protocol>{protocol}</protocol><hostname>{host}</hostname><port>{port}</port>
    <user>source</user><password>{password}</password><tls>{tls}</tls>
    <reconnect_attempts>1</reconnect_attempts>
  </server></servers>
  <streams><stream>
    <mountpoint>{mount}</mountpoint><format>{format}</format><public>Yes</public>
    <stream_name>{name}</stream_name><stream_genre>Speech</stream_genre>
    <stream_bitrate>128</stream_bitrate>
  </stream></streams>
  <intakes><intake>
    <type>{kind}</type>{file}<stream_once>Yes</stream_once>
  </intake></intakes>
</ezstream>
"""

ICES = """<ices>
  <background>0</background><logpath>{home}</logpath><logfile>ices.log</logfile>
  <loglevel>4</loglevel><consolelog>1</consolelog>
  <stream>
    <metadata><name>{name}</name><genre>Speech</genre></metadata>
    <input>
      <module>playlist</module><param name="type">basic</param>
      <param name="file">{playlist}</param><param name="once">1</param>
    </input>
    <instance>
      <hostname>{host}</hostname><port>{port}</port><password>{password}</password>
      <mount>{mount}</mount><reconnectdelay>1</reconnectdelay>
      <reconnectattempts>1</reconnectattempts>
    </instance>
  </stream>
</ices>
"""


def ezstream(
    program: str,
    folder: Path,
    file: Path | None,
    address: tuple[str, int],
    mount: str,
    kind: str,
    *,
    name: str = "A talk",
    protocol: str = "HTTP",
    tls: str = "None",
    password: str = PASSWORD,
) -> list[str]:
    """The command line of an ezstream that sends one file once, as it is.

    Args:
        program: Its path.
        folder: Where its settings go.
        file: What it sends; None: its standard input.
        address: Of the server; with `ICY` that of the titles, audio goes to the port above.
        mount: Of the stream.
        kind: `MP3`, `Ogg`, `WebM` or `Matroska`.
        name: Of the stream.
        protocol: `HTTP` or `ICY`.
        tls: `None`, or `May`: it asks first.
        password: Of the source.
    """
    settings = EZSTREAM.format(
        protocol=protocol, host=address[0], port=address[1], password=password, tls=tls,
        mount=mount, format=kind, name=escape(name), kind="stdin" if file is None else "file",
        file="" if file is None else f"<filename>{escape(str(file))}</filename>",
    )  # fmt: skip
    path = folder / f"ezstream-{mount.strip('/')}.xml"
    path.write_text(settings)
    path.chmod(0o600)  # it warns of a password that others may read
    return [program, "-v", "-v", "-c", str(path)]


def ices(
    program: str, folder: Path, file: Path, address: tuple[str, int], mount: str, name: str
) -> list[str]:
    """The command line of an ices2 that sends one file of Ogg once, as it is."""
    playlist = folder / f"ices-{mount.strip('/')}.txt"
    playlist.write_text(f"{file}\n")
    settings = ICES.format(
        home=folder, name=escape(name), playlist=playlist, host=address[0], port=address[1],
        password=PASSWORD, mount=mount,
    )  # fmt: skip
    path = playlist.with_suffix(".xml")
    path.write_text(settings)
    return [program, str(path)]


def shout2send(
    program: str, file: Path, address: tuple[str, int], mount: str, protocol: str, name: str,
    *, password: str = PASSWORD,
) -> list[str]:  # fmt: skip
    """The command line of a GStreamer that sends one file of MP3 once, as it is.

    Args:
        program: `gst-launch-1.0`.
        file: What it sends.
        address: Of the server; with `icy` that of the titles, audio goes to the port above.
        mount: Of the stream.
        protocol: `http`, `icy` (SHOUTcast 1) or `xaudiocast` (Icecast 1).
        name: Of the stream.
        password: Of the source; with `icy` an id may stand behind it.
    """
    return [
        *(program, "-q", "filesrc", f"location={file}", "!", "id3demux", "!", "mpegaudioparse"),
        *("!", "shout2send", f"ip={address[0]}", f"port={address[1]}", f"password={password}"),
        *(f"mount={mount}", f"protocol={protocol}", f"streamname={name}", "genre=Speech"),
    ]


class ShoutcastTaps:
    """Two taps side by side: `titles`, and one port above it `audio`. In `with`."""

    def __init__(self, http: tuple[str, int], shoutcast: tuple[str, int]) -> None:
        for _ in range(PAIRS_MAX):
            self.titles = Tap(http)
            try:
                self.audio = Tap(shoutcast, self.titles.address[1] + 1)
            except OSError as taken:
                self.titles.close()
                if taken.errno not in {errno.EADDRINUSE, errno.EACCES}:
                    raise
            except OverflowError:
                self.titles.close()
            else:
                return
        raise AssertionError(f"no two ports in a row are free, in {PAIRS_MAX} tries")

    def close(self) -> None:
        """Close both."""
        self.titles.close()
        self.audio.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])

"""Debian's icecast2 as a process of a test, with a configuration of its own.

Rules of this room
  1. It lives in a directory of its own and is ended by its pid.
  2. It refuses to run as root, so there it becomes `nobody`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Self
from xml.etree import ElementTree

from tools.nodes import PASSWORD, wait_until

CONFIG = """<icecast>
  <location>here</location><admin>nobody@localhost</admin><hostname>localhost</hostname>
  <limits>
    <clients>100</clients><sources>20</sources><queue-size>4194304</queue-size>
    <client-timeout>30</client-timeout><header-timeout>15</header-timeout>
    <source-timeout>20</source-timeout>
    <burst-on-connect>1</burst-on-connect><burst-size>65536</burst-size>
  </limits>
  <authentication>
    <source-password>{password}</source-password><relay-password>{password}</relay-password>
    <admin-user>admin</admin-user><admin-password>{password}</admin-password>
  </authentication>
  <listen-socket><port>{port}</port><bind-address>127.0.0.1</bind-address></listen-socket>
  {more}
  <fileserve>0</fileserve>
  <paths>
    <basedir>{home}</basedir><logdir>{home}</logdir>
    <webroot>/usr/share/icecast2/web</webroot><adminroot>/usr/share/icecast2/admin</adminroot>
  </paths>
  <logging>
    <accesslog>access.log</accesslog><errorlog>error.log</errorlog><loglevel>4</loglevel>
  </logging>
  <security><chroot>0</chroot>{changeowner}</security>
</icecast>
"""

RELAY = """<relay>
  <server>127.0.0.1</server><port>{port}</port><mount>{mount}</mount>
  <local-mount>{local}</local-mount><on-demand>0</on-demand>
  <relay-shoutcast-metadata>1</relay-shoutcast-metadata>
</relay>"""

MASTER = """<master-server>127.0.0.1</master-server><master-server-port>{port}</master-server-port>
<master-update-interval>2</master-update-interval>
<master-username>{user}</master-username><master-password>{password}</master-password>"""


class Icecast:
    """One server, in `with`.

    Args:
        more: more of its configuration, such as `RELAY` filled in.
        port: 0 takes a free one.
    """

    def __init__(self, more: str = "", *, port: int = 0) -> None:
        self.more = more
        self.port = port or _free_port()
        self.home = Path(tempfile.mkdtemp(prefix="icecast-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    def url(self, mount: str) -> str:
        """A stream of it."""
        return f"http://127.0.0.1:{self.port}{mount}"

    def sources(self) -> dict[str, dict[str, str]]:
        """What its /admin/stats tells of each mount. (Its /status-json.xsl is no JSON while it has
        no source.)"""
        request = urllib.request.Request(self.url("/admin/stats"))
        account = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
        request.add_header("Authorization", f"Basic {account}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            root = ElementTree.fromstring(answer.read())
        return {
            source.get("mount", ""): {field.tag: field.text or "" for field in source}
            for source in root.iter("source")
        }

    def log(self) -> str:
        """The last of what it has to say."""
        path = self.home / "error.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else "no log"

    def start(self) -> Self:
        """Run it, and wait for its door."""
        changeowner = ""
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(self.home, user.pw_uid, user.pw_gid)
            changeowner = "<changeowner><user>nobody</user><group>nogroup</group></changeowner>"
        text = CONFIG.format(
            password=PASSWORD, port=self.port, more=self.more, home=self.home,
            changeowner=changeowner,
        )  # fmt: skip
        (self.home / "icecast.xml").write_text(text)
        program = shutil.which("icecast2") or "icecast"
        with (self.home / "console.log").open("wb") as console:
            self.process = subprocess.Popen(
                [program, "-c", str(self.home / "icecast.xml")],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        wait_until(self._answers, 30.0, what="icecast2's door")
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, 1.0):
            return True
        return False

    def close(self) -> None:
        """End it, and forget it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10.0)
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])

"""A running node lists what says that it is public in a directory, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.nodes import Nodes, wait_until
from tools.script import Script
from tools.sources import LiveSource, Source

WAIT_S = 60.0

pytestmark = pytest.mark.timeout(180)


def test_public_streams_are_listed_and_taken_back(nodes: Nodes, tmp_path: Path) -> None:
    """Added once they have lasted, removed when their source has gone; a private one never."""
    path = tmp_path / "relay.toml"
    with Script() as directory:
        directory.answer = lambda fields: {"YPResponse": "1", "SID": "s1", "TouchFreq": "30"}
        base = 'base_url = "http://radio.example:8000"'
        path.write_text(f'[directory]\nurl = "{directory.url}"\n{base}\n')
        node = nodes.start(str(path), timeout_s=WAIT_S)
        headers = [("ice-public", "1"), ("ice-name", "A show")]
        with (
            LiveSource(Source(node.address, "/public", headers=headers)),
            LiveSource(Source(node.address, "/private")),
        ):
            wait_until(lambda: directory.asked, WAIT_S, what="an entry")
        wait_until(lambda: directory.of("remove"), WAIT_S, what="its removal")
    assert [fields["action"] for fields in directory.asked] == ["add", "remove"]
    assert directory.asked[0]["listenurl"] == "http://radio.example:8000/public"
    assert directory.asked[0]["sn"] == "A show"
    assert directory.asked[1]["sid"] == "s1"

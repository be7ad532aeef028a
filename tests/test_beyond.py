"""What a node has to do with the world beyond its fleet is built where it is configured alone."""

from __future__ import annotations

import threading
from typing import Any

from fake_engine import FakeEngine
from tools.script import Script

from relay.beyond import Beyond
from relay.config import Config
from relay.sources import Sources


async def nothing() -> None:
    """No listener to wait for."""


def house(**defaults: Any) -> Beyond:
    """That of a node with these defaults."""
    engine: Any = FakeEngine()
    config = Config.load(overrides={"defaults": defaults}, environ={})
    sources = Sources(engine, config, lambda mount: False, set)
    return Beyond(engine, sources, config, "1", lambda: None)


async def test_a_node_without_any_of_it_pays_nothing() -> None:
    """No thread, no asker, no accounts; closing is no work."""
    before = threading.active_count()
    made = house()
    made.list_mounts()
    made.start()
    made.tick()
    assert threading.active_count() == before
    assert made.source_callouts is None
    assert await made.knows_source("/live", ("joe", "pw"), "1.2.3.4", "BUTT") is None
    assert made.pulled() == {}
    assert not any(made.snapshot().values())
    await made.close(nothing())


async def test_a_script_for_sources_alone_asks_about_no_listener() -> None:
    """Each house is built where it is asked for; counters are there all the same."""
    made = house(stream_auth="http://a/")
    assert made.source_callouts is not None
    assert made.snapshot().keys() == house(mount_add="http://a/").snapshot().keys()


async def test_a_script_is_asked_about_titles_where_it_says_who_may_send() -> None:
    """Of that mount alone; nobody else is asked about, and no answer is a no."""
    engine: Any = FakeEngine()
    with Script() as script:
        streams = {"/live": {"stream_auth": script.url}}
        config = Config.load(overrides={"streams": streams}, environ={})
        sources = Sources(engine, config, lambda mount: False, set)
        made = Beyond(engine, sources, config, "1", lambda: None)
        assert await made.knows_source("/live", ("joe", "pw"), "1.2.3.4", "BUTT") is True
        script.answer = lambda fields: {}
        assert await made.knows_source("/live", ("joe", "pw"), "1.2.3.4", "BUTT") is False
        assert await made.knows_source("/other", ("joe", "pw"), "1.2.3.4", "BUTT") is None
        await made.close(nothing())
    assert [fields["user"] for fields in script.of("stream_auth")] == ["joe", "joe"]

"""The sender of several origins: each at its own pace, none in the way of another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from tools.nodes import wait_until
from tools.sources import FrameMaker

from relay import RemoteSource, _core, framed
from relay.backoff import Backoff
from relay.errors import ConfigError, EpochLostError, RelayError, SourceError
from relay.framed import Cursor, Link, epoch_is_lost, read_urls
from relay.icecast import Connection, PushError
from relay.push import push
from relay.source import LocalSource

URLS = ["http://source:pw@127.0.0.1:1/live", "http://source:pw@127.0.0.1:2/live"]


class FakeConnection:
    """An origin's end: keeps what it gets; may hang or break."""

    def __init__(self) -> None:
        self.data = b""
        self.sends = 0
        self.closed = threading.Event()
        self.let_go = threading.Event()
        self.let_go.set()
        self.fails: PushError | None = None

    def send(self, data: bytes) -> None:
        """Take it, as soon as this end may go on."""
        self.let_go.wait(60.0)
        if self.fails is not None:
            raise self.fails
        self.data += data
        self.sends += 1

    def heed(self) -> None:
        """Say what is wrong."""
        if self.fails is not None:
            raise self.fails

    def close(self, last: bytes = b"") -> None:
        """The end of the body."""
        self.closed.set()

    def abort(self) -> None:
        """Nothing more."""


class Studio:
    """A ring that is fed, and links that take from it."""

    def __init__(self) -> None:
        self.engine = _core.Engine(streams_max=1)
        self.engine.configure(ring_s=2)
        self.source = LocalSource(self.engine, "/live", "audio/mpeg")
        self.maker = FrameMaker()
        self.links: list[Link] = []
        self.said: list[str] = []

    def link(self, dial: Callable[[], object]) -> Link:
        """One origin."""
        backoff = Backoff(draw=lambda _low, _high: 0.001)
        say = self.said.append
        link = Link("http://a/live", cast(Any, dial), self.source.stream, say, backoff=backoff)
        self.links.append(link)
        link.start()
        return link

    def feed(self, media_s: float) -> None:
        """So much more audio."""
        self.source.feed(self.maker.seconds(media_s))
        for link in self.links:
            link.wake()

    def all_of(self) -> bytes:
        """The frames that a new connection would be sent now."""
        cursor = Cursor(self.source.stream)
        data = b""
        while more := cursor.take():
            data += more
        return audio(data)


@pytest.fixture
def studio() -> Iterator[Studio]:
    """Links end with the test."""
    studio = Studio()
    yield studio
    for link in studio.links:
        link.stop()
    for link in studio.links:
        link.join(5.0)
    studio.engine.close()


def audio(data: bytes) -> bytes:
    """The frames in a body, one after another."""
    found, at = b"", 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if data[at + 4 : at + 5] == b"S":
            count = int.from_bytes(data[at + 56 : at + 58], "little")
            found += data[at + 58 + 8 * count : end]
        at = end
    return found


def heads(data: bytes) -> list[bytes]:
    """The kinds of the messages in a body."""
    kinds, at = [], 0
    while at < len(data):
        kinds.append(data[at + 4 : at + 5])
        at += 4 + int.from_bytes(data[at : at + 4], "little")
    return kinds


def test_each_origin_gets_all_frames_and_the_end(studio: Studio) -> None:
    """One that hangs delays nobody, and gets them later."""
    ends = [FakeConnection(), FakeConnection()]
    ends[0].let_go.clear()
    for end in ends:
        studio.link(lambda end=end: end)
    for _ in range(5):
        studio.feed(0.2)
    whole = studio.all_of()
    wait_until(lambda: audio(ends[1].data) == whole, 10.0)
    assert ends[0].data == b""
    ends[0].let_go.set()
    studio.source.close()
    for link, end in zip(studio.links, ends, strict=True):
        link.wake()
        assert end.closed.wait(10.0)
        link.join(5.0)
        assert link.is_whole
        assert heads(end.data)[0] == b"h"
        assert set(heads(end.data)[1:]) == {b"S"}
    assert studio.links[0].facts().state == "ended"


def test_origin_that_breaks_is_found_again_and_gets_what_is_still_held(studio: Studio) -> None:
    """From the oldest frame on; the loss is said once, the return too."""
    first, second = FakeConnection(), FakeConnection()
    ends = [first, second]
    refusals = [PushError("no route"), PushError("no route")]

    def dial() -> object:
        if refusals and len(ends) == 1:
            raise refusals.pop()
        return ends.pop(0)

    link = studio.link(dial)
    studio.feed(0.5)
    wait_until(lambda: audio(first.data) == studio.all_of(), 10.0)
    first.fails = PushError("gone")
    studio.feed(0.5)
    wait_until(lambda: audio(second.data) == studio.all_of(), 10.0)
    assert link.facts().lost_total == 1
    assert [line.partition(";")[0] for line in studio.said] == [
        "gone",
        "no route",
        "http://a/live: connected",
    ]


def test_origin_that_is_too_slow_is_left_behind_and_begins_anew(studio: Studio) -> None:
    """The ring goes on without it."""
    end = FakeConnection()
    link = studio.link(lambda: end)
    studio.feed(0.2)
    wait_until(lambda: end.sends >= 2, 10.0)
    end.let_go.clear()
    for _ in range(60):
        studio.feed(0.5)
    end.let_go.set()
    studio.feed(0.1)
    wait_until(lambda: link.facts().overtaken_total >= 1, 10.0)
    assert heads(end.data).count(b"h") >= 2


def test_refusal_for_good_gives_this_origin_up(studio: Studio) -> None:
    """It is said once."""

    def dial() -> object:
        raise PushError("401 no", final=True)

    link = studio.link(dial)
    link.join(5.0)
    assert link.facts().state == "refused"
    assert studio.said == ["401 no; this origin is given up"]


def test_feeding_waits_for_nobody_and_says_when_all_have_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one may come back there is hope."""
    hope = threading.Event()

    def dial(target: object, *_: object, **__: object) -> Connection:
        if str(target).endswith(":1/live") or hope.is_set():
            raise PushError("401 no", final=True)
        raise PushError("no route")

    monkeypatch.setattr(framed.Connection, "open", dial)
    maker = FrameMaker()
    with RemoteSource(URLS, content_type="audio/mpeg", say=lambda _: None) as live:
        wait_until(lambda: live.origins()[0].state == "refused", 10.0)
        begin = time.monotonic()
        for _ in range(20):
            live.feed(maker.seconds(0.1))
        live.title("Nobody hears it")
        assert time.monotonic() - begin < 5.0
        assert not live.wait(0.0)
        hope.set()
        wait_until(lambda: live.origins()[1].state == "refused", 10.0)
        with pytest.raises(SourceError, match="401 no"):
            live.feed(b"")
        with pytest.raises(SourceError, match="401 no"):
            live.wait()
        assert not live.close()


@pytest.mark.parametrize(
    ("answers", "lost"),
    [
        ([(410, "refused"), (410, "refused")], True),
        ([(410, "refused"), (0, "connecting")], True),  # the other one is not there
        ([(410, "refused"), (401, "refused")], True),
        ([(410, "refused"), (None, "connected")], False),
        ([(410, "refused"), (None, "connecting")], False),  # it may have us in a moment
        ([(410, "refused"), (403, "connecting")], False),  # another source is there
        ([(410, "refused"), (503, "connecting")], False),
        ([(0, "connecting"), (0, "connecting")], False),
        ([(401, "refused"), (401, "refused")], False),
        ([], False),
    ],
)
def test_when_an_epoch_has_lost(answers: list[tuple[int | None, framed.State]], lost: bool) -> None:
    """Only where a new one would take nobody's listeners."""
    assert epoch_is_lost(answers) is lost


def test_feeding_says_that_the_epoch_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while one of them has another source, which may go."""
    other_went = threading.Event()

    def dial(target: object, *_: object, **__: object) -> Connection:
        if str(target).endswith(":1/live") or other_went.is_set():
            raise PushError("410 has lost", status=410, final=True)
        raise PushError("403 in use", status=403)

    monkeypatch.setattr(framed.Connection, "open", dial)
    with RemoteSource(URLS, content_type="audio/mpeg", say=lambda _: None) as live:
        wait_until(lambda: live.origins()[0].state == "refused", 10.0)
        live.feed(b"")
        other_went.set()
        wait_until(lambda: live.origins()[1].state == "refused", 10.0)
        with pytest.raises(EpochLostError, match="410 has lost"):
            live.feed(b"")
        with pytest.raises(EpochLostError):
            live.wait()


def test_urls_are_those_of_one_mount() -> None:
    """At most eight origins, each once."""
    assert [str(target) for target in read_urls(["http://a/x", "http://b/x"], "pw")] == [
        "http://a:80/x",
        "http://b:80/x",
    ]
    for urls, reason in (
        (["http://a/x", "http://b/y"], "several mounts"),
        (["http://a/x", "http://a/x"], "named twice"),
        ([], "0 URLs"),
        ([f"http://a{n}/x" for n in range(9)], "9 URLs"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_urls(urls, "pw")


def test_source_is_opened_once_and_before_it_is_fed() -> None:
    """A closed one is not begun again."""
    live = RemoteSource(URLS, content_type="audio/mpeg", say=lambda _: None)
    with pytest.raises(RelayError, match="open the source first"):
        live.feed(b"")
    assert not live.close()
    with pytest.raises(ConfigError, match="backlog_s"):
        RemoteSource(URLS, content_type="audio/mpeg", backlog_s=0)
    with pytest.raises(SourceError, match="audio/midi"):
        RemoteSource(URLS, content_type="audio/midi").open()


def test_options_that_several_origins_have_no_use_for_are_refused() -> None:
    """Before anything is opened: a file that does not exist is no matter."""
    for option, reason in (({"pace": False}, "--no-pace"), ({"retries": 3}, "--retries")):
        with pytest.raises(ConfigError, match=reason):
            push("nothing.mp3", URLS, **cast(Any, option))

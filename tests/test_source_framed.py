"""A source whose frames come cut: who has the mount, who takes over, and when its epoch ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relay import _core
from relay.config import Config
from relay.errors import EpochLostError, MountError, SourceError
from relay.recorder import EPOCH_BEGUN, EPOCH_ENDED, Record
from relay.source import FramedSource, LocalSource, Run
from relay.source_http import EPOCH_AHEAD_MS, Framing, RequestError, framing_of, parse_head
from relay.sources import AWAY_S, Sources

NOW_MS = 1_700_000_000_000
ORIGIN = 0xFEED


class Desk:
    """The sources of a node whose clock the test holds, and a sender's body."""

    def __init__(self, takeover: str = "never") -> None:
        self.engine = _core.Engine(streams_max=4)
        settings = {"defaults": {"takeover": takeover}}
        self.sources = Sources(self.engine, Config.load(overrides=settings, environ={}))
        self.sender = _core.Engine(streams_max=1)
        self.origin = int(self.sender.node_id[16:], 16)
        self.cut = LocalSource(self.sender, "/live", "audio/mpeg")
        self.run = Run(self.cut.epoch, self.origin)

    def open(self, run: Run | None = None, content_type: str = "audio/mpeg") -> FramedSource:
        """A connection of this run; of the sender's, if none is named."""
        source = self.sources.open("/live", content_type, {}, run=run or self.run)
        assert isinstance(source, FramedSource)
        return source

    def begin(self, source: FramedSource) -> None:
        """Its first message."""
        source.feed(self.cut.stream.framed_here()[0])

    def state(self) -> dict[str, object]:
        """Of /live."""
        stream = self.engine.find("/live")
        return {} if stream is None else stream.snapshot()


@pytest.fixture
def desk() -> Iterator[Desk]:
    """No source yet."""
    desk = Desk()
    yield desk
    desk.engine.close()
    desk.sender.close()


def test_same_run_takes_over_and_the_epoch_goes_on(desk: Desk) -> None:
    """The connection before writes no more, and its end changes nothing."""
    first = desk.open()
    desk.begin(first)
    second = desk.open()
    assert not first.is_open
    desk.sources.close(first)
    desk.begin(second)
    state = desk.state()
    assert (state["source_up"], state["epoch"], state["writer"]) == (True, desk.run.epoch, "local")
    assert state["counters"]["epochs_total"] == 1  # type: ignore[index]
    with pytest.raises(SourceError, match="closed"):
        desk.begin(first)


def test_the_epoch_of_a_framed_source_is_its_senders(desk: Desk) -> None:
    """It does not go on above another's: its other origin would still tell the old one."""
    source = desk.open()
    desk.begin(source)
    assert source.begin_anew(desk.run.epoch + 5) == 0
    assert source.epoch == desk.state()["epoch"] == desk.run.epoch


def test_another_source_is_refused_while_this_one_is_there(desk: Desk) -> None:
    """Another run, and an encoder that is cut here."""
    desk.begin(desk.open())
    with pytest.raises(MountError, match="in use"):
        desk.open(Run(desk.run.epoch + 1, ORIGIN))
    with pytest.raises(MountError, match="in use"):
        desk.sources.open("/live", "audio/mpeg")


def test_lost_connection_ends_no_epoch_until_the_source_stays_away(desk: Desk) -> None:
    """Another origin may be fed the same frames; after a while it is over here."""
    source = desk.open()
    desk.begin(source)
    assert desk.sources.lost(source, 100.0)
    desk.sources.tick(100.0 + AWAY_S)
    assert desk.state()["source_up"]
    desk.begin(desk.open())
    desk.sources.tick(200.0)
    assert desk.state()["source_up"]
    back = desk.sources.find("/live")
    assert back is not None
    desk.sources.lost(back, 200.0)
    desk.sources.tick(200.5 + AWAY_S)
    assert not desk.state()["source_up"]
    assert desk.sources.tick(259.0) == []
    assert desk.sources.tick(260.5) == ["/live"]  # linger_s counts from the loss


def test_run_that_was_given_up_goes_on_in_the_ring_that_is_here(desk: Desk) -> None:
    """The sender was away for longer than its mount is kept."""
    source = desk.open()
    desk.begin(source)
    desk.sources.lost(source, 0.0)
    desk.sources.tick(AWAY_S + 1)
    assert not desk.state()["source_up"]
    desk.begin(desk.open())
    state = desk.state()
    assert state["source_up"]
    assert state["counters"]["epochs_total"] == 1  # type: ignore[index]
    told = [Record(*one) for one in desk.engine.recorded([])]
    epochs = [one for one in told if one.kind in (EPOCH_BEGUN, EPOCH_ENDED)]
    epochs.sort(key=lambda one: one.at_us)
    assert [one.kind for one in epochs] == [EPOCH_BEGUN, EPOCH_ENDED, EPOCH_BEGUN]
    assert {one.a for one in epochs} == {desk.run.epoch}


def test_anybody_takes_the_mount_of_a_source_that_is_away(desk: Desk) -> None:
    """A sender that was restarted has a new epoch, and does not wait for its own shadow."""
    source = desk.open()
    desk.begin(source)
    desk.sources.lost(source, 0.0)
    encoder = desk.sources.open("/live", "audio/mpeg")
    assert encoder.epoch > desk.run.epoch
    with pytest.raises(MountError, match="in use"):
        desk.open()


def test_older_run_waits_until_the_one_that_is_away_is_given_up(desk: Desk) -> None:
    """A standby does not end what may come back in a second; then it is told to begin anew."""
    source = desk.open()
    desk.begin(source)
    desk.sources.lost(source, 0.0)
    older = Run(desk.run.epoch - 1, ORIGIN)
    with pytest.raises(MountError, match="in use"):
        desk.open(older)
    assert source.is_open
    desk.sources.tick(AWAY_S + 1)
    with pytest.raises(EpochLostError, match="begin a new one"):
        desk.open(older)
    desk.open(Run(desk.run.epoch + 1, ORIGIN))


def test_take_over_that_meets_the_end_claims_the_mount_anew(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end comes between finding the source and taking its place: nobody writes unclaimed."""
    first = desk.open()
    desk.begin(first)
    desk.sources.lost(first, 0.0)
    leave = FramedSource.leave

    def too_late(source: FramedSource) -> bool:
        desk.sources.tick(AWAY_S + 1)
        return leave(source)

    monkeypatch.setattr(FramedSource, "leave", too_late)
    second = desk.open()
    monkeypatch.undo()
    assert desk.state()["writer"] == "local"
    desk.begin(second)
    assert desk.state()["source_up"]
    assert desk.sources.find("/live") is second
    with pytest.raises(MountError, match="in use"):
        LocalSource(desk.engine, "/live", "audio/mpeg")
    second.close()
    assert desk.state()["writer"] == "none"


def test_older_epoch_has_lost(desk: Desk) -> None:
    """The mount has had a newer one; and the same number of another origin is none of ours."""
    with desk.sources.open("/live", "audio/mpeg") as encoder:
        epoch = encoder.epoch
    desk.sources.close(encoder)
    with pytest.raises(EpochLostError, match="has lost against"):
        desk.open(Run(epoch - 1, ORIGIN))
    with pytest.raises(EpochLostError, match="of another origin"):
        desk.open(Run(epoch, ORIGIN))
    desk.open(Run(epoch + 1, ORIGIN))


def test_content_type_of_a_run_does_not_change(desk: Desk) -> None:
    """Whoever takes over sends what was sent; the first one goes on."""
    first = desk.open()
    desk.begin(first)
    with pytest.raises(SourceError, match="cannot become audio/ogg"):
        desk.open(content_type="audio/ogg")
    assert first.is_open


def test_title_that_is_set_here_is_refused(desk: Desk) -> None:
    """It would take the sequence of a frame."""
    desk.begin(desk.open())
    with pytest.raises(MountError, match="come with its frames"):
        desk.sources.title("/live", "Elsewhere")


def test_node_that_goes_tells_no_end(desk: Desk) -> None:
    """Its children have another origin."""
    source = desk.open()
    desk.begin(source)
    desk.sources.close_all()
    assert not source.is_open
    assert desk.state()["source_up"]


def test_source_that_said_nothing_leaves_nothing(desk: Desk) -> None:
    """No stream without an epoch stays behind."""
    source = desk.open()
    desk.sources.lost(source, 0.0)
    desk.sources.tick(AWAY_S + 1)
    assert desk.engine.find("/live") is None


# --- the request's head ---------------------------------------------------------------------------


def framing(*lines: str) -> Framing | None:
    """What a head with these lines says of its framing, at NOW_MS."""
    parsed = parse_head("\r\n".join(["PUT /live HTTP/1.1", *lines, "", ""]).encode())
    assert parsed is not None
    return framing_of(parsed[0], NOW_MS)


def head(version: str = "1", epoch: object = NOW_MS, origin: str = "00000000000000ab") -> list[str]:
    """The lines of a framed source."""
    return [f"Relay-Framing: {version}", f"Relay-Epoch: {epoch}", f"Relay-Origin: {origin}"]


def test_head_says_which_run_it_is() -> None:
    """Or nothing, where the bytes are to be cut."""
    assert framing(*head()) == Framing(NOW_MS, 0xAB)
    assert framing(*head(epoch=NOW_MS + EPOCH_AHEAD_MS)) is not None
    assert framing(*head(), "Relay-Backlog: 20") == Framing(NOW_MS, 0xAB, 20)
    assert framing("Host: h") is None


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (head(version="2"), "this node knows 1"),
        (head(epoch="soon"), "not a number"),
        (head(epoch=0), "not a number"),
        (head(epoch="9" * 19), "not a number"),
        (head(origin="12"), "16 hexadecimal"),
        (head()[:2], "16 hexadecimal"),
        (head(epoch=NOW_MS + EPOCH_AHEAD_MS + 1), "60 s ahead of this node's clock"),
        ([*head(), "Relay-Epoch: 5"], "given twice"),
        ([*head(), "Relay-Backlog: 601"], "up to 600"),
        ([*head(), "Relay-Backlog: -1"], "up to 600"),
    ],
)
def test_framing_that_is_none_is_refused_with_a_reason(lines: list[str], reason: str) -> None:
    """Before anything is claimed."""
    with pytest.raises(RequestError, match=reason):
        framing(*lines)


def test_refused_run_ends_nobody() -> None:
    """Its type is not carried: neither one that is cut here makes way for it, nor one away."""
    desk = Desk("always")
    live = desk.sources.open("/live", "audio/mpeg")
    higher = Run(live.epoch + 1, ORIGIN)
    with pytest.raises(SourceError, match="video/mp4"):
        desk.open(higher, "video/mp4")
    assert live.is_open
    first = desk.open(higher)
    assert not live.is_open
    desk.sources.lost(first, 100.0)
    with pytest.raises(SourceError, match="video/mp4"):
        desk.open(Run(higher.epoch + 1, ORIGIN), "video/mp4")
    assert desk.sources.is_away("/live")
    desk.engine.close()
    desk.sender.close()

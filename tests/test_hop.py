"""What a link asks of its upstream, and when it stops asking: stepped with a fake clock."""

from __future__ import annotations

import pytest
from relay._probe_backbone import Hop, Peer

MS = 1000
T = 1_000_000  # the clock begins here
IDLE, JOINING, LIVE, ENDED = range(4)
GONE = 0
NOTHING = ("nothing", 0, 0, 0)


def joined(first: int = 100, head: int = 200, parents: int = 1) -> Hop:
    """A link that has joined epoch 5 at `first` and holds all up to `head`."""
    hop = Hop(parents)
    for parent in range(parents):
        hop.told(5, parent=parent)
    assert hop.step(T)[0] == "subscribe"
    assert hop.step(T)[0] == "join"
    assert hop.here(5, first, T)
    hop.look(head=head, base=first, held_us=20_000_000)
    hop.reaches(5, head)
    hop.done(head, T)
    assert hop.step(T) == NOTHING
    return hop


# --- demand and join -----------------------------------------------------------------------------


def test_nothing_is_done_for_a_stream_that_nobody_wants() -> None:
    """Told of an epoch, but idle."""
    hop = Hop()
    hop.look(wanted=False)
    hop.told(5)
    assert hop.step(T) == NOTHING


def test_a_join_follows_the_subscription_at_once() -> None:
    """When the directory has told of an epoch; else it waits for one."""
    hop = Hop()
    assert hop.step(T)[0] == "subscribe"
    assert hop.step(T) == NOTHING
    hop.told(5)
    assert hop.step(T)[0] == "join"
    assert hop.step(T) == NOTHING  # one request at a time


def test_later_is_asked_again_after_20_ms_doubling_to_200() -> None:
    """Bounded below and above."""
    hop = Hop()
    hop.told(5)
    hop.step(T)
    now = T
    for wait_ms in (20, 40, 80, 160, 200, 200):
        assert hop.step(now)[0] == "join"
        hop.later(now)
        assert hop.step(now + wait_ms * MS - 1) == NOTHING
        now += wait_ms * MS
    assert hop.step(now)[0] == "join"


def test_a_request_without_answer_is_asked_again_after_half_a_second() -> None:
    """And counted."""
    hop = Hop()
    hop.told(5)
    hop.step(T)
    assert hop.step(T)[0] == "join"
    assert hop.step(T + 499 * MS) == NOTHING
    assert hop.step(T + 500 * MS)[0] == "join"
    assert hop.state["timeouts"] == 1


def test_the_window_of_open_requests_is_kept() -> None:
    """A full window means waiting, not asking."""
    hop = Hop()
    hop.look(may_ask=False)
    hop.told(5)
    hop.step(T)
    assert hop.step(T) == NOTHING
    hop.look(may_ask=True)
    assert hop.step(T)[0] == "join"


def test_unsubscribes_after_the_linger() -> None:
    """The linger counts from the last time somebody wanted it."""
    hop = joined()
    hop.look(wanted=False)
    assert hop.step(T + 59_999 * MS) == NOTHING
    assert hop.step(T + 60_000 * MS)[0] == "unsubscribe"
    assert hop.state["state"] == IDLE
    assert hop.step(T + 70_000 * MS) == NOTHING
    hop.look(wanted=True)
    assert hop.step(T + 71_000 * MS)[0] == "subscribe"
    assert hop.step(T + 71_000 * MS)[0] == "join"  # anew: the old ring is stale


def test_a_local_source_takes_the_stream_from_the_link() -> None:
    """Nothing is asked for a mount that is written here."""
    hop = joined()
    hop.look(written_here=True)
    assert hop.step(T)[0] == "unsubscribe"
    assert hop.step(T) == NOTHING


def test_an_epoch_far_ahead_of_the_clock_is_refused() -> None:
    """More than 60 s ahead: nobody could ever begin a newer one."""
    hop = Hop()
    assert not hop.told(1_060_001, wall=1_000_000)
    assert hop.told(1_060_000, wall=1_000_000)
    assert hop.state["told_epoch"] == 1_060_000


# --- holes ---------------------------------------------------------------------------------------


def test_a_hole_at_the_head_is_asked_for_at_once() -> None:
    """A frame beyond it is here: no waiting."""
    hop = joined()
    hop.look(head=200, hole_end=210)
    assert hop.step(T) == ("repair", 200, 210, 0)


def test_a_tail_that_was_dropped_is_asked_for_after_100_ms_without_movement() -> None:
    """The beacon says how far the upstream has sent."""
    hop = joined()
    hop.step(T)
    hop.reaches(5, 220)
    assert hop.step(T + 99 * MS) == NOTHING
    assert hop.step(T + 100 * MS) == ("repair", 200, 220, 0)


def test_a_hole_is_given_up_after_the_repair_wait() -> None:
    """Once, whole."""
    hop = joined()
    hop.look(head=200, hole_end=210)
    hop.step(T)
    assert hop.step(T + 1499 * MS)[0] == "repair"  # its answer never came: asked again
    assert hop.step(T + 1500 * MS) == ("give up", 200, 210, 0)


def test_gone_ends_the_waiting_but_not_for_what_lies_behind() -> None:
    """The upstream lacks [200, 205): the rest is fetched first, then the gap is given up."""
    hop = joined()
    hop.look(head=200, hole_end=210)
    hop.step(T)
    hop.gone(205, T + MS)
    assert hop.step(T + MS) == ("repair", 205, 210, 0)
    hop.look(head=200, hole_end=205)
    hop.done(210, T + 2 * MS)
    assert hop.step(T + 2 * MS) == ("give up", 200, 205, 0)


def test_later_gives_more_time_but_four_waits_at_most() -> None:
    """The upstream is fetching it itself."""
    hop = joined()
    hop.look(head=200, hole_end=210)
    now = T
    given_up = 0
    while not given_up:
        what = hop.step(now)[0]
        if what == "repair":
            hop.later(now)
        if what == "give up":
            given_up = now
        now += 10 * MS
    assert 5900 * MS < given_up - T <= 6020 * MS


def test_nothing_is_given_up_while_the_upstream_is_lost() -> None:
    """And when it is back, the waiting begins anew."""
    hop = joined()
    hop.look(head=200, hole_end=210)
    hop.step(T)
    hop.look(upstream_up=False)
    assert hop.step(T + 30_000 * MS) == NOTHING
    hop.look(upstream_up=True)
    hop.restart(T + 30_000 * MS)
    assert hop.step(T + 30_000 * MS) == ("repair", 200, 210, 0)


def test_a_long_outage_is_fetched_in_order_and_at_once() -> None:
    """Each answer brings some; the next request follows without the pause."""
    hop = joined()
    hop.step(T)
    hop.reaches(5, 1000)
    hop.step(T + 100 * MS)
    hop.look(head=400)
    hop.done(400, T + 110 * MS)
    assert hop.step(T + 110 * MS) == ("repair", 400, 1000, 0)


def test_an_answer_without_progress_is_not_asked_again_at_once() -> None:
    """Its runs were dropped on the way: 20 ms."""
    hop = joined()
    hop.step(T)
    hop.reaches(5, 220)
    assert hop.step(T + 100 * MS)[0] == "repair"
    hop.done(220, T + 101 * MS)
    assert hop.step(T + 101 * MS) == NOTHING
    assert hop.step(T + 121 * MS)[0] == "repair"


# --- ends and epochs -----------------------------------------------------------------------------


def test_an_epoch_ends_when_all_of_it_is_here() -> None:
    """First the rest, then the end."""
    hop = joined()
    hop.reaches(5, 203, end=True)
    assert hop.step(T) == ("repair", 200, 203, 0)
    hop.look(head=203)
    hop.done(203, T)
    assert hop.step(T)[0] == "end"
    assert hop.state["state"] == ENDED
    assert hop.step(T) == NOTHING


def test_an_end_before_what_another_has_sent_is_none() -> None:
    """One of two origins has lost its source; the other goes on, and so does the epoch."""
    hop = joined(parents=2)
    hop.reaches(5, 220, parent=1)
    hop.look(head=210)
    hop.reaches(5, 205, end=True)
    hop.done(205, T, end=True)
    assert hop.step(T)[0] != "end"
    hop.look(head=220)
    hop.reaches(5, 220, end=True, parent=1)
    assert hop.step(T)[0] == "end"


def test_the_rest_of_an_ended_epoch_that_is_gone_is_counted() -> None:
    """Three frames never came."""
    hop = joined()
    hop.reaches(5, 203, end=True)
    hop.step(T)
    hop.gone(203, T)
    assert hop.step(T) == ("end", 0, 0, 3)


def test_the_next_epoch_waits_for_the_end_of_the_old_one() -> None:
    """Its end was dropped: whatever is left is asked for, then the join follows."""
    hop = joined()
    hop.told(6)
    what, begin, end, _ = hop.step(T)
    assert (what, begin) == ("repair", 200)
    assert end > 10**9
    hop.look(head=204)
    hop.done(204, T, end=True)
    assert hop.step(T)[0] == "end"
    assert hop.step(T)[0] == "join"
    assert hop.here(6, 0, T)
    assert hop.state["epoch"] == 6


def test_an_old_epoch_that_nobody_holds_any_more_is_over() -> None:
    """gone instead of the end."""
    hop = joined()
    hop.told(6)
    _, _, end, _ = hop.step(T)
    hop.gone(end, T)
    assert hop.step(T)[0] == "end"
    assert hop.step(T)[0] == "join"


def test_a_join_that_answers_with_an_older_epoch_begins_nothing() -> None:
    """A relay that lags behind: the ring stays."""
    hop = joined()
    assert not hop.here(4, 0, T)
    assert not hop.here(5, 150, T)
    assert hop.state["epoch"] == 5


def test_what_parents_have_sent_of_an_epoch_that_is_left_is_counted() -> None:
    """Five frames were told of; of a lie, what there can be in the time and a ring."""
    for told, lost in ((205, 5), (10**15, 1000)):
        hop = joined()
        hop.reaches(5, told)
        hop.told(6)
        _, _, end, _ = hop.step(T)
        assert end > 10**9
        hop.gone(end, T)
        assert hop.step(T) == ("end", 0, 0, lost)


def test_an_epoch_that_is_told_and_not_served_is_asked_for_ever_less_often() -> None:
    """Its own answer contradicts it; after 250 ms the lie is heard again, then 500, up to 64 s."""
    hop = joined()
    now = T
    for wait_ms in (250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 64000):
        assert hop.believes(9, now)
        hop.told(9)
        what, _, end, _ = hop.step(now)
        if what == "repair":  # the first time: from then on it is known that there is no end
            hop.gone(end, now)
            what = hop.step(now)[0]
        assert [what, hop.step(now)[0]] == ["end", "join"]
        assert not hop.here(5, 150, now)
        hop.done(200, now)
        assert hop.state["told_epoch"] == 5
        assert hop.step(now + 240 * MS)[0] != "join"
        hop.resume(now + 240 * MS)
        assert not hop.believes(9, now + wait_ms * MS - 1)
        assert hop.believes(10, now)  # what is newer than the lie
        now += wait_ms * MS


def test_another_process_is_believed_at_once() -> None:
    """What the one before has told is no concern of this one's."""
    hop = joined()
    hop.told(9)
    _, _, end, _ = hop.step(T)
    hop.gone(end, T)
    assert [hop.step(T)[0] for _ in range(2)] == ["end", "join"]
    hop.here(5, 150, T)
    assert not hop.believes(9, T)
    hop.back(0, T, process=True)
    assert hop.believes(9, T)


# --- backfill ------------------------------------------------------------------------------------


def test_backfill_asks_for_runs_that_end_at_the_base() -> None:
    """Until the ring holds ring_us, or the upstream has no more."""
    hop = Hop()
    hop.told(5)
    hop.step(T)
    hop.step(T)
    hop.here(5, 1000, T)
    hop.look(head=1100, base=1000, held_us=3_000_000)
    hop.done(1100, T)
    what, begin, end, _ = hop.step(T)
    assert (what, end) == ("backfill", 1000)
    assert begin == 1000 - 98304 // 408
    assert hop.still_coming(10)
    hop.look(base=begin, held_us=9_000_000)
    hop.done(1000, T)
    what, _, end, _ = hop.step(T)
    assert (what, end) == ("backfill", begin)
    hop.gone(700, T)
    assert hop.step(T) == ("backfill", 700, begin, 0)
    hop.look(base=700)
    hop.done(begin, T)
    assert hop.step(T) == NOTHING
    assert not hop.still_coming(10)


def test_backfill_that_brings_nothing_asks_for_less_and_then_stops() -> None:
    """Halved four times."""
    hop = Hop()
    hop.told(5)
    hop.step(T)
    hop.step(T)
    hop.here(5, 1000, T)
    hop.look(head=1100, base=1000, held_us=3_000_000)
    hop.done(1100, T)
    sizes = []
    now = T
    for _ in range(4):
        what, begin, end, _ = hop.step(now)
        assert what == "backfill"
        sizes.append(end - begin)
        hop.done(end, now)
        now += 20 * MS
    assert sizes == [240, 120, 60, 30]
    assert hop.step(now) == NOTHING


@pytest.mark.parametrize(("sequence", "coming"), [(50, True), (150, False), (200, True)])
def test_what_is_told_to_children_who_miss_a_frame(sequence: int, coming: bool) -> None:
    """Before the base and beyond the head it may still come; lost in between, never."""
    hop = Hop()
    hop.told(5)
    hop.step(T)
    assert hop.still_coming(sequence)  # still joining: all may come
    hop.step(T)
    hop.here(5, 100, T)
    hop.look(head=200, base=100)
    assert hop.still_coming(sequence) == coming


# --- the upstream --------------------------------------------------------------------------------


def test_silence_is_judged_once_and_not_by_a_sleeper() -> None:
    """Over 400 ms is lost; who stood still for over 200 ms begins to wait anew."""
    peer = Peer()
    assert not peer.is_silent(T, T, 400 * MS)  # never seen: connecting, not lost
    assert peer.sign(T)
    assert not peer.sign(T + MS)
    assert not peer.is_silent(T + 401 * MS, T + 400 * MS, 400 * MS)
    assert peer.is_silent(T + 402 * MS, T + 400 * MS, 400 * MS)
    assert not peer.is_silent(T + 403 * MS, T + 402 * MS, 400 * MS)
    assert peer.sign(T + 500 * MS)
    assert not peer.is_silent(T + 5000 * MS, T + 4000 * MS, 400 * MS)
    assert not peer.is_silent(T + 5400 * MS, T + 5300 * MS, 400 * MS)
    assert peer.is_silent(T + 5401 * MS, T + 5400 * MS, 400 * MS)


# --- the end of an epoch -------------------------------------------------------------------------


def merged(head: int = 200) -> Hop:
    """A link that two parents feed, which holds all of epoch 5 up to `head`."""
    hop = Hop(2, merge=True)
    for parent in range(2):
        hop.told(5, parent=parent)
        assert hop.step(T)[0] == "subscribe"
    assert hop.step(T)[0] == "join"
    assert hop.here(5, 100, T)
    hop.look(head=head, base=100, held_us=20_000_000)
    for parent in range(2):
        hop.reaches(5, head, parent=parent)
    hop.done(head, T)
    assert hop.step(T) == NOTHING
    return hop


def test_an_end_is_the_end_where_nobody_contradicts() -> None:
    """One parent; or the other does not say that its source is there, or is not there itself."""
    hop = joined()
    hop.reaches(5, 200, end=True)
    assert hop.step(T) == ("end", 0, 0, 0)
    for changed in (
        lambda h: h.lists(1, up=False),
        lambda h: h.lost(1, T),
        lambda h: h.told(6, parent=1),
    ):
        hop = merged()
        hop.reaches(5, 200, end=True)
        assert hop.step(T) == NOTHING
        changed(hop)
        assert hop.step(T) == ("end", 0, 0, 0)


def test_an_early_end_of_one_parent_is_overruled_by_the_other() -> None:
    """It has sent more, so the epoch goes on, however long; the end is where both say."""
    hop = merged()
    hop.reaches(5, 200, end=True, parent=0)
    assert hop.step(T) == NOTHING
    hop.reaches(5, 210, parent=1)
    hop.look(head=210)
    for wait_s in range(1, 30):
        assert hop.step(T + wait_s * 1_000_000)[0] in ("nothing", "repair", "leave", "subscribe")
        assert hop.state["state"] == LIVE
    hop.reaches(5, 210, end=True, parent=1)
    assert hop.step(T + 31_000_000)[0] == "end"
    assert hop.state["state"] == ENDED


def test_a_parent_that_brings_nothing_beyond_an_end_is_not_waited_for_longer_than_a_hole() -> None:
    """It says that its source is there, and is silent: 1.5 s; 0.4 s where a newer epoch waits."""
    hop = merged()
    hop.reaches(5, 200, end=True, parent=0)
    assert hop.step(T)[0] == "nothing"
    assert hop.step(T + 1_499 * MS)[0] != "end"
    assert hop.step(T + 1_500 * MS)[0] == "end"
    hop = merged()
    hop.told(6, parent=0)
    hop.reaches(5, 200, end=True, parent=0)
    assert hop.step(T) == NOTHING
    assert hop.step(T + 20 * MS)[0] == "repair"  # of the one that has not told the end
    assert hop.parent == 1
    hop.later(T + 20 * MS)
    assert hop.step(T + 399 * MS)[0] != "end"
    for _ in range(4):
        what = hop.step(T + 400 * MS)[0]
        if what == "end":
            break
    assert what == "end"


def test_what_lies_beyond_an_early_end_is_asked_of_the_other_and_counted_if_it_never_comes() -> (
    None
):
    """The parent that told the end has nothing of it."""
    hop = merged()
    hop.reaches(5, 210, parent=1)
    hop.reaches(5, 200, end=True, parent=0)
    assert hop.step(T + 180 * MS) == NOTHING
    now = T + 200 * MS
    assert hop.step(now)[:3] == ("repair", 200, 210)
    assert hop.parent == 1
    hop.gone(210, now)
    hop.lists(1, up=False)
    assert hop.step(now) == ("end", 0, 0, 10)
    assert hop.cause == GONE


def test_an_epoch_that_was_over_goes_on_when_a_parent_has_more_of_it() -> None:
    """Its end was told by the only one who was there."""
    hop = merged()
    hop.lost(1, T)
    hop.reaches(5, 200, end=True, parent=0)
    assert hop.step(T)[0] == "end"
    assert not hop.reaches(5, 200, parent=1)
    assert hop.reaches(5, 220, parent=1)
    hop.back(1, T)
    hop.resume(T)
    assert hop.state["state"] == LIVE
    assert hop.step(T + 180 * MS) == NOTHING
    assert hop.step(T + 200 * MS)[:3] == ("repair", 200, 220)
    assert hop.parent == 1


def test_a_parent_takes_its_own_end_back() -> None:
    """A relay whose upstream came back goes on where it had ended."""
    hop = merged()
    hop.reaches(5, 200, end=True, parent=0)
    hop.reaches(5, 205, parent=0)
    hop.look(head=205)
    hop.lists(1, up=False)
    assert hop.step(T + 10_000_000)[0] != "end"
    assert hop.state["state"] == LIVE


def test_a_subscription_that_the_stream_before_has_left_ends() -> None:
    """One at a time, at each parent."""
    hop = merged()
    hop.forget()
    hop.look(wanted=False)
    assert hop.subscribed == [0, 1]
    assert [hop.step(T)[0] for _ in range(3)] == ["leave", "leave", "nothing"]
    assert hop.subscribed == []

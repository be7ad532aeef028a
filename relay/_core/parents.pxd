# parents.pxd: decides which upstreams feed one stream (feed_t), and whether an upstream is there at
# all (peer_t).
#
# Rules of this room
#   1. No I/O, no clock: the caller shows it the upstreams and the time, and does what it answers.
#   2. standby: one parent is subscribed. All that fit are heard while it is silent, or a hole lies
#      open; who brings news first becomes the feeder. merge: all that fit are subscribed.
#   3. A parent fits when it is up, lists the stream, has its epoch, and is nearer to the origin
#      than this node has ever told a child that it is itself: so no loop can close.
#   4. Shortest path, then load, then name. A better one that returns is taken back after a wait
#      with jitter, and only once it has delivered: never all children at once, never in the dark.
#   5. A parent that drains is left as soon as another feeds: all that fit are heard beside it, so
#      that nothing waits for its last word.
#   6. All times µs (monotonic), epochs ms (wall clock).

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

cdef enum:
    PARENTS_MAX = 8
    PARENT_NONE = 8
    HOPS_NONE = 255           # nothing announced yet
    DEPTH_MAX = 16            # hops between a node and the origin

cdef enum:  # states of an upstream
    PEER_CONNECTING = 0
    PEER_UP = 1
    PEER_LOST = 2
    PEER_VERSION = 3          # speaks another protocol version
    PEER_LOOP = 4             # it, or one above it, is ourselves; or it is too deep

cdef enum:  # what to do next with a subscription
    FEED_NOTHING = 0
    FEED_SUBSCRIBE = 1
    FEED_LEAVE = 2

cdef enum:
    PAUSE_US = 200000         # we ourselves stood still for longer: judge nobody by it
    FEED_GRACE_US = 200000    # so much later than another the feeder may wake up and stay
    FEED_DRAIN_US = 40000     # so long the next has fed before one that drains is left
    RETURN_US = 5000000       # a better parent is there for so long before it is tried …
    RETURN_JITTER_US = 20000000   # … and up to so much longer
    RETURN_DOUBLINGS = 4      # of both, for a parent that was tried in vain
    TRY_US = 2000000          # it delivers within this, or is left
    LOAD_EQUAL = 100          # ‰: a difference below it is none
    LOAD_WORTH = 300          # ‰: worth moving for

cdef struct peer_t:           # one upstream as decisions see it; owner: the backbone thread
    uint32_t state            # PEER_…
    uint64_t sign_us          # the last sign of life
    bint answers              # requests can be sent to it
    uint32_t window           # requests open now
    uint32_t window_max
    uint32_t load             # ‰ of its thread's time
    uint32_t rank             # its name's place among the upstreams' names
    bint drains               # it is about to stop: it feeds until another does

cdef struct parent_t:         # one upstream for one stream
    bint lists                # its directory has the stream …
    bint up                   # … with its source there
    bint subscribed
    bint shadowed             # its epoch has lost against a higher one
    bint tail_gone            # it knows no end of our epoch
    bint ended                # it has told that our epoch ends …
    uint64_t end_sequence     # … here; who then sends what lies beyond takes it back
    uint32_t hops             # its own distance from the origin
    uint32_t failed           # times that it was tried in vain
    uint64_t origin
    uint64_t epoch            # the newest that it has told of; 0: none
    uint64_t listed_epoch     # of its directory's entry; for a local source, whose rival it is
    uint64_t round            # of the snapshot of its directory that last had it
    uint64_t news_us          # when it brought the first news since feed_watch; 0: not yet
    uint64_t gone_sequence    # it has nothing before it …
    uint64_t back_floor       # … nor before this, older than our base
    uint64_t retry_us         # it is asked nothing before
    uint64_t wait_us          # the next pause after `later`
    uint64_t denied_epoch     # told, but a join brought an older one: up to it nothing is heard …
    uint64_t denied_until_us  # … before this
    uint32_t denied           # times that it was so

cdef struct feed_t:           # who feeds one stream
    parent_t parents[PARENTS_MAX]
    uint32_t parents_count
    uint32_t feeding          # PARENT_NONE: nobody
    uint64_t news_sequence    # what ends beyond it is news
    uint64_t hear_us          # since when all are heard for its silence; 0: they are not
    uint32_t better           # who would be better; PARENT_NONE: nobody
    uint64_t better_us        # when it may be tried
    uint32_t trying           # PARENT_NONE: nobody is
    uint64_t trying_us
    uint64_t announced_epoch  # children were told of it …
    uint32_t announced_hops   # … with this distance at least
    uint64_t switches

cdef struct feed_view_t:      # what the choice needs to know of the world
    const peer_t* peers       # as many as parents
    bint merge
    uint64_t epoch            # parents that have told of an older one do not fit
    uint64_t head_sequence
    bint joining              # there is no ring yet: changing costs nothing
    bint live                 # the ring follows; else there is no news to bring
    bint silent               # no news for longer than it should take
    bint doubted              # a hole lies open that the feeder does not close; or no ring comes
    uint64_t salt             # of the jitter: differs by node and stream

cdef struct feed_act_t:
    int what                  # FEED_…
    uint32_t parent

cdef inline void feed_open(feed_t* feed, uint32_t parents_count) noexcept nogil:
    # Of zeroed memory.
    feed.parents_count = parents_count
    feed.feeding = feed.better = feed.trying = PARENT_NONE
    feed.announced_hops = HOPS_NONE

# --- who fits ------------------------------------------------------------------------------------

cdef inline bint peer_is_there(const peer_t* peer) noexcept nogil:
    return peer.state == PEER_UP and peer.answers

cdef inline bint parent_is_nearer(const feed_t* feed, const parent_t* parent) noexcept nogil:
    # The rule against loops: whoever feeds us is nearer than the least we ever announced, so along
    # a chain of parents that least only falls.
    return parent.hops < DEPTH_MAX and (
        parent.epoch > feed.announced_epoch or parent.hops < feed.announced_hops
    )

cdef inline bint parent_fits(
    const feed_t* feed, const feed_view_t* view, uint32_t i,
) noexcept nogil:
    cdef const parent_t* parent
    if i >= feed.parents_count or not peer_is_there(&view.peers[i]):
        return False
    parent = &feed.parents[i]
    return parent.lists and parent.epoch >= view.epoch and parent_is_nearer(feed, parent)

cdef inline bint parent_precedes(
    const feed_t* feed, const feed_view_t* view, uint32_t i, uint32_t other,
) noexcept nogil:
    # Of two that fit, and none feeds: which one?
    cdef const parent_t* a = &feed.parents[i]
    cdef const parent_t* b = &feed.parents[other]
    cdef uint32_t load_a = view.peers[i].load // LOAD_EQUAL
    cdef uint32_t load_b = view.peers[other].load // LOAD_EQUAL
    if a.epoch != b.epoch:
        return a.epoch > b.epoch
    if a.up != b.up:
        return a.up
    if view.peers[i].drains != view.peers[other].drains:
        return view.peers[other].drains
    if a.hops != b.hops:
        return a.hops < b.hops
    if load_a != load_b:
        return load_a < load_b
    return view.peers[i].rank < view.peers[other].rank

cdef inline bint parent_is_worth(
    const feed_t* feed, const feed_view_t* view, uint32_t i, uint32_t other,
) noexcept nogil:
    # Is it worth moving to i from the other, which feeds well? Between two loads that are neither
    # equal nor far apart nobody moves, or all would swing to and fro.
    cdef const parent_t* a = &feed.parents[i]
    cdef const parent_t* b = &feed.parents[other]
    cdef uint32_t load_a = view.peers[i].load
    cdef uint32_t load_b = view.peers[other].load
    if a.epoch != b.epoch or a.up != b.up:
        return a.epoch >= b.epoch and a.up >= b.up
    if view.peers[i].drains != view.peers[other].drains:
        return view.peers[other].drains
    if a.hops != b.hops:
        return a.hops < b.hops
    if load_a + LOAD_WORTH <= load_b:
        return True
    return load_a < load_b + LOAD_EQUAL and load_b < load_a + LOAD_EQUAL and (
        view.peers[i].rank < view.peers[other].rank
    )

cdef inline uint32_t feed_best(const feed_t* feed, const feed_view_t* view) noexcept nogil:
    # The first of those that fit; PARENT_NONE: nobody does.
    cdef uint32_t best = PARENT_NONE
    cdef uint32_t i
    for i in range(feed.parents_count):
        if parent_fits(feed, view, i) and (
            best == PARENT_NONE or parent_precedes(feed, view, i, best)
        ):
            best = i
    return best

cdef inline uint32_t feed_listing(const feed_t* feed, uint64_t epoch) noexcept nogil:
    # One that lists this epoch, its source there if possible; PARENT_NONE: nobody.
    cdef uint32_t found = PARENT_NONE
    cdef uint32_t i
    for i in range(feed.parents_count):
        if feed.parents[i].lists and feed.parents[i].epoch == epoch and (
            found == PARENT_NONE or feed.parents[i].up > feed.parents[found].up
        ):
            found = i
    return found

cdef inline bint feed_has_other(const feed_t* feed, const feed_view_t* view) noexcept nogil:
    # Is another than the feeder subscribed and there?
    cdef uint32_t i
    for i in range(feed.parents_count):
        if i != feed.feeding and feed.parents[i].subscribed and parent_fits(feed, view, i):
            return True
    return False

cdef inline uint32_t feed_hops(const feed_t* feed, uint64_t epoch, bint merge) noexcept nogil:
    # How far from the origin this node is: one more than who feeds it (in merge: than the furthest
    # of them), or than the nearest who could. HOPS_NONE: nobody lists the epoch just now.
    cdef uint32_t hops = HOPS_NONE
    cdef uint32_t i
    if feed.feeding != PARENT_NONE and feed.parents[feed.feeding].lists:
        hops = feed.parents[feed.feeding].hops
        for i in range(feed.parents_count):
            if merge and feed.parents[i].subscribed and feed.parents[i].hops > hops:
                hops = feed.parents[i].hops
        return hops + 1
    for i in range(feed.parents_count):
        if feed.parents[i].lists and feed.parents[i].epoch == epoch and (
            feed.parents[i].hops < hops
        ):
            hops = feed.parents[i].hops
    return hops + 1 if hops != HOPS_NONE else HOPS_NONE

cdef inline void feed_announced(feed_t* feed, uint64_t epoch, uint32_t hops) noexcept nogil:
    # A child is being told our distance.
    if epoch > feed.announced_epoch:
        feed.announced_epoch = epoch
        feed.announced_hops = hops
    elif epoch == feed.announced_epoch and hops < feed.announced_hops:
        feed.announced_hops = hops

# --- what was heard ------------------------------------------------------------------------------

cdef inline void feed_watch(feed_t* feed, uint64_t head_sequence) noexcept nogil:
    # From here on: who brings news? Not what lay in the queues of one that was frozen.
    cdef uint32_t i
    feed.news_sequence = head_sequence
    for i in range(feed.parents_count):
        feed.parents[i].news_us = 0

cdef inline void feed_fed(
    feed_t* feed, uint32_t i, uint64_t end_sequence, uint64_t now,
) noexcept nogil:
    # It has published frames up to there.
    if end_sequence > feed.news_sequence and feed.parents[i].news_us == 0:
        feed.parents[i].news_us = now

cdef inline void feed_begins(feed_t* feed) noexcept nogil:
    # A new epoch: its sequences have nothing to do with the last one's.
    cdef uint32_t i
    feed.hear_us = 0
    feed.better = feed.trying = PARENT_NONE
    feed_watch(feed, 0)
    for i in range(feed.parents_count):
        feed.parents[i].gone_sequence = feed.parents[i].back_floor = 0
        feed.parents[i].tail_gone = feed.parents[i].ended = False

cdef inline void parent_anew(parent_t* parent, bint process, uint64_t now) noexcept nogil:
    # It is back; or another process has taken its place, which may have what the last had not.
    parent.retry_us = now
    parent.wait_us = 0
    if process:
        parent.gone_sequence = parent.back_floor = 0
        parent.tail_gone = parent.ended = False
        parent.failed = parent.denied = 0
        parent.denied_until_us = 0

cdef inline void parent_told_again(parent_t* parent, const parent_t* old) noexcept nogil:
    # Of zeroed memory: what lives longer than the stream.
    parent.lists = old.lists
    parent.up = old.up
    parent.hops = old.hops
    parent.origin = old.origin
    parent.epoch = old.epoch
    parent.round = old.round
    parent.subscribed = old.subscribed

cdef inline void parent_withdraws(feed_t* feed, uint32_t i) noexcept nogil:
    # It no longer has the stream. Whether it is still subscribed is the next step's affair.
    cdef bint subscribed = feed.parents[i].subscribed
    memset(&feed.parents[i], 0, sizeof(parent_t))
    feed.parents[i].subscribed = subscribed
    if feed.trying == i:
        feed.trying = PARENT_NONE

# --- what to do ----------------------------------------------------------------------------------

cdef inline uint64_t feed_wait_us(const feed_t* feed, uint64_t salt, uint64_t now) noexcept nogil:
    # How long a better parent is waited for: jitter out of the salt, the time and a multiplication.
    cdef uint32_t failed = feed.parents[feed.better].failed
    cdef uint64_t dice = (salt ^ now) * <uint64_t>0x9E3779B97F4A7C15
    dice = (dice ^ (dice >> 29)) * <uint64_t>0xBF58476D1CE4E5B9
    return (RETURN_US + (dice >> 16) % RETURN_JITTER_US) << (
        failed if failed < RETURN_DOUBLINGS else RETURN_DOUBLINGS
    )

cdef inline void feed_take(feed_t* feed, uint32_t i) noexcept nogil:
    if feed.feeding != PARENT_NONE and feed.feeding != i:
        feed.switches += 1
    feed.feeding = i
    feed.hear_us = 0
    feed.better = feed.trying = PARENT_NONE

cdef inline void feed_hear(feed_t* feed, const feed_view_t* view, uint64_t now) noexcept nogil:
    # The feeder is silent, or about to stop: all are heard, until it speaks, or another has spoken
    # for a while. Of one that is about to stop it does not matter whether it speaks.
    cdef uint32_t i
    cdef const parent_t* parent
    cdef bint drains = view.peers[feed.feeding].drains
    cdef uint64_t grace_us = FEED_DRAIN_US if drains else FEED_GRACE_US
    if feed.hear_us == 0:
        if not view.silent and not drains:
            return
        feed.hear_us = now
        feed_watch(feed, view.head_sequence)
    if feed.parents[feed.feeding].news_us and not drains:
        feed.hear_us = 0
        return
    for i in range(feed.parents_count):
        parent = &feed.parents[i]
        if i == feed.feeding or (drains and view.peers[i].drains):
            continue
        if parent.news_us and now - parent.news_us >= grace_us and parent_fits(feed, view, i):
            feed_take(feed, i)
            return

cdef inline void feed_try(feed_t* feed, const feed_view_t* view, uint64_t now) noexcept nogil:
    # The feeder feeds. Is another better, and has it been for long enough?
    cdef uint32_t best = feed_best(feed, view)
    if feed.trying != PARENT_NONE:
        if feed.parents[feed.trying].news_us:
            feed.parents[feed.trying].failed = 0
            feed_take(feed, feed.trying)
        elif now - feed.trying_us >= TRY_US or not parent_fits(feed, view, feed.trying):
            feed.parents[feed.trying].failed += 1
            feed.better = feed.trying = PARENT_NONE
        return
    if best == PARENT_NONE or best == feed.feeding or not parent_is_worth(
        feed, view, best, feed.feeding
    ):
        feed.better = PARENT_NONE
    elif best != feed.better:
        feed.better = best
        feed.better_us = now + feed_wait_us(feed, view.salt, now)
    elif now >= feed.better_us:
        feed.trying = best
        feed.trying_us = now
        feed_watch(feed, view.head_sequence)

cdef inline void feed_choose(feed_t* feed, const feed_view_t* view, uint64_t now) noexcept nogil:
    # Who feeds? While nobody fits nothing changes: what is subscribed stays so.
    cdef uint32_t best
    cdef uint32_t i
    if feed.feeding == PARENT_NONE or not parent_fits(feed, view, feed.feeding):
        best = feed_best(feed, view)
        if best != PARENT_NONE:
            feed_take(feed, best)
        elif feed.feeding == PARENT_NONE or not feed.parents[feed.feeding].lists:
            for i in range(feed.parents_count):
                if feed.parents[i].lists and parent_is_nearer(feed, &feed.parents[i]):
                    feed_take(feed, i)
                    return
    elif not view.merge and view.live:
        feed_hear(feed, view, now)
        if feed.hear_us == 0:
            feed_try(feed, view, now)
    else:
        feed.hear_us = 0
        best = feed_best(feed, view)
        if not view.live and best != feed.feeding and parent_is_worth(
            feed, view, best, feed.feeding
        ):
            feed.feeding = best     # nothing comes from the other (any more): no switch

cdef inline bint feed_wants(const feed_t* feed, const feed_view_t* view, uint32_t i) noexcept nogil:
    # Is this one to be subscribed?
    cdef const parent_t* parent = &feed.parents[i]
    if i == feed.feeding or i == feed.trying:
        return True
    if view.merge:
        return parent.lists and parent.epoch >= view.epoch and parent_is_nearer(feed, parent)
    return (feed.hear_us != 0 or view.doubted) and parent_fits(feed, view, i)

cdef inline void feed_step(
    feed_t* feed, const feed_view_t* view, uint64_t now, feed_act_t* act,
) noexcept nogil:
    # One subscription to make or to leave, or FEED_NOTHING.
    cdef uint32_t i
    cdef bint wants
    act.what = FEED_NOTHING
    act.parent = PARENT_NONE
    feed_choose(feed, view, now)
    for i in range(feed.parents_count):
        wants = feed_wants(feed, view, i)
        if wants != feed.parents[i].subscribed:
            feed.parents[i].subscribed = wants
            act.what = FEED_SUBSCRIBE if wants else FEED_LEAVE
            act.parent = i
            return

# --- an upstream itself --------------------------------------------------------------------------

cdef inline bint peer_sign(peer_t* peer, uint64_t now) noexcept nogil:
    # A beacon that we accept. True: the upstream has just come (back).
    cdef bint back = peer.state != PEER_UP
    peer.state = PEER_UP
    peer.sign_us = now
    return back

cdef inline bint peer_is_silent(peer_t* peer, uint64_t now, uint64_t last_turn_us,
                                uint64_t silence_us) noexcept nogil:
    # True once, when the upstream is lost. Who stood still himself begins to wait anew.
    if now - last_turn_us > PAUSE_US:
        peer.sign_us = now
    if peer.state != PEER_UP or now - peer.sign_us <= silence_us:
        return False
    peer.state = PEER_LOST
    return True

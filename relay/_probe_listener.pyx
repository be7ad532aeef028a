# _probe_listener.pyx: faces for the tests on what a listener gets, and what is measured of it.
#
# Rules of this room
#   1. Test faces only: the package never imports it, nothing at run time depends on it.
#   2. It decides nothing: converts arguments, calls the rooms, converts the answer. In the place of
#      a socket stands a test that takes as many bytes as it likes, at the time it likes.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from relay._core.anchor cimport (
    ANCHOR_REASONS, BEGIN_AT, BEGIN_SEND_ON, anchor_begin, anchor_live, anchor_location,
    anchor_probe, begin_set, begin_t, place_write,
)
from relay._core.atomics cimport add_u32, load_u32, load_u64, store_u32, store_u64
from relay._core.connection cimport shard_t
from relay._core.engine cimport (
    chain_t, engine_close, engine_open, engine_set_rule, engine_t, now_us as clock_us, rule_t,
)
from relay._core.fallback cimport (
    FALLBACK_MEMBERS, FALLBACK_NONE, fallback_change, fallback_format, fallback_step, fallback_t,
    sight_t,
)
from relay._core.fallback_look cimport rule_change, stream_format
from relay._core.fallback_move cimport (
    left_mark as c_left_mark, left_position as c_left_position, shard_place,
)
from relay._core.http_head cimport head_end, head_parse, head_t
from relay._core.icy cimport ICY_METAINT
from relay._core.intro cimport intro_close, intro_open, intro_t
from relay._core.listener cimport (
    END_REASONS, END_STREAM, FLOWING, FLOW_BLOCKED, FLOW_DONE, FLOW_MORE, PART_COPY, flow_add,
    flow_open, flow_t, listener_enter_at, listener_gather, listener_leave_fallback,
    listener_leave_ring, listener_t, listener_took,
)
from relay._core.marks cimport MARKS, marks_add, marks_find, marks_t
from relay._core.observe cimport (
    BUSY_STEPS, SEEN_GAP, SEEN_KINDS, SEEN_LATENESS, busy_quantile_permille, observe,
    observe_add_up, observe_busy, observe_lateness, observed_t,
)
from relay._core.orders_step cimport shard_send_over
from relay._core.recorder cimport recorder_close, recorder_open
from relay._core.ring cimport FRAME_TITLE, ring_close, ring_open, ring_t
from relay._core.ring_writer cimport ring_give_up
from relay._core.sound cimport sound_of_frame, sound_of_header
from relay._core.stream cimport (
    stream_begin_epoch, stream_config_t, stream_drop, stream_end_epoch, stream_mark, stream_open,
    stream_place, stream_push, stream_set_info, stream_t,
)

LISTENER_BYTES = sizeof(listener_t)
MARKS_BYTES = sizeof(marks_t)


# --- marks ---


cdef class Marks:
    """The marks of one ring."""

    cdef marks_t marks
    cdef uint64_t head
    cdef uint32_t stop

    def add(self, uint64_t position, uint64_t now_us):
        """marks_add."""
        marks_add(&self.marks, position, now_us)

    def find(self, uint64_t position):
        """marks_find."""
        return marks_find(&self.marks, position)

    def write_unpaced(self, uint64_t step_us):
        """Marks and moves the head as fast as it can until stop_writing(): what is at position p
        became readable at p × step_us. No GIL."""
        cdef uint64_t position = 0
        with nogil:
            while not load_u32(&self.stop):
                position += 1
                marks_add(&self.marks, position, position * step_us)
                store_u64(&self.head, position + 1)

    def stop_writing(self):
        """Ends write_unpaced."""
        store_u32(&self.stop, 1)

    @property
    def written(self):
        """How many bytes write_unpaced has made readable."""
        return load_u64(&self.head)

    def look(self, uint64_t step_us, uint64_t looks):
        """Asks so often for one of the newest MARKS bytes, which there must be: (answers, answers
        later than the truth), without those during which the writer ran on by another 2000."""
        cdef uint64_t late = 0
        cdef uint64_t answers = 0
        cdef uint64_t found
        cdef uint64_t position
        cdef uint64_t i
        with nogil:
            for i in range(looks):
                position = load_u64(&self.head) - 1 - i % MARKS
                found = marks_find(&self.marks, position)
                if load_u64(&self.head) - position < MARKS + 2000:
                    answers += 1
                    late += found > position * step_us
        return answers, late


# --- what a shard sees ---


cdef class Observed:
    """What one shard books, and one ring that may be marked."""

    cdef observed_t observed
    cdef ring_t* ring

    def __cinit__(self):
        self.ring = ring_open(65536, 64, 1, 0, 0, 0, NULL)
        if self.ring == NULL:
            raise MemoryError("no ring")

    def __dealloc__(self):
        if self.ring != NULL:
            ring_close(self.ring)

    def mark(self, uint64_t position, uint64_t now_us):
        """marks_add on the ring."""
        marks_add(&self.ring.marks, position, now_us)

    def sent(self, uint64_t position, uint64_t turn, uint64_t now_us):
        """observe_lateness: a send carried what begins at position."""
        observe_lateness(&self.observed, self.ring, position, turn, now_us)

    def book(self, int kind, uint64_t since_us, uint64_t now_us):
        """observe."""
        assert 0 <= kind < SEEN_KINDS
        observe(&self.observed, kind, since_us, now_us)

    def turn(self, uint64_t begin_us, uint64_t end_us):
        """observe_busy."""
        observe_busy(&self.observed, begin_us, end_us)

    def told(self, *others):
        """All of it, with what other shards have seen."""
        cdef observed_t total
        cdef Observed other
        memset(&total, 0, sizeof(observed_t))
        observe_add_up(&total, &self.observed)
        for other in others:
            observe_add_up(&total, &other.observed)
        return {
            "durations": [
                (total.durations[i].total, total.durations[i].sum_us, total.durations[i].max_us)
                for i in range(SEEN_KINDS)
            ],
            "windows": [total.busy.windows[i] for i in range(BUSY_STEPS)],
            "windows_total": total.busy.total, "sum_permille": total.busy.sum_permille,
            "max_permille": total.busy.max_permille, "last_permille": total.busy.last_permille,
        }

    def measure(self, uint64_t sends, uint64_t per_place):
        """Books so many sends, `per_place` in a row from each of 200 places, as a shard does it:
        seconds, with the clock that each asks."""
        cdef uint64_t begin
        cdef uint64_t end
        cdef uint64_t now
        cdef uint64_t place
        cdef uint64_t i
        with nogil:
            begin = clock_us()
            for i in range(200):
                marks_add(&self.ring.marks, 400 * i, begin + 24000 * i)
            begin = clock_us()
            for i in range(sends):
                now = clock_us()
                place = i // per_place
                observe(&self.observed, SEEN_GAP, now - 200000 - (i & 1023), now)
                observe_lateness(&self.observed, self.ring, 400 * (place * 79 % 200), place,
                                 now + 5000000)
            end = clock_us()
        return (end - begin) / 1e6

    def busy_quantile(self, double share):
        """busy_quantile_permille."""
        return busy_quantile_permille(&self.observed.busy, share)

    @property
    def lateness_sum_us(self):
        """Of all that was booked."""
        return self.observed.durations[SEEN_LATENESS].sum_us


# --- one listener ---


cdef class OneListener:
    """A listener of one stream; the test is the stream's source, its clock and the socket."""

    cdef engine_t engine
    cdef stream_t* stream
    cdef listener_t listener
    cdef intro_t intro
    cdef bint is_open

    def __cinit__(self, *, bint icy=True, uint64_t burst_us=1000000, uint64_t lag_us_max=5000000,
                  uint64_t ring_us=20000000, uint64_t ring_bytes_max=1 << 26, tuple first=(0, 0),
                  int fallbacks=0):
        cdef stream_config_t config
        memset(&config, 0, sizeof(config))
        if engine_open(&self.engine, 4) != 0:
            raise MemoryError("no engine")
        self.is_open = True
        config.burst_us = burst_us
        config.lag_us_max = lag_us_max
        config.ring_us = ring_us
        config.ring_bytes_max = ring_bytes_max
        config.stall_us = <uint64_t>1 << 60
        self.stream = stream_open(
            b"/live", 5, &config, &self.engine.retire, &self.engine.hub
        )
        if self.stream == NULL or stream_begin_epoch(
            self.stream, 1, 0, first[0], first[1], first[0] * <uint64_t>24000
        ) != 0:
            raise MemoryError("no stream")
        self.listener.state = FLOWING
        self.listener.stream = self.stream
        self.listener.icy = icy
        self.listener.icy_left_bytes = ICY_METAINT

    def __dealloc__(self):
        if not self.is_open:
            return
        if self.stream != NULL:
            listener_leave_ring(&self.listener)
            listener_leave_fallback(&self.listener)
            stream_drop(self.stream)
        free(self.listener.rest)
        intro_close(&self.intro)
        engine_close(&self.engine)

    def push(self, bytes data, uint32_t duration_us, uint32_t flags=1, uint64_t now_us=0):
        """The next frame of the source; its status."""
        stream_mark(self.stream, now_us)
        return stream_push(
            self.stream, <const uint8_t*><const char*>data, <uint32_t>len(data), duration_us, flags
        )

    def place(self, uint64_t sequence, uint64_t position, bytes data, uint64_t now_us):
        """A frame of 24 ms that came over the backbone, at the head, ahead of it, or in a hole."""
        stream_mark(self.stream, now_us)
        return stream_place(
            self.stream, sequence, position, sequence * 24000, <const uint8_t*><const char*>data,
            <uint32_t>len(data), 24000, 1
        )

    def readable_us(self, uint64_t position):
        """When this byte became readable, by the marks of the newest ring."""
        return marks_find(&self.stream.ring.marks, position)

    def hear_intro(self, bytes data):
        """From here on it hears these bytes first."""
        if intro_open(&self.intro, data, len(data), 0) != 0:
            raise ValueError(f"no intro of {len(data)} bytes")
        self.listener.intro = &self.intro

    def title(self, bytes text):
        """A title from here on."""
        return self.push(text, 0, FRAME_TITLE)

    def new_epoch(self, uint64_t epoch):
        """The source leaves and returns."""
        stream_end_epoch(self.stream, 0)
        return stream_begin_epoch(self.stream, epoch, 0, 0, 0, 0)

    def lose(self):
        """The hole at the head will never be filled: how many frames that are."""
        return ring_give_up(self.stream.ring)

    cdef int begin_of(self, begin_t* begin, bytes request, bint goes_back, bint late) except -1:
        cdef head_t head
        parse(&head, request)
        anchor_begin(begin, &head, self.stream.ring, self.stream.before, goes_back, late)
        return 0

    def ask(self, bytes request, bint goes_back=False, bint late=False, bint twice=False):
        """anchor_begin: (how, why, epoch, position, bytes of header pages that are left). `twice`:
        the newest ring is taken for the one of the epoch before, too."""
        cdef begin_t begin
        cdef head_t head
        self.begin_of(&begin, request, goes_back, late)
        if twice:
            parse(&head, request)
            anchor_begin(&begin, &head, self.stream.ring, self.stream.ring, goes_back, late)
        assert 0 <= begin.why < ANCHOR_REASONS
        how = ("live", "at", "wait", "send on")[begin.how]
        why = (None, "exact", "old", "ahead", "epoch")[begin.why]
        if begin.how != BEGIN_AT and begin.how != BEGIN_SEND_ON:
            return how, why
        return how, why, begin.ring.epoch, begin.position, begin.header_bytes

    def anchor(self):
        """The place at which a listener would begin now, as it is written; None: none yet."""
        cdef begin_t begin
        cdef char text[100]
        cdef uint32_t size
        if not anchor_live(&begin, self.stream.ring, self.stream.config.burst_us):
            return None
        size = place_write(text, 100, &begin)
        return text[:size]

    def location(self, bytes request, uint32_t room=16384):
        """anchor_location of the place at which a listener would begin now; None: not written."""
        cdef begin_t begin
        cdef head_t head
        cdef char* out
        parse(&head, request)
        if not anchor_live(&begin, self.stream.ring, self.stream.config.burst_us):
            raise ValueError("there is no place yet")
        out = <char*>calloc(1, room + 1)
        try:
            size = anchor_location(out, room, &head, &begin)
            return out[:size] if size > 0 else None
        finally:
            free(out)

    def probe(self, uint32_t size):
        """anchor_probe there."""
        cdef begin_t begin
        cdef uint8_t out[100]
        begin_set(&begin, 0, 0)
        anchor_live(&begin, self.stream.ring, self.stream.config.burst_us)
        anchor_probe(&begin, out, size)
        return (<const char*>out)[:size]

    def send(self, uint64_t room, uint64_t now_us, bytes head=b"", bytes request=b""):
        """One turn of this listener: (status, the bytes that a socket with so much room took, parts
        put together, µs of media skipped or None). A status is "done", "more", "blocked" or why it
        ended, as a number. With a request it begins at the place that this names."""
        cdef flow_t flow
        cdef begin_t begin
        cdef int64_t sent = 0
        cdef uint64_t took
        cdef int status
        cdef int i
        cdef bint placed = True
        flow_open(&flow)
        if head:
            flow_add(&flow, PART_COPY, <const char*>head, len(head), 0)
        if request:
            self.begin_of(&begin, request, False, False)
            if begin.how != BEGIN_AT:
                raise ValueError(f"{request!r} names no place that is here")
            listener_enter_at(&self.listener, &flow, &begin)
        else:
            placed = self.place_listener(&flow, now_us)
        status = listener_gather(&self.listener, &flow) if placed else -END_STREAM
        out = bytearray()
        if status == FLOW_DONE and flow.count > 0:
            for i in range(flow.count):
                took = min(<uint64_t>flow.parts[i].iov_len, room - <uint64_t>sent)
                out += (<const char*>flow.parts[i].iov_base)[:took]
                sent += <int64_t>took
            status = listener_took(&self.listener, &flow, sent, now_us)
        skipped_us = flow.skipped_us if flow.skipped else None
        return status_name(status), bytes(out), flow.count, skipped_us

    cdef bint place_listener(self, flow_t* flow, uint64_t now_us) noexcept:
        return True

    @property
    def rings(self):
        """Live rings of the stream: more than one while it was resized and somebody hears the old
        one out."""
        return load_u32(&self.stream.rings)


cdef int parse(head_t* head, bytes request) except -1:
    if head_parse(head, request, head_end(request, len(request), 0)) != 0:
        raise ValueError(f"{request!r} is no request")
    return 0


cdef shard_t* shard_of(engine_t* engine) except NULL:
    """As much of a shard as moving a listener needs."""
    cdef shard_t* shard = <shard_t*>calloc(1, sizeof(shard_t))
    if shard == NULL or recorder_open(&shard.recorder, 64, 64) != 0:
        raise MemoryError("no memory for a shard")
    shard.engine = engine
    return shard


cdef stream_t* fallback_open(
    engine_t* engine, const stream_config_t* config, bytes mount,
) except NULL:
    """A stream with a ring and a format."""
    cdef bytes info = b"Content-Type: audio/mpeg\r\n"
    cdef stream_t* stream = stream_open(mount, <uint32_t>len(mount), config, &engine.retire,
                                        &engine.hub)
    if stream == NULL or stream_begin_epoch(stream, 1, 0, 0, 0, 0) != 0:
        raise MemoryError("no stream")
    stream_set_info(stream, info, <uint32_t>len(info))
    return stream


cdef uint32_t rule_open(engine_t* engine, stream_t** streams, uint32_t count) except 0:
    """A rule over them, or another chain for the one that is there, as if it had looked: it holds a
    reference on each."""
    cdef chain_t chain
    cdef rule_t* rule
    memset(&chain, 0, sizeof(chain))
    chain.count, chain.after_us = min(count, <uint32_t>FALLBACK_MEMBERS), 1000000
    for i in range(chain.count):
        chain.keys[i] = streams[i].key
    number = engine_set_rule(engine, &chain, False)
    rule = &engine.rules[number - 1]
    changes = rule_change(engine, rule)
    for i in range(1 if changes else 0, chain.count):
        rule.streams[i] = streams[i]
        add_u32(&streams[i].refs, 1)
    store_u32(&rule.version, rule.version + changes)
    return number


cdef class Chain(OneListener):
    """The same with fallbacks: so many other streams, and a rule that the test sets as it likes."""

    cdef stream_t* streams[2 * FALLBACK_MEMBERS]    # by number; 0 is the listener's own
    cdef shard_t* shard

    def __cinit__(self, uint32_t fallbacks=1, **options):
        cdef stream_config_t config = self.stream.config
        assert 0 < fallbacks < 2 * FALLBACK_MEMBERS     # those that fit are in the chain at first
        self.shard = shard_of(&self.engine)
        self.streams[0] = self.stream
        for number in range(1, fallbacks + 1):
            self.streams[number] = fallback_open(&self.engine, &config, b"/music%d" % number)
        self.stream.config.fallback = rule_open(&self.engine, self.streams, fallbacks + 1)
        self.inform(0, b"Content-Type: audio/mpeg\r\n")
        self.listener.promise = stream_format(self.stream)

    def __dealloc__(self):
        listener_leave_ring(&self.listener)
        listener_leave_fallback(&self.listener)
        for number in range(1, 2 * FALLBACK_MEMBERS):
            if self.streams[number] != NULL:
                stream_drop(self.streams[number])
        if self.shard != NULL:
            recorder_close(&self.shard.recorder)
        free(self.shard)

    def inform(self, int stream, bytes info):
        """The header lines of the stream with this number; 0 is the listener's own."""
        stream_set_info(self.streams[stream], info, <uint32_t>len(info))

    def push_to(self, int stream, bytes data, uint32_t duration_us, uint32_t flags=1):
        """The next frame of this stream; its status."""
        return stream_push(self.streams[stream], <const uint8_t*><const char*>data,
                           <uint32_t>len(data), duration_us, flags)

    def epoch_of(self, int stream, uint64_t epoch, bint ends=False):
        """The source of this stream leaves, and returns unless it `ends`."""
        cdef stream_t* it = self.streams[stream]
        stream_end_epoch(it, 0)
        return 0 if ends else stream_begin_epoch(it, epoch, 0, 0, 0, 0)

    def rule(self, uint32_t at, best=None, uint32_t version=0):
        """What the decision is from here on; an odd `version`: its chain is changing."""
        cdef rule_t* rule = &self.engine.rules[0]
        rule.version, rule.decided.at = version, at
        rule.decided.best = FALLBACK_NONE if best is None else best

    def remove(self, int stream):
        """Take this stream off the node."""
        store_u32(&self.streams[stream].closed, 1)

    cdef bint place_listener(self, flow_t* flow, uint64_t now_us) noexcept:
        return shard_place(self.shard, &self.listener, flow, now_us)

    @property
    def moves(self):
        """(to a fallback, back, listeners on one now, live rings of the first of them)."""
        return (self.shard.counters.fallbacks_total, self.shard.counters.returns_total,
                load_u32(&self.stream.away), load_u32(&self.streams[1].rings))


cdef class Chains(Chain):
    """The same where the chain is changed at run time."""

    def change(self, *fallbacks):
        """The streams with these numbers are the chain from here on."""
        cdef stream_t* chain[FALLBACK_MEMBERS]
        for i, number in enumerate((0, *fallbacks)):
            chain[i] = self.streams[<int>number]
        rule_open(&self.engine, chain, <uint32_t>len(fallbacks) + 1)

    def scramble(self):
        """Keys and count as another thread may see them halfway through a change."""
        self.engine.rules[0].keys[1] = 0
        store_u32(&self.engine.rules[0].decided.count, 0)


cdef class TwoMounts(Chain):
    """The same where the other stream is a mount to which an administrator sends the listener."""

    def __cinit__(self, **options):
        self.stream.listeners = self.shard.counters.listeners = 1
        self.stream.refs += 1     # the listener's own: it goes along, or stays behind

    def __dealloc__(self):
        listener_leave_ring(&self.listener)
        listener_leave_fallback(&self.listener)
        stream_drop(self.listener.stream)

    def send_over(self):
        """The administrator moves it from its own stream to the other, which has no rule; whether
        it may go."""
        return shard_send_over(self.shard, &self.listener, self.streams[1])

    @property
    def places(self):
        """(listeners of its own stream, of the other, of these away, moves that are done)."""
        return (load_u32(&self.stream.listeners), load_u32(&self.streams[1].listeners),
                load_u32(&self.streams[1].away), self.shard.counters.moves_total)

    def bound(self, uint32_t listeners_max):
        """The other stream takes so many listeners."""
        self.streams[1].config.listeners_max = listeners_max


# --- which stream a mount's listeners hear ---


cdef class Fallback:
    """The decision for a mount with a chain of so many fallbacks, on the test's clock."""

    cdef fallback_t fallback

    def __cinit__(self, uint32_t chain, uint64_t after_us):
        assert 0 < chain < FALLBACK_MEMBERS
        self.fallback.count = chain + 1
        self.fallback.after_us = after_us

    def change(self, uint32_t chain, uint64_t after_us):
        """Another chain, of so many fallbacks; 0: none any more."""
        fallback_change(&self.fallback, chain + 1, after_us)

    def step(self, uint64_t now_us, *sights):
        """One look; each sight is a dict of fields of sight_t. What was decided, as a dict."""
        cdef sight_t seen[FALLBACK_MEMBERS]
        cdef fallback_t* decided = &self.fallback
        assert len(sights) == decided.count
        for i, sight in enumerate(sights):
            seen[i] = sight_t(False, False, False, 0, 0, 0, 0, 0, 0, 0)
            seen[i].open = sight.get("open", False)
            seen[i].begins = sight.get("begins", False)
            seen[i].idle = sight.get("idle", False)
            seen[i].epoch = sight.get("epoch", 0)
            seen[i].position = sight.get("position", 0)
            seen[i].format = sight.get("format", 0)
            seen[i].serial = sight.get("serial", 0)
            seen[i].sound = sight.get("sound", 0)
            seen[i].listeners = sight.get("listeners", 0)
            seen[i].away = sight.get("away", 0)
        changed = fallback_step(decided, seen, now_us)
        return {
            "changed": changed, "at": decided.at, "heard": decided.heard == 1,
            "best": None if decided.best == FALLBACK_NONE else decided.best,
            "wanted": [i for i in range(decided.count) if decided.wanted >> i & 1],
            "unfit": [decided.members[i].unfit for i in range(decided.count)],
        }


def sound(bytes data):
    """What a frame (MPEG, ADTS) or the first header page (Ogg) tells of its sound; 0: nothing."""
    cdef const uint8_t* at = <const uint8_t*><const char*>data
    found = sound_of_frame(at, <uint64_t>len(data))
    return found if found else sound_of_header(at, <uint64_t>len(data))


def left_mark(uint64_t key, uint64_t epoch, uint64_t position):
    """left_mark."""
    return c_left_mark(key, epoch, position)


def left_position(uint64_t mark, uint64_t key, uint64_t epoch, uint64_t head_position):
    """left_position."""
    return c_left_position(mark, key, epoch, head_position)


def format_key(bytes info):
    """fallback_format."""
    return fallback_format(info, <uint32_t>len(info))


cdef object status_name(int status):
    assert -END_REASONS < status
    return {FLOW_DONE: "done", FLOW_BLOCKED: "blocked", FLOW_MORE: "more"}.get(status, status)

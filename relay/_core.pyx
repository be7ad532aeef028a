# _core.pyx: the data plane's face: what Python may call.
#
# Rules of this room
#   1. Converts: Python objects to pointers and lengths, status integers to exceptions. Decides
#      nothing.
#   2. Every call checks that its object is open and that the process has not forked.
#   3. Nothing here blocks, except close(), which joins the engine's threads.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from relay._core.atomics cimport (
    add_u32, load_pointer, load_u32, load_u64, store_pointer, store_u32, store_u64, sub_u32,
)
from relay._core.body cimport BODY_CHUNKED, BODY_RAW, BODY_SIZED, body_open, body_reason, body_t
from relay._core.backbone cimport backbone_main, backbone_subscribe
from relay._core.backbone_state cimport *
from relay._core.backbone_view cimport *
from relay._core.backbone_record cimport EPOCH_ANEW
from relay._core.cutter cimport *
from relay._core.guests cimport guest_spoke, guest_told
from relay._core.engine cimport (
    ENGINE_FULL, ENGINE_TAKEN, OVERRIDES_MAX, chain_t, engine_add, engine_add_intro,
    engine_add_redirect, engine_all, engine_close, engine_config, engine_find, engine_hub_close,
    engine_hub_open, engine_open, engine_override, engine_remove, engine_set_rule, engine_t, now_us,
    rule_t, wall_ms, wall_us,
)
from relay._core.framed cimport framed_close, framed_open, framed_reason, framed_t
from relay._core.framed_out cimport (
    FRAMED_LAST, FRAMED_NOTHING, FRAMED_OVERTAKEN, framed_out_begin, framed_out_run, framed_out_t,
)
from relay._core.fallback cimport FALLBACK_MEMBERS, fallback_format
from relay._core.frames cimport (
    SCAN_ADTS, SCAN_MPEG, SCAN_OGG, SCAN_WEBM, cut_t, scan_bit_rate_bps, scan_next, scan_open,
    scan_reason, scan_t,
)
from relay._core.handover cimport (
    close as close_fd, entry_t, eventfd_read, eventfd_write, handover_drain, handover_put,
    handover_t, handover_take,
)
from relay._core.intake cimport (
    INTAKE_ATTACHED, INTAKE_FREE, INTAKE_FULL, intake_attach, intake_close, intake_detach,
    intake_feed_framed, intake_open, intake_run, intake_t,
)
from relay._core.orders cimport (
    ORDER_END, ORDER_LIST, ORDER_MOVE, order_drop, order_open, order_t, roll_t,
)
from relay._core.recorder cimport (
    RECORD_EPOCH_BEGUN, RECORD_EPOCH_ENDED, RECORD_NOBODY, lane_first, lane_read, lane_t, record,
    record_t, recorder_flush, recorder_t, recorder_tick,
)
from relay._core.retire cimport (
    RETIRE_PYTHON, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, retire_sweep,
    turn_begin, turn_end,
)
from relay._core.http_head cimport HEAD_BYTES_MAX
from relay._core.histogram cimport histogram_below, histogram_quantile_us, histogram_t
from relay._core.observe cimport *
from relay._core.ring cimport (
    FRAME_PRESENT, FRAME_TITLE, PLACE_BAD, PLACE_FAR, PLACE_NO_MEMORY, audio_bytes, frame_t,
    header_t, ring_at, ring_burst_sequence, ring_entry_was_overtaken, ring_header, ring_hide,
    ring_read_entry, ring_show, ring_t, ring_tail_sequence, ring_title, ring_unpin,
    ring_was_overtaken, title_t,
)
from relay._core.ring_writer cimport ring_give_up
from relay._core.connection cimport (
    ARRIVALS_MAX, shard_close, shard_counters_t, shard_open, shard_snapshot, shard_t,
)
from relay._core.redirect cimport REDIRECTS_MAX
from relay._core.shard cimport shard_run
from relay._core.stream cimport (
    STREAM_FULL, VIEWS_MAX, WRITER_LINK, WRITER_LOCAL, hub_tell, info_t, mount_key,
    stream_before_take, stream_begin_epoch, stream_claim, stream_config_t, stream_drop,
    stream_end_epoch, stream_mark, stream_open, stream_place, stream_push, stream_resize,
    stream_ring_drop, stream_ring_take, stream_set_info, stream_t, stream_unclaim,
)
from relay._core.upstream cimport UPSTREAMS_MAX, WINDOW_MAX, upstream_t
from relay._core.wire cimport WIRE_ADDRESS_BYTES_MAX
from relay._core.visits cimport VISIT_JOINED, visit_t, visits_take
from relay._core.thread cimport pthread_join, pthread_t, thread_start_as
from relay._core.zmq_api cimport curve_t, zmq_api_load

import os
import socket
import time
from array import array

from relay.errors import MountError, OvertakenError, RelayError, SourceError

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #define RELAY_BUILD_NAME "asan"
    #elif defined(RELAY_CHECKED)
    #define RELAY_BUILD_NAME "checked"
    #else
    #define RELAY_BUILD_NAME "release"
    #endif
    """
    const char* RELAY_BUILD_NAME

BUILD = RELAY_BUILD_NAME.decode()
_pid = os.getpid()
cdef uint32_t forks = 0       # how often this process has forked children that may hold our sockets


def _after_fork():
    global _pid
    _pid = -1


def _after_fork_here():
    add_u32(&forks, 1)


os.register_at_fork(after_in_child=_after_fork, after_in_parent=_after_fork_here)


cdef int check_process() except -1:
    if _pid == -1:
        raise RelayError(
            "this process was forked: an engine works in the process that opened it alone; "
            "open a new one in a freshly started process"
        )
    return 0


cdef class Buffer:
    """A borrowed run of bytes from any bytes-like object, given back when it goes."""

    cdef Py_buffer view
    cdef const uint8_t* bytes
    cdef size_t size

    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.bytes = <const uint8_t*>self.view.buf
        self.size = <size_t>self.view.len

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef extern from "door.h" nogil:
    int door_adopt(int fd, uint8_t* address, uint16_t* port)
    int door_open(const char* host, uint16_t* port, int* fds, int count)
    const char* gai_strerror(int code)


cdef void* shard_main(void* shard) noexcept nogil:
    shard_run(<shard_t*>shard)
    return NULL


cdef void* intake_main(void* intake) noexcept nogil:
    intake_run(<intake_t*>intake)
    return NULL


cdef enum:
    SHARDS_MAX = 64
    TITLE_TEXT_BYTES_MAX = 4000


cdef uint32_t size_u32(Buffer run) noexcept:
    # A size that the core refuses stays one that it refuses.
    return <uint32_t>run.size if run.size < 0xFFFFFFFF else 0xFFFFFFFF


cdef class Engine:
    """The data plane of one node: its streams, its doors and its threads."""

    cdef engine_t engine
    cdef shard_t* shards[SHARDS_MAX]
    cdef pthread_t threads[SHARDS_MAX]
    cdef int shards_count
    cdef int shards_wanted
    cdef int threads_count
    cdef intake_t intake
    cdef pthread_t intake_thread
    cdef bint is_open
    cdef bint is_running
    cdef int admit_next           # which shard gets the next connection of admit()
    cdef list chains              # of each rule: the mount, then its chain

    def __cinit__(self, *, uint32_t streams_max=4096, int threads=1, int listeners_max=0,
                  int heads_max=2048, int heads_per_address_max=64, int head_timeout_ms=10000,
                  int head_grace_ms=1000, int join_wait_ms=2000, redirects=()):
        cdef bytes name
        if not 1 <= threads <= SHARDS_MAX:
            raise ValueError(f"threads is {threads}; the bound is 1 to {SHARDS_MAX}")
        if engine_open(&self.engine, streams_max) != 0:
            raise MemoryError(f"no memory for a table of {streams_max} streams")
        if intake_open(&self.intake, streams_max) != 0:
            raise MemoryError(f"no memory or descriptors for {streams_max} sources")
        self.engine.listeners_max = listeners_max or places_within_limit(heads_max)
        self.engine.heads_max = heads_max
        self.engine.places_max = self.engine.listeners_max + self.engine.heads_max
        self.engine.shards = threads
        self.engine.heads_per_address_max = heads_per_address_max
        self.engine.head_timeout_us = head_timeout_ms * <uint64_t>1000
        self.engine.head_grace_us = head_grace_ms * <uint64_t>1000
        self.engine.join_wait_us = join_wait_ms * <uint64_t>1000
        self.engine.directory_known = self.engine.upstream_up = 1
        self.engine.forks = &forks
        self.engine.node_id[0] = int.from_bytes(os.urandom(8), "little") | 1
        self.engine.node_id[1] = int.from_bytes(os.urandom(8), "little")
        self.engine.secret = int.from_bytes(os.urandom(8), "little")
        self.shards_wanted = threads
        for base in redirects:
            name = base.encode()
            if engine_add_redirect(&self.engine, name, len(name)) != 0:
                raise ValueError(f"redirect {base!r}: at most {REDIRECTS_MAX}, of visible ASCII")
        self.is_open = True
        self.chains = []
        self.configure()

    cdef int check(self) except -1:
        check_process()
        if not self.is_open:
            raise RelayError("the engine is closed")
        return 0

    def listen(self, str host, int port):
        """Binds the listeners' door and returns its (host, port); OSError when it cannot."""
        self.check()
        if not 0 <= port <= 65535:
            raise ValueError(f"port is {port}; the bound is 0 to 65535")
        cdef int fds[SHARDS_MAX]
        cdef uint16_t actual = <uint16_t>port
        cdef bytes name = host.encode()
        cdef int i
        if self.shards_count > 0:
            raise RelayError("the engine listens already")
        if self.is_running:
            raise RelayError("the engine has been started: listen() comes before start()")
        cdef int status = door_open(name, &actual, fds, self.shards_wanted)
        if status <= -4096:
            raise OSError(f"{host}: {gai_strerror(4096 + status).decode()}")
        if status < 0:
            raise OSError(-status, f"{os.strerror(-status)}: {host}:{port}")
        for i in range(self.shards_wanted):
            if not self.add_shard(fds[i]):
                for i in range(i + 1, self.shards_wanted):
                    close_fd(fds[i])
                raise MemoryError(f"no memory for {self.engine.listeners_max} listeners")
        return host, actual

    cdef bint add_shard(self, int listen_fd) noexcept:
        # Takes over the descriptor, also when it answers False: no memory.
        # One more for each shard: all may have seen the same last place.
        cdef uint32_t records = self.engine.places_max + self.engine.shards
        cdef shard_t* shard = <shard_t*>calloc(1, sizeof(shard_t))
        if shard == NULL:
            close_fd(listen_fd)
            return False
        if shard_open(shard, &self.engine, self.shards_count, records, listen_fd) != 0:
            shard_close(shard)
            free(shard)
            return False
        self.shards[self.shards_count] = shard
        self.shards_count += 1
        return True

    def start(self):
        """Starts the engine's threads."""
        self.check()
        if self.is_running:
            raise RelayError("the engine has been started already")
        self.is_running = True
        self.start_shards()
        if thread_start_as(&self.intake_thread, intake_main, &self.intake, b"relay-intake") != 0:
            store_u32(&self.intake.stop, 1)
            raise RelayError("the system refuses to start another thread")

    cdef int start_shards(self) except -1:
        cdef int i
        for i in range(self.threads_count, self.shards_count):
            if thread_start_as(&self.threads[i], shard_main, self.shards[i], b"relay-shard") != 0:
                raise RelayError("the system refuses to start another thread")
            self.threads_count += 1
        return 0

    def admit(self, int fd, data, *, uint64_t ticket=0):
        """Hands a connection in with its whole request head (≤ 8,192 bytes, which names the mount):
        a shard serves it as one that came by the door, and Python is not asked about it again.
        The descriptor is taken over, unless this raises. An engine without a door gets its shards
        here. `ticket`: a number of the caller's, told by take_visits. Does not block.
        OSError: not a connected stream socket. RelayError: too many wait."""
        self.check()
        cdef Buffer head = Buffer(data)
        cdef uint8_t address[16]
        cdef uint16_t port
        cdef shard_t* shard
        if head.size > HEAD_BYTES_MAX:
            raise RelayError(f"a request head of {head.size} bytes; the bound is {HEAD_BYTES_MAX}")
        cdef int status = door_adopt(fd, address, &port)
        if status != 0:
            raise OSError(status, os.strerror(status))
        if self.shards_count == 0:
            for _ in range(self.shards_wanted):
                if not self.add_shard(-1):
                    raise MemoryError(f"no memory for {self.engine.listeners_max} listeners")
        if self.is_running:
            self.start_shards()
        shard = self.shards[self.admit_next % self.shards_count]
        self.admit_next = (self.admit_next + 1) % self.shards_count
        if not handover_put(&shard.arrivals, fd, head.bytes, <uint32_t>head.size, address, port,
                            ticket):
            raise RelayError(
                f"{ARRIVALS_MAX} connections wait to be taken in already: try again in 100 ms"
            )

    def stop_accepting(self):
        """Closes the door: who listens hears its frame to the end, nobody new comes in."""
        self.check()
        cdef int i
        for i in range(self.shards_count):
            store_u32(&self.shards[i].draining, 1)
            eventfd_write(self.shards[i].wake_fd, 1)

    def close(self):
        """Ends the threads and the connections; blocks for one turn. The memory of a stream goes
        with its last handle."""
        cdef int i
        cdef pthread_t thread
        if not self.is_open:
            return
        check_process()
        self.is_open = False
        for i in range(self.shards_count):
            store_u32(&self.shards[i].stop, 1)
            eventfd_write(self.shards[i].wake_fd, 1)
        self.stop_intake()
        for i in range(self.shards_count):
            if i < self.threads_count:
                thread = self.threads[i]
                with nogil:
                    pthread_join(thread, NULL)
            shard_close(self.shards[i])
            free(self.shards[i])
        self.shards_count = self.threads_count = 0
        handover_drain(&self.engine.pages)
        handover_drain(&self.engine.sources)
        handover_drain(&self.engine.askers)

    cdef void stop_intake(self) noexcept:
        # Sources that are attached are not read any more.
        cdef pthread_t thread = self.intake_thread
        if not self.is_running or load_u32(&self.intake.stop):
            return
        store_u32(&self.intake.stop, 1)
        eventfd_write(self.intake.wake_fd, 1)
        with nogil:
            pthread_join(thread, NULL)

    def __dealloc__(self):
        # Handles keep their Engine alive, so none is left here.
        if self.engine.table != NULL and _pid != -1:
            self.close()
            intake_close(&self.intake)
            engine_close(&self.engine)

    # --- connections for Python ---

    @property
    def page_fd(self):
        """Readable while take_page has something (an eventfd)."""
        return self.engine.pages.event_fd

    @property
    def source_fd(self):
        """Readable while take_source has something (an eventfd)."""
        return self.engine.sources.event_fd

    @property
    def intake_fd(self):
        """Readable when an attached source has ended or had its first frame (an eventfd); reset
        by clear_intake."""
        return self.intake.event_fd

    def pulse_intake(self):
        """How often the intake's thread has turned; and wakes it, since it sleeps for as long as
        nothing comes: one that lives has turned again at the next look. Does not block."""
        cdef uint64_t turns = load_u64(&self.intake.turns_total)
        self.check()
        eventfd_write(self.intake.wake_fd, 1)
        return turns

    def clear_intake(self):
        """Resets intake_fd; then look at each attached source."""
        cdef uint64_t count
        self.check()
        eventfd_read(self.intake.event_fd, &count)

    def take_page(self):
        """The next connection of the slow door as (fd, bytes read, (address, port)), or None. The
        descriptor is the caller's."""
        self.check()
        return take_entry(&self.engine.pages)

    def take_source(self):
        """The next PUT or SOURCE, as take_page."""
        self.check()
        return take_entry(&self.engine.sources)

    @property
    def asker_fd(self):
        """Readable while take_asker has something (an eventfd)."""
        return self.engine.askers.event_fd

    def take_asker(self):
        """The next GET of a mount that was configured with `asks`, as take_page. Let it in with
        admit(fd, bytes), or answer it and close."""
        self.check()
        return take_entry(&self.engine.askers)

    def keep_visits(self, bint wanted):
        """Whether the shards write down who comes and who leaves, for take_visits."""
        self.check()
        store_u32(&self.engine.visits_wanted, wanted)

    def take_visits(self):
        """(records, how many found no room so far): who came and left since the last call, as
        (at_us, key of the stream, id, address, port, listened_us, sent_bytes, reason, ticket); the
        reason is None for a join. Ordered within a shard; at most 4,096 of each."""
        cdef list found = []
        cdef uint64_t lost = 0
        cdef visit_t one
        cdef int i
        self.check()
        for i in range(self.shards_count):
            while visits_take(&self.shards[i].accounts, &one):
                found.append(visit_tuple(&one))
            lost += load_u64(&self.shards[i].accounts.lost_total)
        return found, lost

    # --- what it holds ---

    @property
    def node_id(self):
        """128 random bits, new at each start, as 32 hexadecimal digits."""
        return node_hex(self.engine.node_id)

    @property
    def listeners_max(self):
        """How many listeners fit."""
        return self.engine.listeners_max

    def streams(self):
        """All streams of this node."""
        self.check()
        cdef stream_t** seen = <stream_t**>malloc((self.engine.streams_max + 1) * sizeof(void*))
        cdef uint32_t i
        if seen == NULL:
            raise MemoryError(f"no memory for a list of {self.engine.streams_max} streams")
        cdef uint32_t count = engine_all(&self.engine, seen)
        try:
            return [Stream.wrap(self, seen[i]) for i in range(count)]
        finally:
            free(seen)

    def remove_stream(self, Stream stream):
        """Takes a stream off the node; its listeners are ended."""
        self.check()
        engine_remove(&self.engine, stream.stream)

    def sweep(self):
        """Frees what was retired and no thread can still see; to be called now and then."""
        self.check()
        retire_sweep(&self.engine.retire)

    def snapshot(self):
        """Counters of the doors and shards, each shard's as of its last turn, added up."""
        self.check()
        retire_sweep(&self.engine.retire)
        cdef shard_counters_t counters
        cdef observed_t observed
        cdef int i
        memset(&observed, 0, sizeof(observed_t))
        shards = []
        for i in range(self.shards_count):
            shard_snapshot(self.shards[i], &counters)
            shards.append(shard_dict(&counters))
            shards[i]["busy_percent"] = load_u64(&self.shards[i].observed.busy.last_permille) / 10.0
            observe_add_up(&observed, &self.shards[i].observed)
        return {
            "listeners": load_u32(&self.engine.listeners),
            "listeners_max": self.engine.listeners_max,
            "streams": self.engine.streams,
            "upstream_up": load_u32(&self.engine.upstream_up) == 1,
            "directory_known": load_u32(&self.engine.directory_known) == 1,
            "pages_waiting": self.engine.pages.count, "sources_waiting": self.engine.sources.count,
            "retired": self.engine.retire.retired_count,
            "shards": shards, "measured": measured_dict(&observed), **add_up(shards),
        }

    # --- the flight recorder ---

    def note(self, int kind, int reason, *, uint64_t stream=0, int parent=RECORD_NOBODY,
             uint64_t a=0, uint64_t b=0, uint64_t c=0):
        """Writes a decision of Python's into the flight recorder (numbers of relay/recorder.py)."""
        self.check()
        note(&self.engine, stream, kind, reason, parent, a, b, c)

    def recorded(self, list cursors, *, uint64_t since_us=0, uint64_t newest=1 << 20):
        """What shards, intake and Python have recorded, as tuples (at_us, wall_us, kind, reason,
        parent, left, count, stream, a, b, c); ordered within a thread only. Blocks for the copy.

        Args:
            cursors: from which number on, two for each thread; [] for all. Moved on.
            since_us: nothing older (monotonic).
            newest: at most so many of each thread and lane.
        """
        cdef list found = []
        cdef int i
        self.check()
        recorder_flush(&self.engine.recorder, <uint64_t>-1)
        read_recorder(&self.engine.recorder, cursors, 0, since_us, newest, found)
        read_recorder(&self.intake.recorder, cursors, 2, since_us, newest, found)
        for i in range(self.shards_count):
            read_recorder(&self.shards[i].recorder, cursors, 4 + 2 * i, since_us, newest, found)
        return found

    @property
    def washed_total(self):
        """Records of the last ten minutes that newer ones have overwritten, but the backbone's."""
        cdef uint64_t total = self.engine.recorder.washed_total + self.intake.recorder.washed_total
        self.check()
        for i in range(self.shards_count):
            total += load_u64(&self.shards[i].recorder.washed_total)
        return total

    def heads(self):
        """Of each stream with a ring (key, mount, epoch, head_sequence, head_media_us, source_up,
        written here, burst_ms, listeners)."""
        return [head for head in [stream_head(stream) for stream in self.streams()] if head]

    def configure(self, mount=None, *, int burst_ms=3000, pace_ms=None, int pace_ms_min=100,
                  int pace_ms_max=1000, int lag_ms_max=15000, int stall_ms=15000, int linger_s=60,
                  int catchup_ms=10000, int ring_s=20, int ring_bytes_max=64 << 20,
                  int ahead_ms=5000, int listeners_max=0, tuple fallback=(),
                  int fallback_after_ms=3000, bint own_serial=False, bint anchor=False,
                  bint icy_ogg=False, tuple intro=(), bint asks=False, int ogg_page_ms=0):
        """Sets the defaults of all streams, or with `mount` of one; before the threads start.
        `pace_ms` None: chosen by the load, between pace_ms_min and pace_ms_max. `fallback`: the
        mounts whose streams stand in, in order. `own_serial`: Ogg chains that begin here get
        serials of their own; `ogg_page_ms`: and pages that last no longer. `intro`: whole frames
        that each new listener hears first, and their content type. `asks`: who wants to listen
        comes by take_asker() first."""
        self.check()
        if pace_ms is not None:
            pace_ms_min = pace_ms_max = pace_ms
        cdef stream_config_t config
        cdef bytes name
        config.burst_us = burst_ms * <uint64_t>1000
        config.pace_us_min = pace_ms_min * <uint64_t>1000
        config.pace_us_max = pace_ms_max * <uint64_t>1000
        config.lag_us_max = lag_ms_max * <uint64_t>1000
        config.stall_us = stall_ms * <uint64_t>1000
        config.linger_us = linger_s * <uint64_t>1000000
        config.catchup_us = catchup_ms * <uint64_t>1000
        config.ring_us = ring_s * <uint64_t>1000000
        config.ring_bytes_max = ring_bytes_max
        config.ahead_us = ahead_ms * <uint64_t>1000
        config.listeners_max, config.anchor = listeners_max, anchor
        config.fallback = config.intro = 0
        config.own_serial, config.ogg_page_us = own_serial, ogg_page_ms * 1000
        config.icy_ogg, config.asks = icy_ogg, asks
        self.engine.asks |= asks
        if mount is None:
            self.engine.defaults = config
            return
        if fallback:
            config.fallback = self.set_rule(mount, fallback, fallback_after_ms, adapts=False)
        if intro:
            config.intro = self.add_intro(mount, intro[0], intro[1])
        name = mount.encode()
        if engine_override(&self.engine, mount_key(name, len(name)), &config) != 0:
            raise RelayError(f"more than {OVERRIDES_MAX} streams have settings of their own")

    def set_fallback(self, str mount, tuple chain, int after_ms):
        """At any time: the mounts whose streams stand in for this one's from here on, in order;
        (): none does any more. RelayError: too many mounts."""
        self.check()
        self.set_rule(mount, chain, after_ms, adapts=True)

    cdef uint32_t set_rule(self, str mount, tuple chain, int after_ms, bint adapts) except 0:
        cdef chain_t told
        cdef bytes name
        if len(chain) >= FALLBACK_MEMBERS:
            raise ValueError(f"{mount}: a chain of {len(chain)} fallbacks; at most 4")
        names = (mount, *chain)
        for i, member in enumerate(names):
            name = member.encode()
            told.keys[i] = mount_key(name, len(name))
        told.count, told.after_us = <uint32_t>len(names), after_ms * <uint64_t>1000
        cdef uint32_t number = engine_set_rule(&self.engine, &told, adapts)
        if number == 0:
            raise RelayError(f"more than {OVERRIDES_MAX} mounts have, or are, a fallback")
        self.chains[number - 1:number] = [names]
        return number

    cdef uint32_t add_intro(self, str mount, bytes data, str content_type) except 0:
        cdef bytes line = f"Content-Type: {content_type}".encode()
        cdef uint64_t format_ = fallback_format(line, <uint32_t>len(line))
        cdef uint32_t number = engine_add_intro(&self.engine, data, len(data), format_)
        if number == 0:
            raise RelayError(f"{mount}: no room for an intro of {len(data)} bytes")
        return number

    def order(self, str kind, Stream stream, Stream to=None, *, ids=(), uint32_t rolls_max=0):
        """Asks all shards to `list`, `end` or `move` (to the stream `to`) the listeners of a stream
        (None: of all) or those with these ids; None while another order is carried out."""
        self.check()
        cdef int number = {"list": ORDER_LIST, "end": ORDER_END, "move": ORDER_MOVE}[kind]
        cdef int shards = self.shards_count if self.is_running else 0
        cdef order_t* order
        if number == ORDER_MOVE and to is None:
            raise ValueError("move: to which stream?")
        for i in range(shards):
            if load_pointer(<void**>&self.shards[i].order) != NULL:
                return None
        meant = array("Q", sorted(ids))
        cdef Buffer run = Buffer(meant)
        order = order_open(number, NULL if stream is None else stream.stream,
                           NULL if to is None else to.stream, <const uint64_t*>run.bytes,
                           <uint32_t>len(meant), rolls_max, <uint32_t>shards)
        if order == NULL:
            raise MemoryError(f"no memory for a list of {rolls_max} listeners")
        for i in range(shards):
            store_pointer(<void**>&self.shards[i].order, order)
            eventfd_write(self.shards[i].wake_fd, 1)
        return Order.wrap(self, order)

    def fallbacks(self):
        """For each mount with a fallback: which mount its listeners hear in its place now (None:
        none), and which of its chain do not fit; but not one whose chain is just changing."""
        self.check()
        told = [rule_dict(&self.engine.rules[i], names) for i, names in enumerate(self.chains)]
        return [rule for rule in told if rule is not None]

    def stand_in(self, str mount, info):
        """Opens a stream that is here for its fallback alone: no directory lists it. MountError
        as for add_stream."""
        cdef Stream stream = self.add_stream(mount, stands_in=True)
        stream.claim()
        try:
            stream.set_info(info)
        finally:
            stream.unclaim()
        return stream

    def add_stream(self, str mount, *, bint stands_in=False):
        """Opens a stream as configured; MountError when it is taken or the node is full."""
        self.check()
        cdef bytes name = mount.encode()
        cdef const stream_config_t* config = engine_config(&self.engine, mount_key(name, len(name)))
        cdef stream_t* stream = stream_open(
            name, <uint32_t>len(name), config, &self.engine.retire, &self.engine.hub
        )
        if stream == NULL:
            raise MountError(f"mount {mount!r} is {len(name)} bytes long; the bound is 1 to 255")
        stream.stands_in = stands_in
        add_u32(&stream.refs, 1)
        cdef int status = engine_add(&self.engine, stream)
        if status != 0:
            stream_drop(stream)
            stream_drop(stream)
            raise MountError(mount_problem(status, mount, self.engine.streams_max))
        return Stream.wrap(self, stream)

    def find(self, str mount):
        """The stream of this mount, or None."""
        self.check()
        cdef bytes name = mount.encode()
        cdef stream_t* stream = engine_find(&self.engine, name, len(name))
        return None if stream == NULL else Stream.wrap(self, stream)


cdef void note(
    engine_t* engine, uint64_t stream, int kind, int reason, int parent, uint64_t a, uint64_t b,
    uint64_t c,
) noexcept:
    # Who holds Python's lock is the one writer of the engine's own recorder.
    cdef uint64_t now = now_us()
    recorder_tick(&engine.recorder, now, wall_us())
    record(&engine.recorder, now, stream, kind, reason, parent, a, b, c)


cdef int read_recorder(
    const recorder_t* recorder, list cursors, int at, uint64_t since_us, uint64_t newest, list found
) except -1:
    while len(cursors) < at + 2:
        cursors.append(0)
    cursors[at] = read_lane(&recorder.rare, cursors[at], since_us, newest, found)
    cursors[at + 1] = read_lane(&recorder.common, cursors[at + 1], since_us, newest, found)
    return 0


cdef uint64_t read_lane(
    const lane_t* lane, uint64_t number, uint64_t since_us, uint64_t newest, list found
) except? 0:
    cdef uint64_t end = load_u64(&lane.next)
    cdef record_t one
    number = lane_first(lane, number, newest)
    while number < end:
        if lane_read(lane, number, &one) and one.at_us >= since_us:
            found.append((
                one.at_us, one.wall_us, one.kind, one.reason, one.parent, one.left, one.count,
                one.stream, one.a, one.b, one.c,
            ))
        number += 1
    return number


cdef tuple stream_head(Stream handle):
    cdef stream_t* stream = handle.stream
    cdef ring_t* ring = handle.take_ring()
    if ring == NULL:
        return None
    found = (
        stream.key, handle.mount, ring.epoch, load_u64(&ring.head_sequence),
        load_u64(&ring.head_media_us), load_u32(&stream.source_up) == 1,
        load_u32(&stream.writer) == WRITER_LOCAL, stream.config.burst_us // 1000,
        load_u32(&stream.listeners),
    )
    stream_ring_drop(stream, ring)
    return found


cdef int places_within_limit(int heads_max):
    # RLIMIT_NOFILE less what unfinished heads and the node itself may need.
    import resource
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, min(limit, 1 << 18) - heads_max - 512)


cdef tuple take_entry(handover_t* queue):
    cdef entry_t entry
    if not handover_take(queue, &entry):
        return None
    data = (<const char*>entry.bytes)[:entry.size_bytes]
    free(entry.bytes)
    return entry.fd, data, (address_text(entry.address), entry.port)


cdef bytes _MAPPED = bytes(10) + b"\xff\xff"    # RFC 4291 §2.5.5.2: IPv4


cdef tuple visit_tuple(const visit_t* one):
    return (
        one.at_us, one.key, one.id, address_text(one.address), one.port, one.listened_us,
        one.sent_bytes, _END_REASONS[one.reason] if one.reason != VISIT_JOINED else None,
        one.ticket,
    )


cdef str address_text(const uint8_t* address):
    cdef bytes text = (<const char*>address)[:16]
    if text.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, text[12:])
    return socket.inet_ntop(socket.AF_INET6, text)


_END_REASONS = (
    "none", "closed", "reset", "stalled", "torn", "stream", "garbage", "shutdown", "memory",
    "killed",
)
_REFUSALS = (
    "not_found", "full", "upstream", "malformed", "too_large", "method", "busy", "descriptors",
)
_PLACES = ("none", "exact", "old", "ahead", "epoch")

cdef dict shard_dict(shard_counters_t* counters):
    cdef dict found = counters[0]
    for kind, names in (("ended", _END_REASONS), ("refused", _REFUSALS), ("anchored", _PLACES)):
        told = found.pop(f"{kind}_total")
        found.update({f"{kind}_{n}_total": told[i] for i, n in enumerate(names) if n != "none"})
    return found


cdef dict add_up(list shards):
    total = {}
    for shard in shards:
        for name, value in shard.items():
            if name.endswith("_max") or name == "pace_ms":
                total[name] = max(total.get(name, 0), value)
            elif name not in ("listeners", "busy_percent"):
                total[name] = total.get(name, 0) + value
    return total


cdef tuple _DURATIONS = ("join", "lateness", "gap", "skip")     # by SEEN_…
cdef tuple _QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


cdef dict measured_dict(const observed_t* observed):
    found = {name: durations_dict(&observed.durations[i]) for i, name in enumerate(_DURATIONS)}
    found["busy"] = busy_dict(&observed.busy)
    return found


cdef dict durations_dict(const histogram_t* seen):
    # `below_total`: how many were shorter than 1,024 µs, 2,048 µs, … (bounds of buckets: exact).
    found = {"total": seen.total, "sum_us": seen.sum_us, "max_us": seen.max_us}
    found.update({f"{name}_us": histogram_quantile_us(seen, share) for name, share in _QUANTILES})
    found["below_total"] = [histogram_below(seen, <uint64_t>1024 << i) for i in range(16)]
    return found


cdef dict busy_dict(const busy_t* seen):
    # `below_total`: how many windows had a share up to a tenth, two tenths, …
    cdef uint64_t total = 0
    cdef int i
    below = []
    for i in range(BUSY_STEPS):
        total += seen.windows[i]
        below.append(total)
    found = {
        "total": total, "sum_percent": seen.sum_permille / 10.0,
        "max_percent": seen.max_permille / 10.0, "last_percent": seen.last_permille / 10.0,
    }
    for name, share in _QUANTILES:
        found[f"{name}_percent"] = busy_quantile_permille(seen, share) / 10.0
    found["below_total"] = below
    return found


_UNFIT = ("", "format", "serial", "sound")


cdef dict rule_dict(rule_t* rule, tuple names):
    # None until the first shard has taken over the chain that was set last.
    if load_u32(&rule.wishes) != load_u32(&rule.granted) or load_u32(&rule.version) & 1:
        return None
    cdef uint32_t at = load_u32(&rule.decided.at)
    return {
        "mount": names[0], "chain": names[1:],
        "fallback": names[at] if at and load_u32(&rule.decided.heard) else None,
        "unfit": {
            name: _UNFIT[load_u32(&rule.decided.members[i].unfit)]
            for i, name in enumerate(names) if load_u32(&rule.decided.members[i].unfit)
        },
    }


@cython.no_gc_clear     # its engine must outlive it
cdef class Order:
    """What was asked of the listeners of one stream; see Engine.order."""

    cdef Engine engine
    cdef order_t* order

    @staticmethod
    cdef Order wrap(Engine engine, order_t* order):
        # Takes over the caller's reference.
        cdef Order self = Order.__new__(Order)
        self.engine = engine
        self.order = order
        return self

    def __dealloc__(self):
        if self.order != NULL and _pid != -1:
            order_drop(self.order)

    def is_done(self):
        """Whether all shards have carried it out."""
        return load_u32(&self.order.shards_left) == 0

    def found(self):
        """Once it is done: how many listeners were meant, and how many of them had to stay."""
        return load_u32(&self.order.found), load_u32(&self.order.unfit)

    def rolls(self):
        """Once it is done: of each listener that there was room for (id, connected_us, lag_us,
        sent_bytes, (address, port), what it calls itself), in no order."""
        return [
            roll_tuple(&self.order.rolls[i])
            for i in range(min(self.order.found, self.order.rolls_max))
        ]


cdef tuple roll_tuple(const roll_t* roll):
    return (
        roll.id, roll.connected_us, roll.lag_us, roll.sent_bytes,
        (address_text(roll.address), roll.port),
        (<const char*>roll.agent.text)[:roll.agent.size_bytes],
    )


cdef str mount_problem(int status, str mount, int streams_max):
    if status == ENGINE_TAKEN:
        return f"mount {mount!r} is in use"
    if status == ENGINE_FULL:
        return f"no room for mount {mount!r}: this node holds {streams_max} streams (streams_max)"
    return f"mount {mount!r} has the same key as another mount: choose another name"


@cython.no_gc_clear     # its engine must outlive it
cdef class Stream:
    """A handle on one stream; it keeps the stream's memory, not the stream's place on the node."""

    cdef Engine engine
    cdef stream_t* stream

    @staticmethod
    cdef Stream wrap(Engine engine, stream_t* stream):
        # Takes over the caller's reference.
        cdef Stream self = Stream.__new__(Stream)
        self.engine = engine
        self.stream = stream
        return self

    def __dealloc__(self):
        if self.stream != NULL and _pid != -1:      # in a forked child a lock may be held for ever
            stream_drop(self.stream)

    def __repr__(self):
        return f"<Stream {self.mount}>"

    @property
    def mount(self):
        """The public path."""
        return self.stream.mount[:self.stream.mount_bytes].decode()

    @property
    def key(self):
        """What stands for the mount on the backbone and in the flight recorder."""
        return self.stream.key

    cdef ring_t* ring(self) except NULL:
        # The newest ring, referenced: give it back with stream_ring_drop.
        self.engine.check()
        cdef ring_t* ring = self.take_ring()
        if ring == NULL:
            raise SourceError(f"{self.mount} has had no source yet: nothing can be read or pushed")
        return ring

    cdef ring_t* take_ring(self) noexcept:
        # Another thread may replace the ring: it is found and referenced within one turn.
        turn_begin(&self.engine.engine.retire, RETIRE_PYTHON)
        cdef ring_t* ring = stream_ring_take(self.stream)
        turn_end(&self.engine.engine.retire, RETIRE_PYTHON)
        return ring

    cdef int check_source(self) except -1:
        self.engine.check()
        if self.stream.ring == NULL:
            raise SourceError(f"{self.mount}: begin() an epoch before the first frame")
        return 0

    # --- the source side ---

    def claim(self):
        """Makes the caller the one writer; MountError when somebody else writes."""
        self.engine.check()
        if not stream_claim(self.stream, WRITER_LOCAL):
            if load_u32(&self.stream.writer) == WRITER_LINK:    # the backbone looks if it may go
                store_u64(&self.stream.source_waits_us, now_us())
                hub_tell(self.stream.hub, self.stream)
            raise MountError(f"mount {self.mount!r} is in use: end its source, or take another")

    @property
    def epoch_wished(self):
        """The least epoch that a node below wishes for, which has heard the one before; 0: none."""
        return load_u64(&self.stream.epoch_wished)

    def unclaim(self):
        """Gives the writer's place back (end the epoch first)."""
        check_process()
        stream_unclaim(self.stream)

    def begin(self, *, epoch=None, origin=None, uint64_t sequence=0, uint64_t position=0,
              uint64_t media_us=0):
        """Begins an epoch and returns it (ms): the wall clock, or the highest seen + 1."""
        self.engine.check()
        cdef uint64_t wanted = wall_ms() if epoch is None else epoch
        cdef uint64_t highest = load_u64(&self.stream.epoch_highest)
        if epoch is None and wanted <= highest:
            wanted = highest + 1
        cdef int status = stream_begin_epoch(
            self.stream, wanted, self.engine.engine.node_id[0] if origin is None else origin,
            sequence, position, media_us,
        )
        if status == STREAM_FULL:
            raise SourceError(
                f"{self.mount}: too many epochs are still being heard; wait a second and come back"
            )
        if status == PLACE_BAD:
            raise SourceError(f"{self.mount}: sequence, position and media time end at 2**62")
        if status != 0:
            raise SourceError(
                f"{self.mount}: no memory for a ring, or no descriptor left (ulimit -n)"
            )
        note(&self.engine.engine, self.stream.key, RECORD_EPOCH_BEGUN, 0, RECORD_NOBODY, wanted,
             sequence, sequence)
        return wanted

    def end(self):
        """Ends the epoch: listeners stay for linger_s and hear the next one."""
        cdef ring_t* ring = self.stream.ring
        check_process()
        stream_end_epoch(self.stream, now_us())
        if ring != NULL:
            note(&self.engine.engine, self.stream.key, RECORD_EPOCH_ENDED, 0, RECORD_NOBODY,
                 ring.epoch, load_u64(&ring.head_sequence), 0)

    def push(self, data, uint32_t duration_us, uint32_t flags=1):
        """Puts one whole frame (1 to 65,536 bytes, duration in µs) at the head; never blocks."""
        cdef Buffer run = Buffer(data)
        self.check_source()
        stream_mark(self.stream, now_us())
        cdef int status = stream_push(self.stream, run.bytes, size_u32(run), duration_us, flags)
        if status < 0:
            raise SourceError(place_problem(status, self.mount, run.size))

    def place(self, uint64_t sequence, uint64_t position, uint64_t media_us, data,
              uint32_t duration_us, uint32_t flags=1):
        """Puts a frame where it belongs (1 placed, 0 already here, < 0 refused)."""
        cdef Buffer run = Buffer(data)
        self.check_source()
        stream_mark(self.stream, now_us())
        return stream_place(self.stream, sequence, position, media_us, run.bytes,
                            size_u32(run), duration_us, flags)

    def give_up(self):
        """Counts the hole at the head as lost and goes on after it; returns the frames lost."""
        self.check_source()
        return ring_give_up(self.stream.ring)

    def resize(self, uint64_t size_bytes, uint64_t frames_count):
        """Puts a ring of another size in place; False when frames wait ahead of a hole."""
        self.check_source()
        return stream_resize(self.stream, size_bytes, frames_count) == 1

    def title(self, str text):
        """Sets the title from here on (≤ 4,000 bytes of UTF-8, cut between characters)."""
        cdef bytes data = title_bytes(text)
        if data:
            self.push(data, 0, FRAME_TITLE)

    def set_info(self, data):
        """Publishes the header lines of the reply to listeners (≤ 4,096 bytes)."""
        cdef Buffer run = Buffer(data)
        self.engine.check()
        if not stream_set_info(self.stream, run.bytes, size_u32(run)):
            raise SourceError(f"{self.mount}: {run.size} bytes of header lines; the bound is 4096")

    # --- the reading side ---

    def info(self):
        """The header lines of the reply to listeners; b"" until they are known."""
        self.engine.check()
        cdef info_t* info
        cdef bytes data = b""
        turn_begin(&self.engine.engine.retire, RETIRE_PYTHON)
        try:    # bytes are all that Python makes here: they are not traced
            info = <info_t*>load_pointer(<void**>&self.stream.info)
            if info != NULL:
                data = (<const char*>info.bytes)[:info.size_bytes]
        finally:
            turn_end(&self.engine.engine.retire, RETIRE_PYTHON)
        return data

    def read(self, uint64_t sequence):
        """One frame as (bytes, position, media_us, duration_us, flags), verified, or None."""
        cdef ring_t* ring = self.ring()
        cdef frame_t frame
        cdef bytes data
        try:
            if sequence >= load_u64(&ring.head_sequence):
                return None
            if sequence < load_u64(&ring.base_sequence):    # may be under repair at this moment
                return None
            if not ring_read_entry(ring, sequence, &frame) or frame.flags & FRAME_TITLE:
                return None
            data = (<const char*>ring_at(ring, frame.position))[:frame.size_bytes]
            if ring_was_overtaken(ring, frame.position):
                return None
            return data, frame.position, frame.media_us, frame.duration_us, frame.flags & 0xFF
        finally:
            stream_ring_drop(self.stream, ring)

    def at_head(self):
        """(epoch, head_sequence, whether it is off the node), cheaply; epoch 0: nothing yet."""
        self.engine.check()
        cdef ring_t* ring = self.take_ring()
        cdef bint closed = load_u32(&self.stream.closed) == 1
        if ring == NULL:
            return 0, 0, closed
        found = ring.epoch, load_u64(&ring.head_sequence), closed
        stream_ring_drop(self.stream, ring)
        return found

    def run(self, uint64_t epoch, uint64_t sequence, uint32_t count, make):
        """Up to `count` frames from this sequence on that follow each other without a gap:
        (epoch, tail, next, frames, more), or None while there is no ring. Titles are passed over.
        `next` is where to go on: at the head, behind the last frame, or at one that does not
        follow it; `more`: there is something to be asked for at once. An epoch that is over is
        read to its end; then comes the new one's, without frames. None for frames: the old one is
        not here any more.

        Each frame is make(epoch, sequence, position, media_us, duration_us, flags, bytes), copied
        and verified after it was copied."""
        self.engine.check()
        cdef ring_t* ring = self.take_ring()
        cdef uint64_t follows = <uint64_t>-1
        cdef uint64_t head
        cdef frame_t frame
        cdef list frames = []
        cdef ring_t* newest = ring
        cdef ring_t* before
        if ring == NULL:
            return None
        if ring.epoch != epoch and epoch != 0:
            turn_begin(&self.engine.engine.retire, RETIRE_PYTHON)
            before = stream_before_take(self.stream)
            turn_end(&self.engine.engine.retire, RETIRE_PYTHON)
            if before == NULL or before.epoch != epoch:
                frames = None
            if frames is not None and sequence < load_u64(&before.head_sequence):
                stream_ring_drop(self.stream, ring)
                ring = before
            elif before != NULL:
                stream_ring_drop(self.stream, before)
        try:
            tail = ring_tail_sequence(ring)
            head = load_u64(&ring.head_sequence)
            while ring.epoch == epoch and sequence < head and <uint32_t>len(frames) < count:
                if sequence < load_u64(&ring.base_sequence) or (
                    not ring_read_entry(ring, sequence, &frame)
                ):
                    if sequence < ring_tail_sequence(ring):
                        break         # overtaken: the caller sees the tail next time
                elif not frame.flags & FRAME_TITLE:
                    if follows != <uint64_t>-1 and frame.position != follows:
                        break
                    data = (<const char*>ring_at(ring, frame.position))[:frame.size_bytes]
                    if ring_was_overtaken(ring, frame.position):
                        break
                    follows = frame.position + frame.size_bytes
                    frames.append(make(ring.epoch, sequence, frame.position, frame.media_us,
                                       frame.duration_us, frame.flags & 0xFF, data))
                sequence += 1
            more = ring != newest or ring.epoch != epoch or sequence < head
            return ring.epoch, tail, sequence, frames, more
        finally:
            stream_ring_drop(self.stream, ring)

    def reader(self):
        """Makes the stream wanted on this node for as long as the handle lives (see Reader)."""
        self.engine.check()
        return Reader.wrap(self)

    def view(self):
        """The readable run of the newest ring, without a copy (see RingView)."""
        return RingView.wrap(self, self.ring())

    def header(self):
        """The header pages that a reader at the head needs first (b"" when the format has none)."""
        cdef ring_t* ring = self.ring()
        cdef header_t* header
        cdef bytes data = b""
        turn_begin(&self.engine.engine.retire, RETIRE_PYTHON)
        try:    # bytes are all that Python makes here: they are not traced
            header = ring_header(ring, load_u64(&ring.head_sequence))
            if header != NULL:
                data = (<const char*>header.bytes)[:header.size_bytes]
        finally:
            turn_end(&self.engine.engine.retire, RETIRE_PYTHON)
        stream_ring_drop(self.stream, ring)
        return data

    def framed_here(self):
        """Where a framed body begins: (bytes of `h` and the header pages, first sequence), at the
        oldest `start` within ring_s."""
        cdef ring_t* ring = self.ring()
        cdef framed_out_t out
        turn_begin(&self.engine.engine.retire, RETIRE_PYTHON)
        framed_out_begin(self.stream, ring, &out)
        turn_end(&self.engine.engine.retire, RETIRE_PYTHON)
        stream_ring_drop(self.stream, ring)
        return framed_bytes(&out), out.sequence

    def framed_run(self, uint64_t sequence):
        """The run from this sequence on, for a framed body: (bytes, next sequence), with b"" while
        nothing newer is here; the last one says that the epoch has ended, and its next sequence is
        None. None: the ring has moved on, begin anew with framed_here()."""
        cdef ring_t* ring = self.ring()
        cdef framed_out_t out
        cdef int found
        turn_begin(&self.engine.engine.retire, RETIRE_PYTHON)
        found = framed_out_run(self.stream, ring, sequence, &out)
        turn_end(&self.engine.engine.retire, RETIRE_PYTHON)
        stream_ring_drop(self.stream, ring)
        if found == FRAMED_OVERTAKEN:
            return None
        if found == FRAMED_NOTHING:
            return b"", sequence
        return framed_bytes(&out), None if found == FRAMED_LAST else out.sequence

    def burst_sequence(self, int burst_ms):
        """Where a listener with this burst would begin."""
        cdef ring_t* ring = self.ring()
        cdef uint64_t sequence = ring_burst_sequence(ring, burst_ms * <uint64_t>1000)
        stream_ring_drop(self.stream, ring)
        return sequence

    cdef object fallback(self):
        # The mount that its listeners hear in its place; None: they hear it, or nothing.
        cdef uint32_t number = load_u32(&self.stream.config.fallback)
        if number == 0:
            return None
        told = rule_dict(&self.engine.engine.rules[number - 1], self.engine.chains[number - 1])
        return None if told is None else told["fallback"]

    def title_at(self, uint64_t position):
        """The title that holds at this byte of the newest epoch; None where there is none."""
        check_process()
        cdef ring_t* ring = self.take_ring()
        if ring == NULL:
            return None
        try:
            return ring_title_text(ring, position).partition("\0")[0] or None
        finally:
            stream_ring_drop(self.stream, ring)

    def snapshot(self):
        """State and counters of this stream, as a dict."""
        check_process()
        cdef stream_t* stream = self.stream
        cdef ring_t* ring = self.take_ring()
        state = {
            "mount": self.mount, "listeners": load_u32(&stream.listeners),
            "readers": load_u32(&stream.readers), "source_up": load_u32(&stream.source_up) == 1,
            "writer": ("none", "local", "link")[load_u32(&stream.writer)],
            "rings": load_u32(&stream.rings), "epoch": None, "title": None,
            "origin": stream.origin,
            "stands_in": load_u32(&stream.stands_in) == 1, "fallback": self.fallback(),
            "fallback_listeners": load_u32(&stream.away),
            "relays": load_u32(&stream.relays), "downstream": load_u32(&stream.downstream) != 0,
            "counters": stream.counters,
        }
        if ring != NULL:
            state.update(ring_snapshot(ring))
            stream_ring_drop(stream, ring)
        return state


cdef bytes framed_bytes(framed_out_t* out):
    # Outside of any turn: what Python allocates may run a finalizer, and so let another thread in.
    if out.bytes == NULL:
        raise MemoryError("no memory for a message of a framed body")
    try:
        return (<const char*>out.bytes)[:out.size]
    finally:
        free(out.bytes)


cdef bytes title_bytes(str text):
    # Cut between characters.
    return text.encode()[:TITLE_TEXT_BYTES_MAX].decode("utf-8", "ignore").encode()


cdef dict ring_snapshot(ring_t* ring):
    cdef uint64_t tail = ring_tail_sequence(ring)
    cdef frame_t frame
    cdef uint64_t held_us = 0
    if ring_read_entry(ring, tail, &frame) and tail < load_u64(&ring.head_sequence):
        held_us = load_u64(&ring.head_media_us) - <uint64_t>frame.media_us
    text, _, url = ring_title_text(ring, load_u64(&ring.head_position)).partition("\0")  # icy.pxd
    return {
        "epoch": ring.epoch, "tail_sequence": tail, "head_sequence": load_u64(&ring.head_sequence),
        "head_position": load_u64(&ring.head_position),
        "base_sequence": load_u64(&ring.base_sequence),
        "head_media_us": load_u64(&ring.head_media_us), "held_ms": held_us // 1000,
        "ring_bytes": ring.size_bytes, "ring_frames": ring.frames_count,
        "reserved_sequence": load_u64(&ring.reserved_sequence),
        "title": text or None, "title_url": url or None,
    }


cdef str ring_title_text(ring_t* ring, uint64_t position):
    # The title that holds at this byte, with its URL behind a NUL; "": there is none.
    cdef title_t* title
    cdef bytes text = b""
    turn_begin(ring.retire, RETIRE_PYTHON)
    try:
        title = ring_title(ring, position)
        if title != NULL:
            text = (<const char*>title.bytes)[:title.size_bytes]
    finally:
        turn_end(ring.retire, RETIRE_PYTHON)
    return text.decode("utf-8", "replace")


cdef str place_problem(int status, str mount, size_t size):
    if status == PLACE_FAR:
        return f"{mount}: a frame of {size} bytes does not fit the ring; raise ring_bytes_max"
    if status == PLACE_NO_MEMORY:
        return f"{mount}: no memory for a ring"
    return f"{mount}: a frame of {size} bytes; the bound is 1 to 65,536"


_SCAN_KINDS = {
    "mpeg": SCAN_MPEG, "adts": SCAN_ADTS, "ogg": SCAN_OGG, "webm": SCAN_WEBM, "matroska": SCAN_WEBM,
}


def find_frames(str kind, data):
    """How many frames of this kind these bytes hold, and why they cannot go on (None: they can).

    Reads them once; takes as long as that."""
    cdef Buffer run = Buffer(data)
    cdef scan_t scan
    cdef cut_t cut
    cdef size_t used = 0
    cdef int64_t step = 1
    scan_open(&scan, _SCAN_KINDS[kind])
    while step > 0:
        step = scan_next(&scan, run.bytes + used, run.size - used, &cut)
        used += <size_t>step if step > 0 else 0
    return scan.frames_total, scan_reason(step).decode() if step < 0 else None


_BODY_KINDS = {"raw": BODY_RAW, "sized": BODY_SIZED, "chunked": BODY_CHUNKED}


@cython.no_gc_clear     # its engine must outlive what it reads with
cdef class Source:
    """Cuts the bytes of one epoch's source into frames and pushes each whole one into the ring.

    The caller has claimed the stream and begun the epoch. Bytes come by feed(), or from a socket
    that was attached. One thread at a time, beside the engine's own; never blocks. With `epoch`
    and `origin` the body is framed (framed.pxd): it begins the epoch itself.
    """

    cdef Stream stream
    cdef cutter_t cutter
    cdef framed_t* framed          # owned; NULL: bytes to be cut
    cdef int64_t member            # in the engine's intake; below 0: not attached

    def __cinit__(self, Stream stream, str kind, *, uint64_t epoch=0, uint64_t origin=0):
        self.stream = stream
        self.member = -1
        if cutter_open(&self.cutter, stream.stream, _SCAN_KINDS[kind]) != 0:
            raise MemoryError("no memory for a source")
        if epoch:
            self.framed = framed_open(stream.stream, epoch, origin, &stream.engine.intake.recorder)
            if self.framed == NULL:
                raise MemoryError("no memory for a framed source")

    def __dealloc__(self):
        if _pid != -1:
            if self.stream is not None:
                self.detach()
            cutter_close(&self.cutter)
            framed_close(self.framed)

    def feed(self, data):
        """Takes any bytes and returns how far the source is ahead of real time, in µs of media
        (below 0: behind). SourceError when it does not send what its format promises."""
        cdef Buffer run = Buffer(data)
        cdef int64_t status
        cdef uint64_t now
        self.stream.engine.check()
        if self.member >= 0:
            raise SourceError(f"{self.stream.mount}: it is read from its socket; detach() it first")
        if self.stream.stream.ring == NULL and self.framed == NULL:
            raise SourceError(f"{self.stream.mount}: begin() an epoch before the first feed()")
        with nogil:
            now = now_us()
            if self.framed == NULL:
                status = cutter_feed(&self.cutter, run.bytes, run.size, now)
            else:
                status = intake_feed_framed(
                    &self.stream.engine.intake, self.framed, &self.cutter, run.bytes, run.size, now
                )
        if status < 0:
            raise SourceError(f"{self.stream.mount}: {intake_reason(status)}")
        return cutter_ahead_us(&self.cutter, now, CUTTER_AHEAD_ANY)

    def title(self, str text):
        """Sets the title from here on, as Stream.title; also while a socket is attached."""
        cdef Buffer run = Buffer(title_bytes(text))
        cdef intake_t* intake = &self.stream.engine.intake
        self.stream.check_source()
        if run.size == 0:
            return
        with nogil:
            pthread_mutex_lock(&intake.lock)
            stream_mark(self.stream.stream, now_us())
            stream_push(self.stream.stream, run.bytes, <uint32_t>run.size, 0, FRAME_TITLE)
            pthread_mutex_unlock(&intake.lock)

    def begin_anew(self, uint64_t least):
        """The source goes on in a new epoch, this one or a higher one (the wall clock's), with the
        header pages and the title in force. The epoch; 0: not now, in the midst of header pages or
        with too many epochs still being heard. Also while a socket is attached."""
        cdef intake_t* intake = &self.stream.engine.intake
        cdef uint64_t epoch = max(least, wall_ms(), load_u64(&self.stream.stream.epoch_highest) + 1)
        cdef int status = STREAM_FULL
        self.stream.check_source()
        with nogil:
            pthread_mutex_lock(&intake.lock)
            if self.framed == NULL and cutter_may_begin_anew(&self.cutter):
                status = cutter_begin_anew(
                    &self.cutter, epoch, self.stream.engine.engine.node_id[0], now_us()
                )
            pthread_mutex_unlock(&intake.lock)
        if status != 0:
            return 0
        note(&self.stream.engine.engine, self.stream.stream.key, RECORD_EPOCH_BEGUN, EPOCH_ANEW,
             RECORD_NOBODY, epoch, 0, 0)
        return epoch

    def attach(self, int fd, str body, uint64_t size_bytes, uint64_t ahead_us_max, data=b""):
        """Takes the first bytes of a body; from then on the engine reads the rest from this socket
        (a duplicate of it), in a thread of its own, until detach().

        Args:
            fd: a non-blocking socket; the caller's own reading must have ended.
            body: "raw", "sized" (size_bytes of them) or "chunked".
            ahead_us_max: how far the source may run ahead before it is held back, µs of media.
            data: what was read of the body so far.
        """
        cdef body_t framing
        cdef Buffer first = Buffer(data)
        cdef intake_t* intake = &self.stream.engine.intake
        cdef int64_t member = INTAKE_ATTACHED
        self.stream.engine.check()
        if self.stream.stream.ring == NULL and self.framed == NULL:
            raise SourceError(f"{self.stream.mount}: begin() an epoch before attach()")
        body_open(&framing, _BODY_KINDS[body], size_bytes)
        with nogil:
            pthread_mutex_lock(&intake.lock)
            if self.member < 0:
                member = intake_attach(
                    intake, fd, &self.cutter, self.framed, &framing, ahead_us_max, first.bytes,
                    first.size,
                )
                self.member = member
            pthread_mutex_unlock(&intake.lock)
        if member == INTAKE_ATTACHED:
            raise SourceError(f"{self.stream.mount}: a socket is attached already")
        if member == INTAKE_FULL:
            raise SourceError(f"{self.stream.mount}: no room for another source on this node")
        if member < 0:
            raise SourceError(f"{self.stream.mount}: its socket: {os.strerror(-member)}")

    def detach(self):
        """The engine reads no more; no byte of it is written to the stream after this returns."""
        cdef intake_t* intake = &self.stream.engine.intake
        with nogil:
            pthread_mutex_lock(&intake.lock)
            if self.member >= 0:
                intake_detach(intake, <uint32_t>self.member)
                self.member = -1
            pthread_mutex_unlock(&intake.lock)

    def intake(self):
        """What the engine's reading has come to: (state, reason, errno, media_us). State is
        "none", "reading", "held" or "ended"; reason of an end is "closed", "lost", "whole", or
        why the bytes could not be taken."""
        # Nothing of Python under the lock: a collection could come back here, to a lock that its
        # own thread holds.
        cdef intake_t* intake = &self.stream.engine.intake
        cdef int state = INTAKE_FREE
        cdef int64_t reason = 0
        cdef int error = 0
        cdef uint64_t media_us
        with nogil:
            pthread_mutex_lock(&intake.lock)
            if self.member >= 0:
                state = intake.members[self.member].state
                reason = intake.members[self.member].reason
                error = intake.members[self.member].error
            media_us = self.cutter.fed_media_us
            pthread_mutex_unlock(&intake.lock)
        return _INTAKE_STATES[state], intake_reason(reason), error, media_us

    @property
    def bitrate_bps(self):
        """What the format's headers and the frames so far say; 0: not known yet."""
        return scan_bit_rate_bps(&self.cutter.scan)

    @property
    def totals(self):
        """What was found and counted, by the names of scan_t."""
        cdef dict found = self.cutter.scan
        found.pop("ogg_tracks", None)
        return found


_INTAKE_STATES = ("none", "reading", "held", "ended")


cdef str intake_reason(int64_t reason):
    if reason == 0:
        return None
    if reason > 0:
        return ("", "closed", "lost", "whole")[reason]
    if reason < -200:
        return framed_reason(reason).decode()
    return (scan_reason(reason) if reason > -100 else body_reason(reason)).decode()


# no_gc_clear: __dealloc__ needs what the garbage collector would take from a cycle first.
@cython.no_gc_clear
cdef class Reader:
    """Counts one reader in Python: while it lives, an edge asks its upstream for the stream."""

    cdef Stream stream

    @staticmethod
    cdef Reader wrap(Stream stream):
        cdef Reader self = Reader.__new__(Reader)
        self.stream = stream
        add_u32(&stream.stream.readers, 1)
        hub_tell(stream.stream.hub, stream.stream)
        return self

    def __dealloc__(self):
        # The hub may be closed by now; the backbone looks at the count on its own turns.
        sub_u32(&self.stream.stream.readers, 1)


@cython.no_gc_clear
cdef class RingView:
    """A run of a ring's bytes without a copy, since its last lost run at most. While it or a
    buffer of it lives they stay as they are, and the writer goes on elsewhere.

    Supports the buffer protocol (`numpy.frombuffer(view, dtype="u1")`). Call `is_whole()` after
    reading: False means that the writer could go nowhere else, and the oldest were overwritten.
    """

    cdef Stream stream
    cdef ring_t* ring
    cdef readonly uint64_t first_position
    cdef Py_ssize_t size
    cdef int held                   # buffers given out, and not given back yet
    cdef bint is_shown              # the writer keeps away

    @staticmethod
    cdef RingView wrap(Stream stream, ring_t* ring):
        # Takes over the caller's reference on the ring, and keeps a pin instead.
        cdef RingView self = RingView.__new__(RingView)
        cdef uint64_t end
        add_u32(&ring.pins, 1)
        stream_ring_drop(stream.stream, ring)
        self.stream = stream
        self.ring = ring        # unpinned by __dealloc__, whatever happens here
        if add_u32(&stream.stream.views, 1) > VIEWS_MAX:
            raise RelayError(
                f"{stream.mount}: {VIEWS_MAX} views are open: end one, and keep no array of it"
            )
        self.is_shown = ring_show(ring, &self.first_position, &end)
        if not self.is_shown:
            raise OvertakenError(f"{stream.mount}: its writer is too quick to be looked at")
        self.size = <Py_ssize_t>(end - self.first_position)
        return self

    def __dealloc__(self):
        if self.ring == NULL or _pid == -1:
            return
        if self.is_shown:
            ring_hide(self.ring)
        sub_u32(&self.stream.stream.views, 1)
        ring_unpin(self.ring)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(
            buffer, self, <void*>ring_at(self.ring, self.first_position), self.size, 1, flags
        )
        self.held += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.held -= 1

    def __len__(self):
        return self.size

    @property
    def epoch(self):
        """Of the ring, in ms."""
        return self.ring.epoch

    @property
    def is_held(self):
        """Whether a memoryview or an array still shows it."""
        return self.held > 0

    def is_whole(self):
        """Whether no byte of this run has been overwritten."""
        return not ring_was_overtaken(self.ring, self.first_position)


# --- the backbone ---------------------------------------------------------------------------------

REFUSALS = ("", "short", "version", "kind", "size", "field", "text", "topic", "full")
PROTOCOL_VERSIONS = (VERSION_LEAST, VERSION_OWN)    # which this node speaks: from … to
UPSTREAM_STATES = ("connecting", "up", "lost", "version", "loop")
LINK_STATES = ("idle", "joining", "live", "ended")


@cython.no_gc_clear     # its engine must outlive its thread
cdef class Backbone:
    """The thread between nodes; relay/backbone.py makes its sockets and keeps them."""

    cdef Engine engine
    cdef backbone_t bone
    cdef bint is_open

    def __cinit__(self, Engine engine, *, str module, size_t context, size_t xpub, size_t router,
                  int router_port, str advertise, list upstreams, int silence_ms,
                  int repair_wait_ms, prefetch, int subscriptions_max, bint merge=False,
                  int xpub_port=0, int guest_topics_max=0):
        engine.check()
        cdef backbone_t* bone = &self.bone
        cdef const char* missing = zmq_api_load(&bone.api, module.encode())
        cdef bytes name
        if missing != NULL:
            raise RelayError(
                f"{module} gives no libzmq ({missing.decode()}); install pyzmq 26 or newer"
            )
        if engine.engine.hub.event_fd >= 0:
            raise RelayError("this engine has a backbone already: close it first")
        self.engine = engine
        bone.engine = &engine.engine
        bone.context = <void*>context
        bone.xpub = <void*>xpub
        bone.router = <void*>router
        bone.router_port = router_port
        bone.xpub_port = xpub_port
        bone.silence_us = silence_ms * <uint64_t>1000
        bone.repair_wait_us = repair_wait_ms * <uint64_t>1000
        copy_text(bone.advertise, advertise)
        bone.merge = merge
        names = sorted(address for _, _, address, _ in upstreams)
        for sub, host, address, curve in upstreams[:UPSTREAMS_MAX]:
            upstream_open(bone, sub, host, address, names.index(address), curve)
        for mount in prefetch[:PREFETCH_MAX]:
            name = mount.encode()
            bone.prefetch[bone.prefetch_count] = mount_key(name, len(name))
            bone.prefetch_count += 1
        pthread_mutex_init(&bone.turn_lock, NULL)
        if backbone_open(bone, subscriptions_max, guest_topics_max or subscriptions_max) != 0:
            raise MemoryError(f"no memory for a backbone of {subscriptions_max} subscriptions")
        self.begin()

    cdef int begin(self) except -1:
        cdef backbone_t* bone = &self.bone
        if engine_hub_open(bone.engine) != 0:
            raise RelayError("no file descriptor left for the backbone: raise the file limit")
        if bone.upstreams_count:
            bone.engine.has_upstream = 1
            bone.engine.directory_known = bone.engine.upstream_up = 0
            backbone_subscribe(bone)
        if thread_start_as(&bone.thread, backbone_main, bone, b"relay-backbone") != 0:
            engine_hub_close(bone.engine)
            raise RelayError("no thread left for the backbone: raise the process limit")
        self.is_open = True
        return 0

    def stop(self):
        """Says goodbye to the children and joins the thread. The sockets are the caller's again."""
        if not self.is_open or _pid == -1:
            return
        self.is_open = False
        store_u32(&self.bone.stop, 1)
        self.wake()
        with nogil:
            pthread_join(self.bone.thread, NULL)
        engine_hub_close(self.bone.engine)
        pthread_mutex_lock(&self.bone.turn_lock)    # another thread may be taking a snapshot
        backbone_free(&self.bone)
        pthread_mutex_unlock(&self.bone.turn_lock)

    cdef void wake(self):
        eventfd_write(self.bone.engine.hub.kept_fd, 1)

    def __dealloc__(self):
        self.stop()
        if not self.is_open:
            backbone_free(&self.bone)

    def goodbye(self):
        """Tells the children to switch now; the thread goes on until stop()."""
        self.engine.check()
        store_u32(&self.bone.goodbye, 1)
        self.wake()

    def fault(self, *, int drop_every=0, int version=0, bint cut=False, int defects=0):
        """For tests: drop each n-th run; speak this version; end without a word; DEFECT_* bits."""
        self.bone.fault_drop_every = drop_every
        self.bone.speaks.own = version or VERSION_OWN
        self.bone.speaks.least = max(1, self.bone.speaks.own - 1)
        self.bone.fault_defects = defects
        self.bone.goodbye_said = cut

    def expelled(self):
        """(children cut so far, the names of the last few); blocks for the end of a turn."""
        cdef char names[EXPELLED_MAX][65]
        cdef uint64_t total
        with nogil:
            total = view_expelled(&self.bone, <char*>names)
        return total, [names[i].decode("ascii", "replace") for i in range(EXPELLED_MAX)]

    def heard(self, int fd, uint64_t cookie):
        """(Whole messages of this descriptor's connections, modulo 2**32; any of this one's?)"""
        return guest_told(&self.bone.guests, fd), guest_spoke(&self.bone.guests, fd, cookie)

    def above(self, uint32_t upstream, *, bint stir=False):
        """Of an upstream: messages published and answers that came whole (modulo 2**32), descriptor
        and port of the connection on which it answers (-1: none); and the turns that the thread has
        begun, which takes one more where it is stirred."""
        cdef upstream_t* up = &self.bone.upstreams[upstream % UPSTREAMS_MAX]
        if stir:
            self.wake()
        return (load_u32(&up.published), load_u32(&up.answered), <int>load_u32(&up.dealer_fd) - 1,
                load_u32(&up.dealer_port), load_u64(&self.bone.counters.turns_total))

    @property
    def node_id(self):
        """This node's id, 32 hexadecimal digits."""
        return node_hex(self.engine.engine.node_id)

    def snapshot(self, *, bint rivals_only=False):
        """What the thread saw at the end of a turn; of streams all or those with two epochs."""
        cdef backbone_view_t view
        cdef bint taken
        check_process()
        if not self.is_open:
            raise RelayError("the backbone is closed")
        memset(&view, 0, sizeof(view))
        with nogil:
            taken = view_take(&self.bone, &view)
        try:
            if not taken:
                raise MemoryError("no memory for a snapshot of the backbone")
            return {"node_id": self.node_id, **backbone_dict(&view, rivals_only)}
        finally:
            view_free(&view)

    def recorded(self, list cursors, *, uint64_t since_us=0, uint64_t newest=1 << 20):
        """What the backbone's thread has recorded (see Engine.recorded)."""
        cdef list found = []
        check_process()
        if not self.is_open:
            raise RelayError("the backbone is closed")
        read_recorder(&self.bone.recorder, cursors, 0, since_us, newest, found)
        return found

    @property
    def washed_total(self):
        """Records of the last ten minutes that newer ones have overwritten."""
        return load_u64(&self.bone.recorder.washed_total)


cdef dict backbone_dict(backbone_view_t* view, bint rivals_only):
    told = [upstream_dict(&view.upstreams[i], view.now_us) for i in range(view.upstreams_count)]
    return {
        "upstream": None if not told
        else {**told[view.first], "directory_known": bool(view.directory_known)},
        "upstreams": told, "load": view.load, "subscriptions": view.subscriptions,
        "answers_held_bytes": view.held_bytes, "directory_version": view.directory_version,
        "links": [link_dict(&view.links[i], view.now_us) for i in range(view.links_count)
                  if not rivals_only or view.links[i].rival_epoch or view.links[i].shadowed],
        "counters": counters_dict(view.counters),
    }


cdef int upstream_open(
    backbone_t* bone, size_t sub, str host, str address, int rank, bytes curve,
) except -1:
    cdef upstream_t* up = &bone.upstreams[bone.upstreams_count]
    up.api = &bone.api
    up.context = bone.context
    up.sub = <void*>sub
    up.index = bone.upstreams_count
    up.peer = &bone.peers[up.index]
    up.peer.window_max = WINDOW_MAX
    up.peer.rank = rank
    copy_text(up.host, host)
    copy_text(up.address, address)
    if curve is not None:
        copy_curve(&up.curve, curve)
    bone.upstreams_count += 1
    return 0


cdef dict upstream_dict(upstream_t* up, uint64_t now):
    return {
        "address": up.address.decode(), "state": UPSTREAM_STATES[up.peer.state],
        "node_id": node_hex(up.node_id) if up.node_id[0] else None,
        "versions": [up.speaks.least, up.speaks.own] if up.speaks.own else None,
        "sign_age_ms": (now - up.peer.sign_us) // 1000 if up.peer.sign_us else None,
        "load": up.peer.load, "hops": up.path_count + 1,
        "path": [f"{up.path[i]:016x}" for i in range(up.path_count)],
        "repair_address": up.repair_address.decode() or None,
        "directory_known": bool(up.pages.whole), "feeds": up.feeds, "lost_total": up.lost_total,
    }


cdef str node_hex(uint64_t* node_id):
    return f"{node_id[1]:016x}{node_id[0]:016x}"


cdef int copy_text(char* to, str text) except -1:
    cdef bytes data = text.encode()
    if len(data) > WIRE_ADDRESS_BYTES_MAX:
        raise RelayError(f"an address of {len(data)} bytes; the bound is {WIRE_ADDRESS_BYTES_MAX}")
    memcpy(to, <const char*>data, len(data) + 1)
    return 0


cdef int copy_curve(curve_t* to, bytes keys) except -1:
    # Our public and secret key and the upstream's public one, in this order.
    if len(keys) != 96:
        raise ValueError(f"keys of {len(keys)} bytes; three of 32 are wanted")
    memcpy(to.public_key, <const char*>keys, 32)
    memcpy(to.secret_key, <const char*>keys + 32, 32)
    memcpy(to.server_key, <const char*>keys + 64, 32)
    to.is_set = 1
    return 0


cdef dict link_dict(link_view_t* view, uint64_t now):
    return {
        "mount": view.mount[:view.mount_bytes].decode("utf-8", "replace"),
        "state": LINK_STATES[view.state], "hops": view.hops, "subscribed": bool(view.subscribed),
        "from_upstream": bool(view.from_upstream), "downstream": bool(view.downstream),
        "epoch": view.epoch or None, "told_epoch": view.told_epoch or None,
        "told_up": bool(view.told_up), "tail_whole": bool(view.tail_whole),
        "feeding": None if view.feeding == PARENT_NONE else view.feeding, "switches": view.switches,
        "target_sequence": view.target_sequence, "sent_sequence": view.sent_sequence,
        "hole_ms": (now - view.hole_us) // 1000 if view.hole_us else 0,
        "rival_epoch": view.rival_epoch or None, "shadowed": view.shadowed,
    }


cdef dict counters_dict(backbone_counters_t counters):
    cdef dict every = counters
    refused = every.pop("refused_total")
    every["refused"] = dict(zip(REFUSALS[1:], refused[1:]))
    every["refused_total"] = sum(refused)
    return every


# --- for benchmarks -------------------------------------------------------------------------------

def pointer_of(Stream stream):
    """Where its C struct is, for relay/_probe_hop.pyx; valid while the handle lives."""
    return <size_t>stream.stream


def turn_lock_of(Backbone backbone):
    """Where the lock is that the backbone's thread holds during a turn."""
    return <size_t>&backbone.bone.turn_lock

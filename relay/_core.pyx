# _core.pyx: the data plane's face: what Python may call.
#
# Rules of this room
#   1. Converts: Python objects to pointers and lengths, status integers to exceptions. Decides nothing.
#   2. Every call checks that its object is open and that the process has not forked.
#   3. Nothing here blocks, except close(), which joins the engine's threads.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from relay._core.atomics cimport add_u32, load_u32, load_u64, ref_take, store_u32, sub_u32
from relay._core.backbone cimport backbone_main, backbone_subscribe
from relay._core.backbone_state cimport (
    PREFETCH_MAX, backbone_counters_t, backbone_free, backbone_open, backbone_t, link_t,
)
from relay._core.engine cimport (
    ENGINE_FULL, ENGINE_TAKEN, OVERRIDES_MAX, engine_add, engine_close, engine_config, engine_find,
    engine_hub_close, engine_hub_open, engine_open, engine_remove, engine_t, now_us, wall_ms,
)
from relay._core.hop cimport *
from relay._core.retire cimport pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
from relay._core.ring cimport (
    FRAME_PRESENT, FRAME_TITLE, PLACE_BAD, PLACE_FAR, PLACE_NO_MEMORY, audio_bytes, frame_t, ring_at,
    ring_burst_sequence, ring_entry_was_overtaken, ring_give_up, ring_header, ring_place, ring_push,
    ring_read_entry, ring_t, ring_tail_sequence, ring_title, ring_was_overtaken, header_t, title_t,
)
from relay._core.stream cimport (
    STREAM_FULL, WRITER_LOCAL, eventfd_write, mount_key, stream_begin_epoch, stream_claim, stream_config_t,
    stream_drop, stream_end_epoch, stream_open, stream_place, stream_push, stream_resize,
    stream_ring_drop, stream_ring_take, stream_set_info, stream_t, stream_unclaim,
)
from relay._core.wire cimport *
from relay._core.zmq_api cimport pthread_join, pthread_t, relay_msg_t, thread_start, zmq_api_load, zmq_api_t

import os
import time

from relay.errors import MountError, RelayError, SourceError

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


def _after_fork():
    global _pid
    _pid = -1


os.register_at_fork(after_in_child=_after_fork)


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


cdef class Engine:
    """The data plane of one node: its streams and its threads."""

    cdef engine_t engine
    cdef bint is_open

    def __cinit__(self, *, int streams_max=4096):
        if engine_open(&self.engine, streams_max) != 0:
            raise MemoryError(f"no memory for a table of {streams_max} streams")
        self.is_open = True
        self.configure()

    cdef int check(self) except -1:
        check_process()
        if not self.is_open:
            raise RelayError("the engine is closed")
        return 0

    def close(self):
        """Ends the threads. The memory of streams goes with their last handle."""
        self.is_open = False

    def __dealloc__(self):
        # Handles keep their Engine alive, so none is left here.
        if self.engine.table != NULL:
            engine_close(&self.engine)

    def configure(self, mount=None, *, int burst_ms=3000, int pace_ms=200, int lag_ms_max=15000,
                  int stall_ms=15000, int linger_s=60, int catchup_ms=10000, int ring_s=20,
                  int ring_bytes_max=64 << 20, int ahead_ms=5000, int listeners_max=0):
        """Sets the defaults of all streams, or with `mount` of one; before the threads start."""
        self.check()
        cdef stream_config_t config
        cdef bytes name
        config.burst_us = burst_ms * <uint64_t>1000
        config.pace_us = pace_ms * <uint64_t>1000
        config.lag_us_max = lag_ms_max * <uint64_t>1000
        config.stall_us = stall_ms * <uint64_t>1000
        config.linger_us = linger_s * <uint64_t>1000000
        config.catchup_us = catchup_ms * <uint64_t>1000
        config.ring_us = ring_s * <uint64_t>1000000
        config.ring_bytes_max = ring_bytes_max
        config.ahead_us = ahead_ms * <uint64_t>1000
        config.listeners_max = listeners_max
        if mount is None:
            self.engine.defaults = config
            return
        if self.engine.overrides_count == OVERRIDES_MAX:
            raise RelayError(f"more than {OVERRIDES_MAX} streams have settings of their own")
        name = mount.encode()
        self.engine.overrides[self.engine.overrides_count].key = mount_key(name, len(name))
        self.engine.overrides[self.engine.overrides_count].config = config
        self.engine.overrides_count += 1

    def add_stream(self, str mount):
        """Opens a stream as configured; MountError when it is taken or the node is full."""
        self.check()
        cdef bytes name = mount.encode()
        cdef const stream_config_t* config = engine_config(&self.engine, mount_key(name, len(name)))
        cdef stream_t* stream
        cdef int status
        stream = stream_open(
            name, <uint32_t>len(name), config, &self.engine.retire, &self.engine.hub
        )
        if stream == NULL:
            raise MountError(f"mount {mount!r} is {len(name)} bytes long; the bound is 1 to 255")
        add_u32(&stream.refs, 1)
        status = engine_add(&self.engine, stream)
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


cdef str mount_problem(int status, str mount, int streams_max):
    if status == ENGINE_TAKEN:
        return f"mount {mount!r} is in use"
    if status == ENGINE_FULL:
        return f"no room for mount {mount!r}: this node holds {streams_max} streams (streams_max)"
    return f"mount {mount!r} has the same key as another mount: choose another name"


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
        if self.stream != NULL:
            stream_drop(self.stream)

    def __repr__(self):
        return f"<Stream {self.mount}>"

    @property
    def mount(self):
        """The public path."""
        return self.stream.mount[:self.stream.mount_bytes].decode()

    cdef ring_t* ring(self) except NULL:
        # The newest ring, referenced: give it back with stream_ring_drop.
        self.engine.check()
        cdef ring_t* ring = stream_ring_take(self.stream)
        if ring == NULL:
            raise SourceError(f"{self.mount} has had no source yet: nothing can be read or pushed")
        return ring

    # --- the source side ---

    def claim(self):
        """Makes the caller the one writer; MountError when somebody else writes."""
        self.engine.check()
        if not stream_claim(self.stream, WRITER_LOCAL):
            raise MountError(f"mount {self.mount!r} is in use")

    def unclaim(self):
        """Gives the writer's place back (end the epoch first)."""
        stream_unclaim(self.stream)

    def begin(self, *, epoch=None, int origin=0, int sequence=0, int position=0, int media_us=0):
        """Begins an epoch and returns it (ms): the wall clock, or one more than the highest seen."""
        self.engine.check()
        cdef uint64_t wanted = wall_ms() if epoch is None else epoch
        cdef uint64_t highest = load_u64(&self.stream.epoch_highest)
        if epoch is None and wanted <= highest:
            wanted = highest + 1
        cdef int status = stream_begin_epoch(
            self.stream, wanted, origin, sequence, position, media_us
        )
        if status == STREAM_FULL:
            raise SourceError(
                f"{self.mount}: too many epochs are still being heard; wait a second and come back"
            )
        if status != 0:
            raise MemoryError(f"no memory for a ring of {self.mount}")
        return wanted

    def end(self):
        """Ends the epoch: listeners stay for linger_s and hear the next one."""
        stream_end_epoch(self.stream, now_us())

    def push(self, data, int duration_us, int flags=1):
        """Puts one whole frame (1 to 65,536 bytes, duration in µs) at the head; never blocks."""
        cdef Buffer run = Buffer(data)
        self.engine.check()
        if self.stream.ring == NULL:
            raise SourceError(f"{self.mount}: begin() an epoch before the first push()")
        cdef int status = stream_push(self.stream, run.bytes, <uint32_t>run.size, duration_us, flags)
        if status < 0:
            raise SourceError(place_problem(status, self.mount, run.size))

    def place(self, int sequence, int position, int media_us, data, int duration_us, int flags=1):
        """Puts a frame where it belongs (1 placed, 0 already here, < 0 refused)."""
        cdef Buffer run = Buffer(data)
        self.engine.check()
        if self.stream.ring == NULL:
            raise SourceError(f"{self.mount}: begin() an epoch before the first place()")
        return stream_place(self.stream, sequence, position, media_us, run.bytes,
                            <uint32_t>run.size, duration_us, flags)

    def give_up(self):
        """Counts the hole at the head as lost and goes on after it; returns the frames lost."""
        self.engine.check()
        return ring_give_up(self.stream.ring)

    def resize(self, int size_bytes, int frames_count):
        """Puts a ring of another size in place; False when frames wait ahead of a hole."""
        self.engine.check()
        return stream_resize(self.stream, size_bytes, frames_count) == 1

    def title(self, str text):
        """Sets the title from here on (≤ 4,080 bytes of UTF-8, cut between characters)."""
        cdef bytes data = text.encode()[:TITLE_TEXT_BYTES_MAX].decode("utf-8", "ignore").encode()
        if data:
            self.push(data, 0, FRAME_TITLE)

    def set_info(self, data):
        """Publishes the header lines of the reply to listeners (≤ 4,096 bytes)."""
        cdef Buffer run = Buffer(data)
        self.engine.check()
        if not stream_set_info(self.stream, run.bytes, <uint32_t>run.size):
            raise SourceError(f"{self.mount}: {run.size} bytes of header lines; the bound is 4096")

    # --- the reading side ---

    def read(self, int sequence):
        """One frame as (bytes, position, media_us, duration_us, flags), copied and verified, or None."""
        cdef ring_t* ring = self.ring()
        cdef frame_t frame
        cdef bytes data
        try:
            if sequence >= <int64_t>load_u64(&ring.head_sequence):
                return None
            if not ring_read_entry(ring, sequence, &frame) or frame.flags & FRAME_TITLE:
                return None
            data = (<const char*>ring_at(ring, frame.position))[:frame.size_bytes]
            if ring_was_overtaken(ring, frame.position):
                return None
            return data, frame.position, frame.media_us, frame.duration_us, frame.flags & 0xFF
        finally:
            stream_ring_drop(self.stream, ring)

    def view(self):
        """The readable run of the newest ring, without a copy (see RingView)."""
        return RingView.wrap(self, self.ring())

    def header(self):
        """The header pages that a reader at the head needs first (b"" when the format has none)."""
        cdef ring_t* ring = self.ring()
        cdef header_t* header = ring_header(ring, load_u64(&ring.head_sequence))
        cdef bytes data = b""
        if header != NULL:
            data = (<const char*>header.bytes)[:header.size_bytes]
        stream_ring_drop(self.stream, ring)
        return data

    def burst_sequence(self, int burst_ms):
        """Where a listener with this burst would begin."""
        cdef ring_t* ring = self.ring()
        cdef uint64_t sequence = ring_burst_sequence(ring, burst_ms * <uint64_t>1000)
        stream_ring_drop(self.stream, ring)
        return sequence

    def snapshot(self):
        """State and counters of this stream, as a dict."""
        cdef stream_t* stream = self.stream
        cdef ring_t* ring = stream_ring_take(stream)
        state = {
            "mount": self.mount, "listeners": load_u32(&stream.listeners),
            "readers": load_u32(&stream.readers), "source_up": load_u32(&stream.source_up) == 1,
            "writer": ("none", "local", "link")[load_u32(&stream.writer)],
            "rings": load_u32(&stream.rings), "epoch": None, "title": None,
            "counters": stream.counters,
        }
        if ring != NULL:
            state.update(ring_snapshot(ring))
            stream_ring_drop(stream, ring)
        return state


cdef int TITLE_TEXT_BYTES_MAX = 4000


cdef dict ring_snapshot(ring_t* ring):
    cdef uint64_t tail = ring_tail_sequence(ring)
    cdef title_t* title = ring_title(ring, load_u64(&ring.head_position))
    cdef frame_t frame
    cdef uint64_t held_us = 0
    if ring_read_entry(ring, tail, &frame) and tail < load_u64(&ring.head_sequence):
        held_us = load_u64(&ring.head_media_us) - <uint64_t>frame.media_us
    return {
        "epoch": ring.epoch, "tail_sequence": tail, "head_sequence": load_u64(&ring.head_sequence),
        "head_position": load_u64(&ring.head_position), "base_sequence": load_u64(&ring.base_sequence),
        "head_media_us": load_u64(&ring.head_media_us), "held_ms": held_us // 1000,
        "ring_bytes": ring.size_bytes, "ring_frames": ring.frames_count,
        "reserved_sequence": load_u64(&ring.reserved_sequence),
        "title": None if title == NULL else (
            (<const char*>title.bytes)[:title.size_bytes].decode("utf-8", "replace")
        ),
    }


cdef str place_problem(int status, str mount, size_t size):
    if status == PLACE_FAR:
        return f"{mount}: a frame of {size} bytes does not fit the ring; raise ring_bytes_max"
    if status == PLACE_NO_MEMORY:
        return f"{mount}: no memory for a ring"
    return f"{mount}: a frame of {size} bytes; the bound is 1 to 65,536"


cdef class RingView:
    """A run of a ring's bytes without a copy: pins the ring's memory, not its contents.

    Supports the buffer protocol (`numpy.frombuffer(view, dtype="u1")`). The writer goes on: call
    `is_whole()` after reading; False means that the oldest bytes were overwritten meanwhile.
    """

    cdef Stream stream
    cdef ring_t* ring
    cdef uint64_t position
    cdef Py_ssize_t size

    @staticmethod
    cdef RingView wrap(Stream stream, ring_t* ring):
        # Takes over the caller's reference on the ring.
        cdef RingView self = RingView.__new__(RingView)
        cdef frame_t frame
        cdef uint64_t head = load_u64(&ring.head_position)
        self.stream = stream
        self.ring = ring
        self.position = head
        if ring_read_entry(ring, ring_tail_sequence(ring), &frame):
            self.position = frame.position if frame.position < head else head
        self.size = <Py_ssize_t>(head - self.position)
        return self

    def __dealloc__(self):
        if self.ring != NULL:
            stream_ring_drop(self.stream.stream, self.ring)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void*>ring_at(self.ring, self.position), self.size, 1, flags)

    def __len__(self):
        return self.size

    @property
    def first_position(self):
        """Position of the first byte."""
        return self.position

    def is_whole(self):
        """Whether no byte of this run has been overwritten so far."""
        return not ring_was_overtaken(self.ring, self.position)


def measure_push(Stream stream, data, int pushes):
    """Times `pushes` pushes of one frame inside the core: (seconds, checksum of what the ring holds).

    The checksum is the sum of all readable bytes, read back after the clock has stopped.
    """
    cdef Buffer run = Buffer(data)
    cdef uint32_t size = <uint32_t>run.size
    cdef int i
    cdef int status = 0
    cdef uint64_t begin
    cdef uint64_t end
    with nogil:
        begin = now_us()
        for i in range(pushes):
            status |= stream_push(stream.stream, run.bytes, size, 20000, 1)
        end = now_us()
    if status < 0:
        raise SourceError(place_problem(status, stream.mount, size))
    return (end - begin) / 1e6, sum(memoryview(stream.view()))


# --- the backbone ----------------------------------------------------------------------------------

REFUSALS = ("", "short", "version", "kind", "size", "field", "text", "topic", "full")
UPSTREAM_STATES = ("connecting", "up", "lost", "version", "loop")
LINK_STATES = ("idle", "joining", "live", "ended")

cdef struct link_view_t:
    char mount[256]
    uint32_t mount_bytes
    uint32_t state
    uint32_t hops
    bint subscribed
    bint from_upstream
    uint32_t downstream
    uint64_t epoch
    uint64_t told_epoch
    uint64_t sent_sequence
    uint64_t hole_us
    bint tail_whole


cdef class Backbone:
    """The thread between nodes; relay/backbone.py makes its sockets and keeps them."""

    cdef Engine engine
    cdef backbone_t bone
    cdef bint is_open

    def __cinit__(self, Engine engine, *, str module, size_t context, size_t xpub, size_t router,
                  size_t sub, int router_port, str advertise, str upstream_host, int silence_ms,
                  int repair_wait_ms, prefetch, int subscriptions_max):
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
        bone.sub = <void*>sub
        bone.router_port = router_port
        bone.silence_us = silence_ms * <uint64_t>1000
        bone.repair_wait_us = repair_wait_ms * <uint64_t>1000
        copy_text(bone.advertise, advertise)
        copy_text(bone.upstream_host, upstream_host)
        for mount in prefetch[:PREFETCH_MAX]:
            name = mount.encode()
            bone.prefetch[bone.prefetch_count] = mount_key(name, len(name))
            bone.prefetch_count += 1
        if engine.engine.node_id[0] == 0:
            engine.engine.node_id[0] = int.from_bytes(os.urandom(8), "little") | 1
            engine.engine.node_id[1] = int.from_bytes(os.urandom(8), "little")
        pthread_mutex_init(&bone.turn_lock, NULL)
        if backbone_open(bone, subscriptions_max) != 0:
            raise MemoryError(f"no memory for a backbone of {subscriptions_max} subscriptions")
        self.begin()

    cdef int begin(self) except -1:
        cdef backbone_t* bone = &self.bone
        if engine_hub_open(bone.engine) != 0:
            raise RelayError("no file descriptor left for the backbone: raise the file limit")
        if bone.sub != NULL:
            bone.engine.has_upstream = 1
            bone.engine.directory_known = bone.engine.upstream_up = 0
            backbone_subscribe(bone)
        if thread_start(&bone.thread, backbone_main, bone) != 0:
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
        backbone_free(&self.bone)

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

    def fault(self, *, int drop_every=0, int version=0, bint cut=False):
        """For tests: drop each n-th run that comes; say this version in beacons; end without a word."""
        self.bone.fault_drop_every = drop_every
        self.bone.fault_version = version
        self.bone.goodbye_said = cut

    @property
    def node_id(self):
        """This node's id, 32 hexadecimal digits."""
        return node_hex(self.engine.engine.node_id)

    def snapshot(self):
        """What the thread saw at the end of a turn: upstream, streams, counters."""
        check_process()
        cdef backbone_t* bone = &self.bone
        cdef backbone_counters_t counters
        cdef peer_t peer
        cdef link_view_t* views = NULL
        cdef uint32_t count = 0
        cdef uint64_t now
        if not self.is_open:
            raise RelayError("the backbone is closed")
        with nogil:
            pthread_mutex_lock(&bone.turn_lock)
            counters = bone.counters
            peer = bone.peer
            views = <link_view_t*>malloc((bone.links + 1) * sizeof(link_view_t))
            if views != NULL:
                count = backbone_views(bone, views)
            now = now_us()
            pthread_mutex_unlock(&bone.turn_lock)
        try:
            return {
                "node_id": self.node_id,
                "upstream": None if bone.sub == NULL else {
                    "state": UPSTREAM_STATES[peer.state],
                    "node_id": node_hex(bone.peer_id) if bone.peer_id[0] else None,
                    "version": bone.peer_version if peer.state == PEER_VERSION else WIRE_PROTOCOL,
                    "sign_age_ms": (now - peer.sign_us) // 1000 if peer.sign_us else None,
                    "load": bone.peer_load, "hops": bone.peer_path_count + 1,
                    "repair_address": bone.peer_address.decode() or None,
                    "directory_known": bone.engine.directory_known == 1,
                },
                "load": bone.load, "subscriptions": bone.demand.count,
                "directory_version": bone.directory_version,
                "links": [view_dict(&views[i], now) for i in range(count)],
                "counters": counters_dict(counters),
            }
        finally:
            free(views)


cdef str node_hex(uint64_t* node_id):
    return f"{node_id[1]:016x}{node_id[0]:016x}"


cdef int copy_text(char* to, str text) except -1:
    cdef bytes data = text.encode()
    if len(data) > WIRE_ADDRESS_BYTES_MAX:
        raise RelayError(f"an address of {len(data)} bytes; the bound is {WIRE_ADDRESS_BYTES_MAX}")
    memcpy(to, <const char*>data, len(data) + 1)
    return 0


cdef uint32_t backbone_views(backbone_t* bone, link_view_t* views) noexcept nogil:
    cdef uint32_t count = 0
    cdef uint64_t slot
    cdef link_t* link
    cdef link_view_t* view
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link == NULL or link.stream == NULL:
            continue
        view = &views[count]
        memcpy(view.mount, link.mount, 256)
        view.mount_bytes = link.mount_bytes
        view.state = link.hop.state
        view.hops = link.told_hops + 1 if link.from_upstream else 0
        view.subscribed = link.hop.subscribed
        view.from_upstream = link.from_upstream
        view.downstream = load_u32(&link.stream.downstream)
        view.epoch = link.hop.epoch
        view.told_epoch = link.hop.told_epoch
        view.sent_sequence = link.out.sequence
        view.hole_us = link.hop.hole_us
        view.tail_whole = link.hop.back_over or not link.hop.subscribed
        count += 1
    return count


cdef dict view_dict(link_view_t* view, uint64_t now):
    return {
        "mount": view.mount[:view.mount_bytes].decode("utf-8", "replace"),
        "state": LINK_STATES[view.state], "hops": view.hops, "subscribed": bool(view.subscribed),
        "from_upstream": bool(view.from_upstream), "downstream": bool(view.downstream),
        "epoch": view.epoch or None, "told_epoch": view.told_epoch or None,
        "sent_sequence": view.sent_sequence, "tail_whole": bool(view.tail_whole),
        "hole_ms": (now - view.hole_us) // 1000 if view.hole_us else 0,
    }


cdef dict counters_dict(backbone_counters_t counters):
    cdef dict every = counters
    refused = every.pop("refused_total")
    every["refused"] = dict(zip(REFUSALS[1:], refused[1:]))
    every["refused_total"] = sum(refused)
    return every


# --- for tests: the wire and the decisions, without sockets or clock ---------------------------------

def wire_decode(data):
    """One message as (reason, fields): reason is "" or why it is refused."""
    cdef Buffer run = Buffer(data)
    cdef reader_t reader = reader_of(run.bytes, run.size)
    cdef wire_head_t head
    cdef int status = take_head(&reader, &head)
    if status == WIRE_OK and run.size > wire_size_max(head.kind):
        status = WIRE_SIZE
    if status != WIRE_OK:
        return REFUSALS[-status], {}
    fields = {"kind": chr(head.kind), "key": head.key, "request": head.request}
    status = wire_fields(&reader, head.kind, fields)
    return REFUSALS[-status], fields if status == WIRE_OK else {}


cdef int wire_fields(reader_t* reader, uint8_t kind, dict fields) except *:
    cdef wire_run_t run
    cdef wire_beacon_t beacon
    cdef wire_here_t here
    cdef wire_range_t span
    cdef wire_header_t header
    cdef wire_ask_t ask
    cdef int status = WIRE_KIND
    if kind == KIND_STREAM or kind == KIND_RUN:
        status = take_run(reader, &run)
        if status == WIRE_OK:
            fields.update(run_dict(&run))
    elif kind == KIND_BEACON:
        status = take_beacon(reader, &beacon)
        if status == WIRE_OK:
            fields.update(beacon_dict(&beacon))
    elif kind == KIND_HERE:
        status = take_here(reader, &here)
        if status == WIRE_OK:
            fields.update({
                "flags": here.flags, "epoch": here.epoch, "origin": here.origin,
                "first_sequence": here.first_sequence, "first_position": here.first_position,
                "first_media_us": here.first_media_us, "head_sequence": here.head_sequence,
                "title_sequence": here.title_sequence, "title_position": here.title_position,
                "title": (<const char*>here.title)[:here.title_bytes],
            })
    elif kind == KIND_REPAIR or kind == KIND_DONE or kind == KIND_GONE:
        status = take_range(reader, &span)
        if status == WIRE_OK:
            fields.update({"flags": span.flags, "epoch": span.epoch, "from": span.from_sequence,
                           "to": span.to_sequence})
    elif kind == KIND_HEADER:
        status = take_header(reader, &header)
        if status == WIRE_OK:
            fields.update({"epoch": header.epoch, "end_sequence": header.end_sequence,
                           "total_bytes": header.total_bytes, "offset": header.offset,
                           "bytes": (<const char*>header.bytes)[:header.size_bytes]})
    elif kind == KIND_JOIN:
        status = take_join(reader, &ask)
        if status == WIRE_OK:
            fields.update({"epoch": ask.epoch, "burst_us": ask.burst_us})
    elif kind == KIND_DIRECTORY:
        status = take_directory(reader, &ask)
        if status == WIRE_OK:
            fields.update({"node_id": [ask.node_id[0], ask.node_id[1]], "since": ask.since})
    elif kind == KIND_PAGE:
        status = page_dict(reader, fields)
    elif kind == KIND_LATER or kind == KIND_UNKNOWN:
        status = ended(reader)
    return status


cdef dict run_dict(wire_run_t* run):
    cdef uint32_t i
    cdef const uint8_t* at = run.payload
    cdef wire_record_t record
    frames = []
    for i in range(run.count):
        record = get_record(run.records + 8 * i)
        frames.append(((<const char*>at)[:record.size_bytes], record.flags, record.duration_us))
        at += record.size_bytes
    return {"flags": run.flags, "origin": run.origin, "epoch": run.epoch,
            "first_sequence": run.first_sequence, "first_position": run.first_position,
            "first_media_us": run.first_media_us, "frames": frames}


cdef dict beacon_dict(wire_beacon_t* beacon):
    cdef uint32_t i
    cdef wire_beacon_entry_t entry
    entries = []
    for i in range(beacon.count):
        entry = get_beacon_entry(beacon.entries + WIRE_BEACON_ENTRY_BYTES * i)
        entries.append((entry.key, entry.epoch, entry.sequence, entry.flags))
    return {"flags": beacon.flags, "node_id": [beacon.node_id[0], beacon.node_id[1]],
            "directory_version": beacon.directory_version, "turn": beacon.turn,
            "load": beacon.load, "router_port": beacon.router_port,
            "path": [beacon.path[i] for i in range(beacon.path_count)],
            "address": (<const char*>beacon.address)[:beacon.address_bytes], "entries": entries}


cdef int page_dict(reader_t* reader, dict fields) except *:
    cdef uint32_t i
    cdef wire_page_t page
    cdef wire_entry_t entry
    cdef int status = wire_check_page(reader, &page)
    if status != WIRE_OK:
        return status
    entries = []
    for i in range(page.count):
        take_entry(reader, &entry)
        entries.append({
            "version": entry.version, "flags": entry.flags, "hops": entry.hops,
            "epoch": entry.epoch, "origin": entry.origin,
            "mount": (<const char*>entry.mount)[:entry.mount_bytes],
            "info": (<const char*>entry.info)[:entry.info_bytes],
        })
    fields.update({"node_id": [page.node_id[0], page.node_id[1]], "version": page.version,
                   "flags": page.flags, "entries": entries})
    return WIRE_OK


def wire_encode(dict f):
    """The message of these fields (as wire_decode gives them), written by the core's encoders."""
    cdef bytes room = bytes(196608)
    cdef uint8_t* start = <uint8_t*><char*>room
    cdef writer_t writer = writer_of(start, 196608)
    cdef uint8_t kind = ord(f["kind"])
    put_head(&writer, kind, f["key"], f.get("request", 0))
    wire_put(&writer, kind, f)
    if writer.full:
        raise ValueError("no message is so long")
    return room[:writer.at - start]


cdef int wire_put(writer_t* writer, uint8_t kind, dict f) except -1:
    cdef wire_here_t here
    cdef wire_range_t span
    cdef wire_header_t header
    cdef wire_ask_t ask
    if kind == KIND_STREAM or kind == KIND_RUN:
        wire_put_run(writer, f)
    elif kind == KIND_BEACON:
        wire_put_beacon(writer, f)
    elif kind == KIND_PAGE:
        wire_put_page(writer, f)
    elif kind == KIND_HERE:
        here.flags, here.epoch, here.origin = f["flags"], f["epoch"], f["origin"]
        here.first_sequence, here.first_position = f["first_sequence"], f["first_position"]
        here.first_media_us, here.head_sequence = f["first_media_us"], f["head_sequence"]
        here.title_sequence, here.title_position = f["title_sequence"], f["title_position"]
        here.title, here.title_bytes = <const uint8_t*><char*>f["title"], len(f["title"])
        put_here(writer, &here)
    elif kind == KIND_REPAIR or kind == KIND_DONE or kind == KIND_GONE:
        span.flags, span.epoch = f["flags"], f["epoch"]
        span.from_sequence, span.to_sequence = f["from"], f["to"]
        put_range(writer, &span)
    elif kind == KIND_HEADER:
        header.epoch, header.end_sequence = f["epoch"], f["end_sequence"]
        header.total_bytes, header.offset = f["total_bytes"], f["offset"]
        header.bytes, header.size_bytes = <const uint8_t*><char*>f["bytes"], len(f["bytes"])
        put_header(writer, &header)
    elif kind == KIND_JOIN:
        ask.epoch, ask.burst_us = f["epoch"], f["burst_us"]
        put_join(writer, &ask)
    elif kind == KIND_DIRECTORY:
        ask.node_id = f["node_id"]
        ask.since = f["since"]
        put_directory(writer, &ask)
    return 0


cdef int wire_put_run(writer_t* writer, dict f) except -1:
    cdef wire_run_t run
    cdef uint8_t record[8]
    run.flags, run.origin, run.epoch = f["flags"], f["origin"], f["epoch"]
    run.first_sequence, run.first_position = f["first_sequence"], f["first_position"]
    run.first_media_us, run.count = f["first_media_us"], len(f["frames"])
    put_run(writer, &run)
    for data, flags, duration_us in f["frames"]:
        put_record(record, len(data), flags, duration_us)
        put(writer, record, 8)
    for data, _, _ in f["frames"]:
        put(writer, <char*>data, len(data))
    return 0


cdef int wire_put_beacon(writer_t* writer, dict f) except -1:
    cdef uint32_t i
    cdef wire_beacon_t beacon
    cdef wire_beacon_entry_t entry
    beacon.flags, beacon.directory_version = f["flags"], f["directory_version"]
    beacon.node_id = f["node_id"]
    beacon.turn, beacon.load, beacon.router_port = f["turn"], f["load"], f["router_port"]
    beacon.path_count = len(f["path"])
    for i, above in enumerate(f["path"]):
        beacon.path[i] = above
    beacon.address, beacon.address_bytes = <const uint8_t*><char*>f["address"], len(f["address"])
    beacon.count = len(f["entries"])
    put_beacon(writer, &beacon)
    for key, epoch, sequence, flags in f["entries"]:
        entry.key, entry.epoch, entry.sequence, entry.flags = key, epoch, sequence, flags
        put_beacon_entry(writer, &entry)
    return 0


cdef int wire_put_page(writer_t* writer, dict f) except -1:
    cdef wire_page_t page
    cdef wire_entry_t entry
    page.node_id = f["node_id"]
    page.version, page.flags, page.count = f["version"], f["flags"], len(f["entries"])
    put_page(writer, &page)
    for e in f["entries"]:
        entry.version, entry.flags, entry.hops = e["version"], e["flags"], e["hops"]
        entry.epoch, entry.origin = e["epoch"], e["origin"]
        entry.mount, entry.mount_bytes = <const uint8_t*><char*>e["mount"], len(e["mount"])
        entry.info, entry.info_bytes = <const uint8_t*><char*>e["info"], len(e["info"])
        put_entry(writer, &entry)
    return 0


HOP_ACTS = ("nothing", "subscribe", "unsubscribe", "join", "repair", "backfill", "give up", "end")


cdef class Hop:
    """One link's decisions, stepped by hand: times in µs, the world in `view`."""

    cdef hop_t hop
    cdef hop_view_t view

    def __cinit__(self):
        self.look(wanted=True, upstream_up=True, may_ask=True, written_here=False, head=0, hole_end=0,
                  base=0, frame_bytes=400, held_us=0, ring_us=20_000_000, linger_us=60_000_000,
                  repair_wait_us=1_500_000)

    def look(self, **seen):
        """Changes what the decisions see; hole_end follows head unless given."""
        names = {"head": "head_sequence", "hole_end": "hole_end_sequence", "base": "base_sequence"}
        cdef dict view = self.view
        if "head" in seen:
            seen.setdefault("hole_end", seen["head"])
        view.update({names.get(name, name): value for name, value in seen.items()})
        self.view = view

    def step(self, uint64_t now):
        """(what, from, to, lost); a request counts as asked."""
        cdef hop_act_t act
        hop_step(&self.hop, &self.view, now, &act)
        if act.what in (HOP_JOIN, HOP_REPAIR, HOP_BACKFILL):
            hop_asked(&self.hop, &act, 1, &self.view, now)
        return HOP_ACTS[act.what], act.from_sequence, act.to_sequence, act.lost

    def told(self, uint64_t epoch, uint64_t wall=0):
        return bool(hop_told(&self.hop, epoch, wall))

    def reaches(self, uint64_t epoch, uint64_t sequence, bint end=False):
        hop_reaches(&self.hop, epoch, sequence, end)

    def here(self, uint64_t epoch, uint64_t first, uint64_t now):
        return bool(hop_here(&self.hop, epoch, first, self.view.head_sequence, now))

    def later(self, uint64_t now):
        hop_later(&self.hop, now, self.view.repair_wait_us)

    def gone(self, uint64_t to, uint64_t now):
        hop_gone(&self.hop, to, self.view.head_sequence, now)

    def done(self, uint64_t to, uint64_t now, bint end=False):
        hop_done(&self.hop, &self.view, to, end, now)

    def restart(self, uint64_t now):
        hop_restart_timers(&self.hop, now)

    def still_coming(self, uint64_t sequence):
        return bool(hop_still_coming(
            &self.hop, sequence, self.view.base_sequence, self.view.head_sequence
        ))

    @property
    def state(self):
        return self.hop


cdef class Peer:
    """An upstream's signs of life, stepped by hand."""

    cdef peer_t peer

    def sign(self, uint64_t now):
        return bool(peer_sign(&self.peer, now))

    def is_silent(self, uint64_t now, uint64_t last_turn, uint64_t silence):
        return bool(peer_is_silent(&self.peer, now, last_turn, silence))


# --- for benchmarks --------------------------------------------------------------------------------

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int us)


def measure_hop(Backbone above, Stream here, Stream there, data, int duration_us, int frames, int laps):
    """(seconds, CPU seconds of this thread) of the hop for `laps` times `frames` frames, without the pushing.

    The sender's thread is held while they are pushed; the clock runs from its release until the other
    node's head has passed them all.
    """
    cdef Buffer run = Buffer(data)
    cdef stream_t* source = here.stream
    cdef stream_t* sink = there.stream
    cdef uint64_t begin = 0
    cdef uint64_t total = 0
    cdef int status = 0
    cdef int i
    own = time.thread_time()
    with nogil:
        for _ in range(laps):
            pthread_mutex_lock(&above.bone.turn_lock)
            for i in range(frames):
                status |= stream_push(source, run.bytes, <uint32_t>run.size, duration_us, 1)
            begin = now_us()
            pthread_mutex_unlock(&above.bone.turn_lock)
            while load_u64(&sink.ring.head_sequence) < source.ring.head_sequence:
                usleep(50)
                if now_us() - begin > 20000000:
                    status = -1
                    break
            total += now_us() - begin
    if status < 0:
        raise SourceError(f"{here.mount}: the hop did not carry {frames} frames within 20 s")
    return total / 1e6, time.thread_time() - own


cdef struct plain_t:
    zmq_api_t api
    void* socket
    const uint8_t* bytes
    size_t size
    uint64_t count
    uint64_t copies           # of the message, one after the other; taken in turn


cdef void* plain_send(void* argument) noexcept nogil:
    cdef plain_t* plain = <plain_t*>argument
    cdef relay_msg_t msg
    cdef uint64_t i
    for i in range(plain.count):
        plain.api.msg_init_size(&msg, plain.size)
        memcpy(plain.api.msg_data(&msg), plain.bytes + i % plain.copies * plain.size, plain.size)
        if plain.api.msg_send(&msg, plain.socket, 0) < 0:
            plain.api.msg_close(&msg)
    return NULL


def measure_zmq(str module, size_t sender, size_t receiver, data, uint64_t count, uint64_t copies):
    """A plain loop over the same libzmq: one thread sends, this one receives: (seconds, bytes).

    `data` holds `copies` messages, sent in turn: as cold in the caches as a ring of their size.
    """
    cdef Buffer run = Buffer(data)
    cdef plain_t plain
    cdef pthread_t thread
    cdef relay_msg_t msg
    cdef uint64_t begin
    cdef uint64_t i
    cdef uint64_t received = 0
    if zmq_api_load(&plain.api, module.encode()) != NULL:
        raise RelayError(f"{module} gives no libzmq")
    plain.socket, plain.bytes, plain.copies = <void*>sender, run.bytes, copies
    plain.size, plain.count = run.size // copies, count
    with nogil:
        plain.api.msg_init(&msg)
        begin = now_us()
        thread_start(&thread, plain_send, &plain)
        for i in range(count):
            if plain.api.msg_recv(&msg, <void*>receiver, 0) >= 0:
                received += plain.api.msg_size(&msg)
        begin = now_us() - begin
        pthread_join(thread, NULL)
        plain.api.msg_close(&msg)
    return begin / 1e6, received

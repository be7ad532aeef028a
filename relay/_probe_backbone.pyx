# _probe_backbone.pyx: faces for the tests on the backbone's pure rooms.
#
# Rules of this room
#   1. Test faces only: the package never imports it, nothing at run time depends on it.
#   2. It decides nothing: converts arguments, calls one room, converts the answer.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from relay._core.backbone_record cimport before_t, gone_reason, switch_reason
from relay._core.engine cimport now_us
from relay._core.hop cimport *
from relay._core.hop_step cimport *
from relay._core.hop_wish cimport hop_wish, hop_wish_reaches
from relay._core.versions cimport *
from relay._core.wire cimport *

from relay._core import REFUSALS
from relay.errors import RelayError


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


def why_switched(int feeding, int to, states, answers, *, int trying=8, uint64_t hear_us=0,
                 bint joining=False):
    """switch_reason, for upstreams in these states."""
    cdef peer_t peers[8]
    cdef before_t before
    memset(peers, 0, sizeof(peers))
    memset(&before, 0, sizeof(before))
    for i, (state, may) in enumerate(zip(states, answers, strict=True)):
        peers[i].state = state
        peers[i].answers = may
    before.feeding, before.trying = feeding, trying
    before.hear_us, before.joining = hear_us, joining
    return switch_reason(peers, &before, to)


def why_gone(int state, uint64_t sign_age_us, uint64_t silence_us):
    """gone_reason."""
    return gone_reason(state, sign_age_us, silence_us)


def wire_decode(data, int least=VERSION_LEAST, int own=VERSION_OWN):
    """One message as (reason, fields): reason is "" or why it is refused by who speaks these."""
    cdef Buffer run = Buffer(data)
    cdef versions_t ours = versions_t(least, own)
    cdef reader_t reader = reader_of(run.bytes, run.size)
    cdef wire_head_t head
    cdef int status = take_head(&reader, &head, &ours)
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


def versions_meet(int least, int own, int head, int flags):
    """What a beacon tells: [least, own], is it near, the version of requests; and our own flags."""
    cdef versions_t ours = versions_t(least, own)
    cdef versions_t theirs = versions_told(head, flags)
    near = bool(versions_are_near(&ours, &theirs))
    between = version_between(&ours, &theirs)
    return [theirs.least, theirs.own], near, between, version_flags(&ours)


def wire_encode(dict f, int version=VERSION_LEAST):
    """The message of these fields (as wire_decode gives them), written by the core's encoders."""
    cdef bytes room = bytes(196608)
    cdef uint8_t* start = <uint8_t*><char*>room
    cdef writer_t writer = writer_of(start, 196608)
    cdef uint8_t kind = ord(f["kind"])
    put_head(&writer, kind, f["key"], f.get("request", 0), version)
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


HOP_ACTS = (
    "nothing", "subscribe", "unsubscribe", "join", "repair", "backfill", "give up", "end", "leave",
)


cdef class Hop:
    """One link's decisions, stepped by hand: times in µs, the world in `view`."""

    cdef hop_t hop
    cdef hop_view_t view
    cdef peer_t peers[PARENTS_MAX]
    cdef readonly int parent
    cdef readonly int cause

    def __cinit__(self, int parents=1, bint merge=False, uint64_t salt=1):
        hop_open(&self.hop, parents)
        self.view.feed.peers = self.peers
        self.view.feed.merge = merge
        self.view.feed.salt = salt
        for i in range(parents):
            self.peers[i].window_max = 1
            self.peers[i].rank = i
            self.peer(i, up=True)
            self.lists(i)
        self.look(wanted=True, written_here=False, head=0, hole_end=0,
                  base=0, frame_bytes=400, frame_us=20_000, held_us=0, ring_us=20_000_000,
                  linger_us=60_000_000, repair_wait_us=1_500_000, silence_us=400_000)

    def look(self, **seen):
        """Changes what the decisions see; hole_end follows head unless given."""
        names = {"head": "head_sequence", "hole_end": "hole_end_sequence", "base": "base_sequence"}
        if "upstream_up" in seen:
            self.peer(0, up=seen.pop("upstream_up"))
        if "may_ask" in seen:
            self.peers[0].window = 0 if seen.pop("may_ask") else 1
        if "head" in seen:
            seen.setdefault("hole_end", seen["head"])
        for name, value in seen.items():
            self.look_at(names.get(name, name), value)

    cdef int look_at(self, str name, value) except -1:
        cdef hop_view_t* view = &self.view
        if name == "wanted":
            view.wanted = value
        elif name == "written_here":
            view.written_here = value
        elif name == "head_sequence":
            view.head_sequence = value
        elif name == "hole_end_sequence":
            view.hole_end_sequence = value
        elif name == "base_sequence":
            view.base_sequence = value
        elif name == "frame_bytes":
            view.frame_bytes = value
        elif name == "frame_us":
            view.frame_us = value
        elif name == "held_us":
            view.held_us = value
        elif name == "ring_us":
            view.ring_us = value
        elif name == "linger_us":
            view.linger_us = value
        elif name == "repair_wait_us":
            view.repair_wait_us = value
        elif name == "silence_us":
            view.silence_us = value
        else:
            raise KeyError(name)
        return 0

    def peer(self, int parent, *, bint up=True, int load=0, bint drains=False):
        """Changes an upstream."""
        self.peers[parent].drains = drains
        self.peers[parent].state = PEER_UP if up else PEER_LOST
        self.peers[parent].answers = True
        self.peers[parent].load = load

    def lists(self, int parent, *, bint lists=True, bint up=True, int hops=0, origin=7):
        """What an upstream's directory says of the stream."""
        cdef parent_t* told = &self.hop.feed.parents[parent]
        if not lists:
            parent_withdraws(&self.hop.feed, parent)
            hop_untold(&self.hop)
            return
        told.lists, told.up, told.hops, told.origin = True, up, hops, origin

    def step(self, uint64_t now):
        """(what, from, to, lost); a request counts as asked; of whom is in `parent`."""
        cdef hop_act_t act
        hop_step(&self.hop, &self.view, now, &act)
        if act.what in (HOP_JOIN, HOP_REPAIR, HOP_BACKFILL):
            hop_asked(&self.hop, &act, 1, &self.view, now)
        elif act.what == HOP_UNSUBSCRIBE:
            hop_unsubscribed(&self.hop)
        self.parent = act.parent
        self.cause = act.cause
        return HOP_ACTS[act.what], act.from_sequence, act.to_sequence, act.lost

    def wish(self, uint64_t now, uint64_t wished=0):
        """The epoch that is wished for now (0: none), and of whom; `wished`: by a child."""
        if wished:
            self.hop.wished_epoch = wished
        cdef uint64_t epoch = hop_wish(&self.hop, &self.view, now)
        return epoch, [
            i for i in range(self.hop.feed.parents_count)
            if epoch and hop_wish_reaches(&self.hop, &self.view, i, epoch)
        ]

    def told(self, uint64_t epoch, uint64_t wall=0, int parent=0):
        return bool(hop_told(&self.hop, parent, epoch, wall))

    def believes(self, uint64_t epoch, uint64_t now, int parent=0):
        return bool(hop_believes(&self.hop, parent, epoch, now))

    def fed(self, int parent, uint64_t end_sequence, uint64_t now):
        feed_fed(&self.hop.feed, parent, end_sequence, now)

    def reaches(self, uint64_t epoch, uint64_t sequence, bint end=False, int parent=0):
        return bool(hop_reaches(&self.hop, parent, epoch, sequence, end))

    def forget(self):
        hop_forget(&self.hop)

    def resume(self, uint64_t now):
        hop_resume(&self.hop, now)

    def here(self, uint64_t epoch, uint64_t first, uint64_t now):
        return bool(hop_here(&self.hop, epoch, first, self.view.head_sequence, now))

    def later(self, uint64_t now):
        hop_later(&self.hop, now)

    def gone(self, uint64_t to, uint64_t now):
        hop_gone(&self.hop, to, now)

    def done(self, uint64_t to, uint64_t now, bint end=False):
        hop_done(&self.hop, &self.view, to, end, now)

    def restart(self, uint64_t now):
        hop_restart_timers(&self.hop, now)

    def lost(self, int parent, uint64_t now):
        self.peer(parent, up=False)
        hop_parent_lost(&self.hop, parent, now)

    def back(self, int parent, uint64_t now, bint process=False):
        self.peer(parent, up=True)
        hop_parent_anew(&self.hop, parent, process, now)

    def announce(self, uint64_t epoch, int hops):
        feed_announced(&self.hop.feed, epoch, hops)

    def hops(self):
        return feed_hops(&self.hop.feed, self.hop.told_epoch, self.view.feed.merge)

    def still_coming(self, uint64_t sequence):
        return bool(hop_still_coming(
            &self.hop, sequence, self.view.base_sequence, self.view.head_sequence
        ))

    @property
    def feeding(self):
        return None if self.hop.feed.feeding == PARENT_NONE else self.hop.feed.feeding

    @property
    def subscribed(self):
        return [i for i in range(PARENTS_MAX) if self.hop.feed.parents[i].subscribed]

    @property
    def state(self):
        return {
            "state": self.hop.state, "epoch": self.hop.epoch, "told_epoch": self.hop.told_epoch,
            "timeouts": self.hop.timeouts, "asked": HOP_ACTS[self.hop.asked],
            "asked_of": self.hop.asked_of, "switches": self.hop.feed.switches,
            "back_over": bool(self.hop.back_over),
        }


cdef class Peer:
    """An upstream's signs of life, stepped by hand."""

    cdef peer_t peer

    def sign(self, uint64_t now):
        return bool(peer_sign(&self.peer, now))

    def is_silent(self, uint64_t now, uint64_t last_turn, uint64_t silence):
        return bool(peer_is_silent(&self.peer, now, last_turn, silence))

# backbone_state.pxd: what the backbone thread keeps: its upstreams, a link for each stream, the
# order of the directory, the keys its children want.
#
# Rules of this room
#   1. All of it is owned by the backbone thread; others look only under turn_lock (a snapshot).
#   2. Bounds: upstreams ≤ UPSTREAMS_MAX; links ≤ streams_max + TOMBS_MAX; demand ≤
#      subscriptions_max keys; nothing grows otherwise.
#   3. A link holds one reference on its stream; its cursor (out) one on a ring.
#   4. Every listed change gets the next directory version; links are ordered by it, oldest first.
#   5. Knows no sockets' use: only where they are kept.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from relay._core.atomics cimport add_u32, load_u32, load_u64, store_u32
from relay._core.engine cimport engine_t
from relay._core.fair cimport fair_close, fair_open, fair_t
from relay._core.guests cimport guests_close, guests_open, guests_t
from relay._core.hold cimport held_t, holds_t
from relay._core.hop cimport HOP_NOTHING, hop_forget, hop_open, hop_t
from relay._core.parents cimport DEPTH_MAX, PARENT_NONE, feed_hops, feed_listing, peer_t
from relay._core.pool cimport pool_drop, pool_open, pool_t, share_t
from relay._core.recorder cimport (
    BACKBONE_COMMON, BACKBONE_RARE, recorder_close, recorder_open, recorder_t,
)
from relay._core.retire cimport pthread_mutex_t
from relay._core.ring cimport ring_t
from relay._core.stream cimport (
    MOUNT_BYTES_MAX, WRITER_LOCAL, stream_drop, stream_ring_drop, stream_t,
)
from relay._core.tables cimport table_close, table_open
from relay._core.thread cimport pthread_t
from relay._core.upstream cimport UPSTREAMS_MAX, blob_forget, upstream_closed, upstream_t
from relay._core.versions cimport VERSION_LEAST, VERSION_OWN, versions_t
from relay._core.wire cimport WIRE_ADDRESS_BYTES_MAX, WIRE_REASONS
from relay._core.zmq_api cimport zmq_api_t

cdef enum:
    TOMBS_MAX = 1024              # removed streams that the directory still remembers
    PREFETCH_MAX = 4096
    EXPELLED_MAX = 16
    RECEIVES_MAX = 1024           # messages of one socket in a turn
    # What tests break on purpose (fault_defects), to see that their checks name it:
    DEFECT_NO_REPAIR = 1          # a hole is never asked for
    DEFECT_COPIES = 2             # a frame that came already is taken for news
    DEFECT_HOLES = 4              # the head passes a hole at once, and nothing is counted

cdef struct backbone_counters_t:  # owner: the backbone thread
    uint64_t received_messages_total
    uint64_t received_bytes_total
    uint64_t received_frames_total
    uint64_t sent_messages_total      # runs published, whatever the number of children
    uint64_t sent_bytes_total
    uint64_t sent_frames_total
    uint64_t beacons_sent_total
    uint64_t beacons_received_total
    uint64_t joins_asked_total
    uint64_t repairs_asked_total      # holes
    uint64_t backfills_asked_total
    uint64_t answers_later_total      # heard from the upstream
    uint64_t answers_gone_total
    uint64_t timeouts_total           # requests without an answer
    uint64_t redials_total            # connections made anew because nothing was heard on them
    uint64_t requests_total           # heard from children
    uint64_t told_here_total          # our answers to them
    uint64_t told_later_total
    uint64_t told_gone_total
    uint64_t told_unknown_total
    uint64_t unsent_total             # answers that found a child's queue full
    uint64_t wishes_asked_total       # of an upstream: an epoch above the one that it has
    uint64_t wishes_heard_total       # the same, of us
    uint64_t deferred_total           # requests of a child that has not read its answers yet
    uint64_t overtaken_total          # runs that the ring overwrote while they were packed
    uint64_t unwanted_messages_total  # well formed, but for no stream that we take
    uint64_t early_frames_total       # further ahead than the ring reaches: fetched in order later
    uint64_t mount_conflicts_total    # the upstream has a mount that a local source writes
    uint64_t pages_asked_total
    uint64_t upstreams_lost_total
    uint64_t switches_total           # an upstream is another node than before
    uint64_t moves_total              # a stream comes from another upstream than before
    uint64_t shadowed_total           # epochs that have lost against a higher one of the mount
    uint64_t lost_gone_frames_total   # given up: no upstream will ever have them
    uint64_t lost_wait_frames_total   # given up: they did not come in time
    uint64_t lost_outage_frames_total # given up: more than the ring bridges
    uint64_t loops_total
    uint64_t turns_total
    uint64_t expelled_total           # children cut for their subscriptions, each time
    uint64_t crowded_total            # connections cut: their child had too many
    uint64_t refused_total[WIRE_REASONS]

cdef struct out_t:                # what our children have been sent of one stream
    ring_t* ring                  # referenced; NULL: nothing yet
    uint64_t sequence             # the next frame to send
    uint64_t held_us              # since when it waits for the one after it; 0: it does not
    bint ended                    # the end of ring.epoch has been sent
    ring_t* previous              # the epoch before, kept for repairs; referenced
    uint64_t previous_until_us

cdef struct link_t:
    stream_t* stream              # referenced; NULL: removed, listed as such
    uint64_t key
    char mount[MOUNT_BYTES_MAX + 1]
    uint32_t mount_bytes
    # our own directory: what was last listed
    uint64_t version              # 0: not listed
    link_t* older
    link_t* newer
    uint64_t listed_epoch
    uint32_t listed_up
    uint32_t listed_info
    uint32_t listed_hops
    # the upstreams'
    bint from_upstream            # at least one lists it, or did before its process began anew
    uint64_t gone_us              # since when none lists it that could go on with it; 0: one does
    bint prefetch
    bint conflict
    hop_t hop
    uint64_t due_us               # when its decisions are next due
    uint32_t recorded_feeding     # the parent that the recorder knows to feed it, + 1; 0: none
    link_t* touched_next
    bint touched
    bint heard                    # touched by more than new frames: its decisions are due
    held_t held                   # its last frame waits for the next; kept until the wait is over
    out_t out

cdef struct keys_t:               # a set of keys: open addressing, 0 is free
    uint64_t* slots
    uint64_t size                 # a power of two
    uint32_t count
    uint32_t count_max

cdef struct backbone_t:
    engine_t* engine
    zmq_api_t api
    void* context
    void* xpub                    # NULL: nobody may attach to us
    void* router
    upstream_t upstreams[UPSTREAMS_MAX]
    peer_t peers[UPSTREAMS_MAX]   # what decisions see of them
    uint32_t upstreams_count
    bint merge                    # all upstreams feed, the first copy wins; else one feeds
    pthread_t thread
    pthread_mutex_t turn_lock     # held during a turn; a snapshot waits for its end
    uint32_t stop                 # set by close()
    uint32_t goodbye              # set by goodbye()
    # settings
    uint64_t silence_us
    uint64_t repair_wait_us
    uint32_t router_port
    char advertise[WIRE_ADDRESS_BYTES_MAX + 1]
    uint64_t prefetch[PREFETCH_MAX]
    uint32_t prefetch_count
    uint32_t fault_drop_every     # tests: drops each n-th run that comes; 0: none
    versions_t speaks             # of the protocol; tests say others
    uint32_t fault_defects        # tests: DEFECT_* bits, rules that are broken on purpose; 0: none
    # links and directory
    link_t** table                # open addressing by key
    uint64_t table_size
    uint32_t links
    uint32_t tombs
    link_t* oldest
    link_t* newest
    uint64_t directory_version
    uint64_t directory_floor      # changes before it are forgotten: who knows less gets all
    keys_t demand
    guests_t guests               # who is connected, and holds which topics at our XPUB
    uint64_t guests_us            # when to look next for those who have gone
    uint32_t xpub_port
    char expelled[EXPELLED_MAX][65]   # names of the last children that were cut, round and round
    link_t* touched
    holds_t holds                 # links whose last frame waits
    bint crowd                    # so many messages that lone frames wait (hold.pxd)
    pool_t* pool                  # buffers of full messages
    # whom the answer at hand is charged to, and what it is about; NULL: none is being given
    share_t* asker
    share_t* asker_run
    uint32_t asker_account        # of guests
    uint64_t answered_bytes       # in this turn
    fair_t fair                   # how much of the answers each child has had
    uint64_t rounds               # snapshots of directories that were begun
    uint32_t request              # the id of the last request, whatever the upstream
    # time
    uint64_t now_us
    uint64_t opened_us
    uint64_t whole_us             # since when one upstream has told its directory; 0: none has
    uint64_t last_turn_us
    uint64_t beacon_us            # when the next is due
    uint64_t outage_us            # when the upstream's absence is next judged
    uint64_t sweep_us
    bint beacon_now
    bint goodbye_said
    uint64_t draining_us          # since when children are told that we stop; 0: we do not
    bint again                    # a budget ended this turn: go on at once
    bint moved                    # this turn has sent or received something
    uint64_t beacon_slot          # where the next beacon's entries begin
    uint64_t busy_us
    uint64_t load_from_us
    uint64_t load_messages        # counted then
    uint32_t load                 # ‰
    backbone_counters_t counters
    recorder_t recorder

cdef inline void refuse(backbone_t* bone, int reason) noexcept nogil:
    bone.counters.refused_total[-reason] += 1

# --- a set of keys -------------------------------------------------------------------------------

cdef inline int keys_open(keys_t* keys, uint32_t count_max) noexcept nogil:
    keys.size = 16
    while keys.size < 2 * <uint64_t>count_max:
        keys.size <<= 1
    keys.count_max = count_max
    keys.slots = <uint64_t*>table_open(keys.size, sizeof(uint64_t))
    return -1 if keys.slots == NULL else 0

cdef inline uint64_t keys_slot(keys_t* keys, uint64_t key) noexcept nogil:
    cdef uint64_t slot = key & (keys.size - 1)
    while keys.slots[slot] != 0 and keys.slots[slot] != key:
        slot = (slot + 1) & (keys.size - 1)
    return slot

cdef inline bint keys_has(keys_t* keys, uint64_t key) noexcept nogil:
    return key != 0 and keys.slots[keys_slot(keys, key)] == key

cdef inline bint keys_add(keys_t* keys, uint64_t key) noexcept nogil:
    # False: full (or the key 0, which no mount has).
    cdef uint64_t slot = keys_slot(keys, key)
    if key == 0:
        return False
    if keys.slots[slot] == key:
        return True
    if keys.count >= keys.count_max:
        return False
    keys.slots[slot] = key
    keys.count += 1
    return True

cdef inline void keys_remove(keys_t* keys, uint64_t key) noexcept nogil:
    cdef uint64_t mask = keys.size - 1
    cdef uint64_t slot = keys_slot(keys, key)
    cdef uint64_t probe = (slot + 1) & mask
    if key == 0 or keys.slots[slot] != key:
        return
    keys.count -= 1
    keys.slots[slot] = 0
    while keys.slots[probe] != 0:       # close the gap that a search would stop at
        if ((probe - (keys.slots[probe] & mask)) & mask) >= ((probe - slot) & mask):
            keys.slots[slot] = keys.slots[probe]
            keys.slots[probe] = 0
            slot = probe
        probe = (probe + 1) & mask

cdef inline bint directory_is_whole(backbone_t* bone) noexcept nogil:
    # May children be told what there is? A relay that restarted presents no half directory.
    return bone.upstreams_count == 0 or load_u32(&bone.engine.directory_known)

# --- links ---------------------------------------------------------------------------------------

cdef inline uint64_t link_slot(backbone_t* bone, uint64_t key) noexcept nogil:
    cdef uint64_t slot = key & (bone.table_size - 1)
    while bone.table[slot] != NULL and bone.table[slot].key != key:
        slot = (slot + 1) & (bone.table_size - 1)
    return slot

cdef inline link_t* link_find(backbone_t* bone, uint64_t key) noexcept nogil:
    return bone.table[link_slot(bone, key)]

cdef inline void link_stir(backbone_t* bone, link_t* link) noexcept nogil:
    # It is looked at in this turn; its decisions wait for their time if nothing stands open.
    if not link.touched:
        link.touched = True
        link.touched_next = bone.touched
        bone.touched = link

cdef inline void link_touch(backbone_t* bone, link_t* link) noexcept nogil:
    # It is stepped in this turn.
    link.heard = True
    link_stir(bone, link)

cdef inline link_t* link_of(backbone_t* bone, stream_t* stream) noexcept nogil:
    # The link of this stream, made if there is none, with a reference of its own; NULL: no room.
    cdef uint64_t slot = link_slot(bone, stream.key)
    cdef link_t* link = bone.table[slot]
    cdef uint32_t i
    if link == NULL:
        if bone.links >= bone.engine.streams_max + TOMBS_MAX:
            return NULL
        link = <link_t*>calloc(1, sizeof(link_t))
        if link == NULL:
            return NULL
        link.key = stream.key
        hop_open(&link.hop, bone.upstreams_count)
        link.mount_bytes = stream.mount_bytes
        memcpy(link.mount, stream.mount, stream.mount_bytes)
        for i in range(bone.prefetch_count):
            link.prefetch |= bone.prefetch[i] == stream.key
        bone.table[slot] = link
        bone.links += 1
    if link.stream != stream:
        if link.stream != NULL:
            link_let_go(bone, link)
        elif link.version:
            bone.tombs -= 1
        add_u32(&stream.refs, 1)
        link.stream = stream
        link.listed_epoch = 0
        stream.link = link
        store_u32(&stream.downstream, keys_has(&bone.demand, stream.key))
        link_touch(bone, link)
    return link

cdef inline void link_close_out(link_t* link) noexcept nogil:
    if link.out.ring != NULL:
        stream_ring_drop(link.stream, link.out.ring)
    if link.out.previous != NULL:
        stream_ring_drop(link.stream, link.out.previous)
    memset(&link.out, 0, sizeof(out_t))

cdef inline void link_let_go(backbone_t* bone, link_t* link) noexcept nogil:
    # Its stream has left the table.
    if link.hop.asked != HOP_NOTHING:
        upstream_closed(&bone.upstreams[link.hop.asked_of])
    link_close_out(link)
    link.gone_us = 0
    store_u32(&link.stream.downstream, 0)
    link.stream.link = NULL
    stream_drop(link.stream)
    link.stream = NULL
    hop_forget(&link.hop)

cdef inline void link_unlist(backbone_t* bone, link_t* link) noexcept nogil:
    # Out of the directory's order.
    if link.version == 0:
        return
    if link.older != NULL:
        link.older.newer = link.newer
    else:
        bone.oldest = link.newer
    if link.newer != NULL:
        link.newer.older = link.older
    else:
        bone.newest = link.older
    link.older = link.newer = NULL
    link.version = 0

cdef inline void link_list(backbone_t* bone, link_t* link) noexcept nogil:
    # A change: it becomes the newest of the directory, and a beacon goes out at once.
    link_unlist(bone, link)
    bone.directory_version += 1
    link.version = bone.directory_version
    link.older = bone.newest
    if bone.newest != NULL:
        bone.newest.newer = link
    else:
        bone.oldest = link
    bone.newest = link
    bone.beacon_now = True

cdef inline void link_delete(backbone_t* bone, link_t* link) noexcept nogil:
    # Out of the table, closing the gap that a search would stop at.
    cdef uint64_t mask = bone.table_size - 1
    cdef uint64_t slot = link_slot(bone, link.key)
    cdef uint64_t probe = (slot + 1) & mask
    link_unlist(bone, link)
    bone.table[slot] = NULL
    bone.links -= 1
    while bone.table[probe] != NULL:
        if ((probe - (bone.table[probe].key & mask)) & mask) >= ((probe - slot) & mask):
            bone.table[slot] = bone.table[probe]
            bone.table[probe] = NULL
            slot = probe
        probe = (probe + 1) & mask
    free(link)

cdef inline void tombs_purge(backbone_t* bone) noexcept nogil:
    # Too many removed streams are remembered: forget them; who knows less than now gets all anew.
    cdef link_t* link = bone.oldest
    cdef link_t* newer
    while link != NULL:
        newer = link.newer
        if link.stream == NULL and not link.touched and link.held.who == NULL:
            link_delete(bone, link)
            bone.tombs -= 1
        link = newer
    bone.directory_floor = bone.directory_version

cdef inline void link_bury(backbone_t* bone, link_t* link) noexcept nogil:
    # The stream is gone from this node: children are told, then it is forgotten.
    link_let_go(bone, link)
    link.from_upstream = False
    if link.version == 0:
        if not link.touched and link.held.who == NULL:
            link_delete(bone, link)
        return
    link_list(bone, link)
    bone.tombs += 1

cdef inline bint is_ours(link_t* link) noexcept nogil:
    # Nobody above us may have more of it than we.
    return not link.from_upstream or load_u32(&link.stream.writer) == WRITER_LOCAL

cdef inline void link_note(backbone_t* bone, link_t* link) noexcept nogil:
    # Has anything changed that the directory says of this stream?
    cdef stream_t* stream = link.stream
    cdef uint64_t epoch = load_u64(&stream.epoch_highest)
    cdef uint32_t up = load_u32(&stream.source_up)
    cdef uint32_t info = load_u32(&stream.info_changes)
    cdef uint32_t hops = 0
    cdef uint32_t told
    if not is_ours(link):
        epoch = link.hop.told_epoch
        told = feed_listing(&link.hop.feed, epoch)
        up = told != PARENT_NONE and link.hop.feed.parents[told].up
        hops = feed_hops(&link.hop.feed, epoch, bone.merge)
        if hops > DEPTH_MAX:
            hops = link.listed_hops if link.listed_hops else DEPTH_MAX
    store_u32(&stream.coming, up and not is_ours(link))
    if epoch == 0 and info == 0:
        return
    if epoch != link.listed_epoch or up != link.listed_up or info != link.listed_info or (
        hops != link.listed_hops or link.version == 0
    ):
        link.listed_epoch = epoch
        link.listed_up = up
        link.listed_info = info
        link.listed_hops = hops
        link_list(bone, link)

# --- open and close ------------------------------------------------------------------------------

cdef inline int backbone_open(
    backbone_t* bone, uint32_t subscriptions_max, uint32_t guest_topics_max
) noexcept nogil:
    # The tables; -1: no memory.
    bone.table_size = 16
    bone.directory_version = bone.directory_floor = 1
    bone.speaks.least = VERSION_LEAST
    bone.speaks.own = VERSION_OWN
    while bone.table_size < 2 * (<uint64_t>bone.engine.streams_max + TOMBS_MAX):
        bone.table_size <<= 1
    bone.table = <link_t**>calloc(bone.table_size, sizeof(void*))
    bone.pool = pool_open()
    if bone.table == NULL or bone.pool == NULL:
        return -1
    if keys_open(&bone.demand, subscriptions_max) != 0:
        return -1
    if guests_open(&bone.guests, subscriptions_max, guest_topics_max) != 0:
        return -1
    if fair_open(&bone.fair) != 0:
        return -1
    return recorder_open(&bone.recorder, BACKBONE_RARE, BACKBONE_COMMON)

cdef inline void backbone_free(backbone_t* bone) noexcept nogil:
    # The thread has ended.
    cdef uint64_t slot
    cdef link_t* link
    if bone.table == NULL:
        return
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link != NULL:
            if link.stream != NULL:
                link_let_go(bone, link)
            free(link)
    for slot in range(bone.upstreams_count):
        blob_forget(&bone.upstreams[slot].blob)
    free(bone.table)
    table_close(bone.demand.slots)
    guests_close(&bone.guests)
    fair_close(&bone.fair)
    recorder_close(&bone.recorder)
    if bone.pool != NULL:
        pool_drop(bone.pool)
        bone.pool = NULL
    bone.table = NULL
    bone.table_size = bone.links = 0    # a snapshot that comes too late finds nothing

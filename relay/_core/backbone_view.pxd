# backbone_view.pxd: what a snapshot tells of the backbone: copied in one go at the end of a turn.
#
# Rules of this room
#   1. Called by any thread; takes turn_lock, so that it sees whole turns only, and holds it for
#      the copy alone.
#   2. Copies, computes nothing that the thread needs; the caller frees what it got (view_free).

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from relay._core.atomics cimport load_u32
from relay._core.backbone_parent cimport upstream_first
from relay._core.backbone_state cimport backbone_counters_t, backbone_t, link_t
from relay._core.engine cimport now_us
from relay._core.parents cimport PEER_UP, parent_t, peer_t
from relay._core.retire cimport pthread_mutex_lock, pthread_mutex_unlock
from relay._core.stream cimport MOUNT_BYTES_MAX
from relay._core.upstream cimport UPSTREAMS_MAX, upstream_t
from relay._core.zmq_api cimport curve_t

cdef struct link_view_t:
    char mount[MOUNT_BYTES_MAX + 1]
    uint32_t mount_bytes
    uint32_t state            # HOP_…
    uint32_t hops             # 0: not from upstream
    uint32_t feeding          # which upstream; PARENT_NONE
    uint64_t switches
    bint subscribed
    bint from_upstream
    bint downstream
    bint told_up              # by one that is there
    bint tail_whole
    uint64_t epoch
    uint64_t told_epoch
    uint64_t sent_sequence
    uint64_t target_sequence
    uint64_t hole_us
    uint64_t rival_epoch      # the highest of a source elsewhere that is not this one; 0: none
    uint32_t shadowed         # a bit for each upstream whose source has lost

cdef struct backbone_view_t:
    uint64_t now_us
    backbone_counters_t counters
    peer_t peers[UPSTREAMS_MAX]
    upstream_t* upstreams     # copies; owned
    uint32_t upstreams_count
    uint32_t first            # the one that feeds most
    link_view_t* links        # owned
    uint32_t links_count
    uint32_t held_bytes       # of answers that libzmq still holds
    uint32_t subscriptions
    uint32_t load             # ‰
    uint64_t directory_version
    bint directory_known

cdef inline void view_free(backbone_view_t* view) noexcept nogil:
    free(view.upstreams)
    free(view.links)

cdef inline bint view_told_up(const backbone_t* bone, const link_t* link) noexcept nogil:
    # Does an upstream that is there list the source as there? What one said that is lost since
    # keeps nobody from the mount.
    cdef const parent_t* parent
    cdef uint32_t i
    for i in range(link.hop.feed.parents_count):
        parent = &link.hop.feed.parents[i]
        if parent.lists and parent.up and parent.epoch == link.hop.told_epoch and (
            bone.peers[i].state == PEER_UP
        ):
            return True
    return False

cdef inline void view_link(
    const backbone_t* bone, link_t* link, link_view_t* view,
) noexcept nogil:
    memcpy(view.mount, link.mount, sizeof(view.mount))
    view.mount_bytes = link.mount_bytes
    view.state = link.hop.state
    view.hops = link.listed_hops if link.from_upstream else 0
    view.feeding = link.hop.feed.feeding
    view.switches = link.hop.feed.switches
    view.subscribed = link.hop.subscribed
    view.from_upstream = link.from_upstream
    view.downstream = load_u32(&link.stream.downstream) != 0
    view.epoch = link.hop.epoch
    view.told_epoch = link.hop.told_epoch
    view.sent_sequence = link.out.sequence
    view.target_sequence = link.hop.target_sequence
    view.told_up = view_told_up(bone, link)
    view.hole_us = link.hop.hole_us
    view.tail_whole = link.hop.back_over or not link.hop.subscribed
    view_rivals(link, view)

cdef inline void view_rivals(link_t* link, link_view_t* view) noexcept nogil:
    cdef const parent_t* parent
    cdef uint32_t i
    view.rival_epoch = 0
    view.shadowed = 0
    for i in range(link.hop.feed.parents_count):
        parent = &link.hop.feed.parents[i]
        if not parent.lists or not parent.up:
            continue
        if parent.origin != link.stream.origin and parent.listed_epoch > view.rival_epoch:
            view.rival_epoch = parent.listed_epoch
        if parent.shadowed:
            view.shadowed |= <uint32_t>1 << i

cdef inline void view_copy(backbone_t* bone, backbone_view_t* view) noexcept nogil:
    cdef uint64_t slot
    cdef uint32_t i
    cdef link_t* link
    view.links = <link_view_t*>malloc((bone.links + 1) * sizeof(link_view_t))
    if view.upstreams == NULL or view.links == NULL:
        return
    view.now_us = now_us()
    view.counters = bone.counters
    view.upstreams_count = bone.upstreams_count
    memcpy(view.upstreams, bone.upstreams, sizeof(bone.upstreams))
    memcpy(view.peers, bone.peers, sizeof(bone.peers))
    for i in range(view.upstreams_count):
        view.upstreams[i].peer = &view.peers[i]
        memset(&view.upstreams[i].curve, 0, sizeof(curve_t))    # no secret leaves the thread
    view.first = upstream_first(bone).index
    if bone.pool != NULL:       # gone once stop() has freed what the thread held
        view.held_bytes = load_u32(&bone.pool.held_bytes)
    view.subscriptions = bone.demand.count
    view.load = bone.load
    view.directory_version = bone.directory_version
    view.directory_known = load_u32(&bone.engine.directory_known) != 0
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link != NULL and link.stream != NULL:
            view_link(bone, link, &view.links[view.links_count])
            view.links_count += 1

cdef inline bint view_take(backbone_t* bone, backbone_view_t* view) noexcept nogil:
    # Into a view that is all zeros. False: no memory.
    view.upstreams = <upstream_t*>malloc(UPSTREAMS_MAX * sizeof(upstream_t))
    pthread_mutex_lock(&bone.turn_lock)
    view_copy(bone, view)
    pthread_mutex_unlock(&bone.turn_lock)
    return view.upstreams != NULL and view.links != NULL

cdef inline uint64_t view_expelled(backbone_t* bone, char* names) noexcept nogil:
    # How many children were cut, and the last EXPELLED_MAX of their names: of whole turns, so that
    # who was cut is known before he can be back.
    cdef uint64_t total
    pthread_mutex_lock(&bone.turn_lock)
    total = bone.counters.expelled_total
    memcpy(names, bone.expelled, sizeof(bone.expelled))
    pthread_mutex_unlock(&bone.turn_lock)
    return total

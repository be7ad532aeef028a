# backbone_directory.pxd: which streams there are: told to children, learnt from an upstream.
#
# Rules of this room
#   1. Runs in the backbone thread, inside a turn.
#   2. Page by page, oldest change first; who counts another node's versions gets all, and what was
#      not listed is gone.
#   3. A page is checked whole before its first entry is acted upon.
#   4. A mount that a local source writes is left alone.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from relay._core.atomics cimport load_pointer, load_u32, store_u32
from relay._core.backbone_answer cimport answer_bytes, answer_range
from relay._core.backbone_ask cimport child_unsubscribe, heard_epoch
from relay._core.backbone_record cimport link_record
from relay._core.backbone_state cimport (
    backbone_t, directory_is_whole, is_ours, link_bury, link_find, link_note, link_of, link_t,
    link_touch, refuse,
)
from relay._core.engine cimport engine_add, engine_config, engine_find, engine_remove
from relay._core.fallback_look cimport rule_is_heard
from relay._core.hop cimport (
    HOP_ANSWER_US, HOP_NOTHING, HOP_RETRY_US, HOP_RETRY_US_MAX, hop_forget, hop_untold,
)
from relay._core.parents cimport (
    PARENT_NONE, PEER_CONNECTING, PEER_UP, feed_announced, feed_listing, feed_t, parent_t,
    parent_withdraws,
)
from relay._core.recorder cimport RECORD_SHADOWED
from relay._core.stream cimport (
    WRITER_LINK, WRITER_LOCAL, info_t, mount_key, stream_drop, stream_end_epoch, stream_open,
    stream_set_info, stream_t, stream_unclaim,
)
from relay._core.upstream cimport pages_anew, upstream_ask, upstream_closed, upstream_t
from relay._core.versions cimport version_between
from relay._core.wire cimport *
from relay._core.zmq_api cimport *

cdef enum:
    PAGES_STUCK_MAX = 4       # in one run of pages; then each is refused and asked for seldom
    CONNECTING_US = 1000000   # an upstream that is not heard by then is not waited for …
    WHOLE_US = 2000000        # … nor one that has not told all, so long after another has
    MISSED_US = 2000000       # a stream that had no room is asked for again after so long

# --- for our children -----------------------------------------------------------------------------

cdef inline void put_link(writer_t* writer, link_t* link) noexcept nogil:
    cdef wire_entry_t entry
    cdef info_t* info
    cdef uint32_t told
    memset(&entry, 0, sizeof(entry))
    entry.version = link.version
    entry.mount = <const uint8_t*>link.mount
    entry.mount_bytes = link.mount_bytes
    if link.stream == NULL:
        entry.flags = ENTRY_REMOVED
    else:
        info = <info_t*>load_pointer(<void**>&link.stream.info)
        entry.flags = ENTRY_UP if link.listed_up else 0
        entry.hops = <uint8_t>link.listed_hops
        entry.epoch = link.listed_epoch
        entry.origin = link.stream.origin
        if not is_ours(link):
            told = feed_listing(&link.hop.feed, link.listed_epoch)
            entry.origin = 0 if told == PARENT_NONE else link.hop.feed.parents[told].origin
        feed_announced(&link.hop.feed, link.listed_epoch, entry.hops)
        if info != NULL:
            entry.info = info.bytes
            entry.info_bytes = info.size_bytes
    put_entry(writer, &entry)

cdef inline void parent_directory(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    # One page of changes since a version, oldest first. Who counts another node's versions, or
    # knows less than we remember, gets all.
    cdef wire_ask_t ask
    cdef wire_page_t page
    cdef relay_msg_t msg
    cdef writer_t writer
    cdef writer_t start
    cdef link_t* link = bone.oldest
    cdef int status = take_directory(reader, &ask)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    if not directory_is_whole(bone) or bone.api.msg_init_size(&msg, WIRE_PAGE_BYTES_MAX) != 0:
        answer_range(bone, to, head, KIND_LATER, 0, 0, 0, 0)
        return
    page.node_id[0] = bone.engine.node_id[0]
    page.node_id[1] = bone.engine.node_id[1]
    page.version = bone.directory_version
    page.flags = PAGE_LAST
    if (
        ask.node_id[0] != bone.engine.node_id[0] or ask.node_id[1] != bone.engine.node_id[1]
        or ask.since < bone.directory_floor or ask.since > bone.directory_version
    ):
        ask.since = 0
        page.flags |= PAGE_FIRST
    page.count = 0
    writer = writer_of(<uint8_t*>bone.api.msg_data(&msg), WIRE_PAGE_BYTES_MAX)
    put_head(&writer, KIND_PAGE, 0, head.request, head.version)
    start = writer
    put_page(&writer, &page)
    while link != NULL:
        if link.version > ask.since and (ask.since != 0 or link.stream != NULL):
            if writer.end - writer.at < 4700 or page.count == 65535:
                page.flags &= ~PAGE_LAST
                break
            put_link(&writer, link)
            page.count += 1
        link = link.newer
    put_page(&start, &page)
    answer_bytes(bone, to, <uint8_t*>bone.api.msg_data(&msg), &writer)
    bone.api.msg_close(&msg)

# --- from an upstream -----------------------------------------------------------------------------

cdef inline void ask_page(backbone_t* bone, upstream_t* up) noexcept nogil:
    # The next page of the upstream's directory, when it has changed and none is on its way.
    cdef uint8_t bytes[64]
    cdef writer_t writer = writer_of(bytes, 64)
    cdef wire_ask_t page
    if up.pages.request != 0 and bone.now_us >= up.pages.answer_by_us:
        up.pages.request = 0
        bone.counters.timeouts_total += 1
    if up.pages.request != 0 or up.pages.wanted == 0 or bone.now_us < up.pages.retry_us:
        return
    if up.pages.since == up.pages.wanted and up.pages.round == 0:
        if up.pages.missed_us == 0 or bone.now_us < up.pages.missed_us:
            return
        up.pages.missed_us = up.pages.since = 0     # there may be room now: all of it once more
    bone.request += 1
    memcpy(page.node_id, up.node_id, 16)
    page.since = up.pages.since
    put_head(&writer, KIND_DIRECTORY, 0, bone.request, version_between(&bone.speaks, &up.speaks))
    put_directory(&writer, &page)
    if upstream_ask(up, bytes, &writer, bone.now_us):
        up.pages.request = bone.request
        up.pages.answer_by_us = bone.now_us + HOP_ANSWER_US
        bone.counters.pages_asked_total += 1
    else:
        up.pages.retry_us = bone.now_us + HOP_RETRY_US

cdef inline void child_unlink(backbone_t* bone, link_t* link) noexcept nogil:
    # No upstream has this stream any more: it leaves the node, unless a local source writes it.
    cdef stream_t* stream = link.stream
    link.from_upstream = False
    link.gone_us = 0
    if stream == NULL:
        return
    if link.hop.asked != HOP_NOTHING:
        upstream_closed(&bone.upstreams[link.hop.asked_of])
    child_unsubscribe(bone, link)
    hop_forget(&link.hop)
    link.hop.told_epoch = 0
    if load_u32(&stream.closed):
        return
    if load_u32(&stream.writer) == WRITER_LOCAL:
        link_note(bone, link)
        return
    store_u32(&stream.coming, 0)
    if load_u32(&stream.writer) == WRITER_LINK:
        stream_end_epoch(stream, bone.now_us)
        stream_unclaim(stream)
    if rule_is_heard(bone.engine, stream):
        store_u32(&stream.stands_in, 1)     # its listeners stay; children are told that it is gone
    else:
        engine_remove(bone.engine, stream)
    link_bury(bone, link)

cdef inline bint child_goes_on(backbone_t* bone, link_t* link) noexcept nogil:
    # Does any upstream list it that has no older epoch of it?
    cdef uint32_t i
    for i in range(bone.upstreams_count):
        if link.hop.feed.parents[i].lists and link.hop.feed.parents[i].epoch >= link.hop.epoch:
            return True
    return False

cdef inline void child_leave(backbone_t* bone, link_t* link) noexcept nogil:
    # Nobody goes on with it. What they have of it comes anew, as a new stream.
    cdef uint32_t i
    for i in range(bone.upstreams_count):
        if link.hop.feed.parents[i].lists:
            parent_withdraws(&link.hop.feed, i)
            pages_anew(&bone.upstreams[i].pages)
    child_unlink(bone, link)

cdef inline void child_untold(backbone_t* bone, upstream_t* up, link_t* link) noexcept nogil:
    # This upstream lists it no longer; the stream stays.
    parent_withdraws(&link.hop.feed, up.index)
    if link.hop.asked != HOP_NOTHING and link.hop.asked_of == up.index:
        link.hop.asked = HOP_NOTHING
        upstream_closed(up)
    hop_untold(&link.hop)
    if link.stream != NULL:
        link_touch(bone, link)
        link_note(bone, link)

cdef inline void child_withdraw(backbone_t* bone, upstream_t* up, link_t* link) noexcept nogil:
    # This upstream says that it has the stream no more. Others that have no older epoch go on.
    if not link.hop.feed.parents[up.index].lists:
        return
    link.hop.feed.parents[up.index].lists = False
    if child_goes_on(bone, link):
        child_untold(bone, up, link)
    else:
        parent_withdraws(&link.hop.feed, up.index)
        child_leave(bone, link)

cdef inline void child_miss(backbone_t* bone, upstream_t* up, link_t* link) noexcept nogil:
    # A process that has just begun does not list what the one before it had. Its source will come
    # back, or not: listeners stay where they are for the linger.
    child_untold(bone, up, link)
    if link.gone_us == 0 and not child_goes_on(bone, link):
        link.gone_us = bone.now_us

cdef inline void child_stream_closed(backbone_t* bone, link_t* link) noexcept nogil:
    # Somebody has taken the stream off this node. If an upstream still has it, it comes back with
    # the whole directory.
    child_leave(bone, link)
    link_bury(bone, link)

cdef inline void child_conflict_over(backbone_t* bone, link_t* link) noexcept nogil:
    # The local source has left a mount that upstreams have, too. Their epoch was heard meanwhile;
    # what else they say of it comes with the whole directory.
    cdef uint32_t i
    link.conflict = False
    for i in range(bone.upstreams_count):
        if link.hop.feed.parents[i].lists:
            pages_anew(&bone.upstreams[i].pages)

cdef inline link_t* child_link(backbone_t* bone, const wire_entry_t* entry) noexcept nogil:
    # The link of a listed mount; its stream is made if this node has none. NULL: no room.
    cdef stream_t* stream = engine_find(bone.engine, <const char*>entry.mount, entry.mount_bytes)
    cdef uint64_t key = mount_key(<const char*>entry.mount, entry.mount_bytes)
    cdef link_t* link
    if stream == NULL:
        stream = stream_open(
            <const char*>entry.mount, entry.mount_bytes, engine_config(bone.engine, key),
            &bone.engine.retire, &bone.engine.hub,
        )
        if stream == NULL:
            return NULL
        store_u32(&stream.refs, 2)      # the table's and, for a moment, ours
        if engine_add(bone.engine, stream) != 0:
            stream_drop(stream)
            stream_drop(stream)
            return NULL
    store_u32(&stream.stands_in, 0)
    link = link_of(bone, stream)
    stream_drop(stream)
    return link

cdef inline void child_shadows(backbone_t* bone, link_t* link) noexcept nogil:
    # Sources of two origins have the same mount: the highest epoch wins, each other one is counted
    # once. (An upstream that is merely late with the news tells the same origin.)
    cdef feed_t* feed = &link.hop.feed
    cdef parent_t* parent
    cdef uint32_t winner = feed_listing(feed, link.hop.told_epoch)
    cdef uint32_t i
    cdef bint lost
    if winner == PARENT_NONE:
        return
    for i in range(bone.upstreams_count):
        parent = &feed.parents[i]
        lost = parent.lists and parent.up and parent.origin != feed.parents[winner].origin
        if lost and not parent.shadowed:
            bone.counters.shadowed_total += 1
            link_record(bone, link, RECORD_SHADOWED, 0, i, parent.epoch,
                        feed.parents[winner].epoch, 0)
        parent.shadowed = lost

cdef inline void child_entry(
    backbone_t* bone, upstream_t* up, const wire_entry_t* entry,
) noexcept nogil:
    cdef link_t* link
    cdef info_t* info
    cdef parent_t* parent
    if entry.flags & ENTRY_REMOVED:
        link = link_find(bone, mount_key(<const char*>entry.mount, entry.mount_bytes))
        if link != NULL:
            child_withdraw(bone, up, link)
        return
    link = child_link(bone, entry)
    if link == NULL:
        refuse(bone, WIRE_FULL)
        up.pages.missed_us = bone.now_us + MISSED_US
        return
    link.from_upstream = True
    parent = &link.hop.feed.parents[up.index]
    parent.lists = True
    parent.up = entry.flags & ENTRY_UP != 0
    parent.hops = entry.hops
    parent.origin = entry.origin
    parent.listed_epoch = entry.epoch
    parent.round = up.pages.round
    if load_u32(&link.stream.writer) == WRITER_LOCAL:
        if not link.conflict:
            bone.counters.mount_conflicts_total += 1
        link.conflict = True
        heard_epoch(bone, up, link, entry.epoch)    # for when the local source has left
        return
    link.conflict = False
    info = <info_t*>load_pointer(<void**>&link.stream.info)
    if entry.epoch >= link.hop.told_epoch and entry.info_bytes and (
        info == NULL or info.size_bytes != entry.info_bytes
        or memcmp(info.bytes, entry.info, entry.info_bytes) != 0
    ):
        stream_set_info(link.stream, entry.info, entry.info_bytes)
    heard_epoch(bone, up, link, entry.epoch)
    if parent.epoch >= link.hop.epoch:
        link.gone_us = 0
    child_shadows(bone, link)
    link_touch(bone, link)
    link_note(bone, link)

cdef inline void child_snapshot_over(backbone_t* bone, upstream_t* up) noexcept nogil:
    # What the whole directory did not list is gone: at once if this process had told of it, else
    # after the linger.
    cdef link_t* link
    cdef uint64_t slot = 0
    while slot < bone.table_size:
        link = bone.table[slot]
        if link != NULL and link.hop.feed.parents[up.index].lists and (
            link.hop.feed.parents[up.index].round != up.pages.round
        ):
            if up.pages.whole:
                child_withdraw(bone, up, link)
            else:
                child_miss(bone, up, link)
            if bone.table[slot] != link:
                continue        # deleted: another may have moved here
        slot += 1
    up.pages.round = 0
    up.pages.whole = True
    bone.beacon_now = True
    directory_tell(bone)

cdef inline void directory_tell(backbone_t* bone) noexcept nogil:
    # Known, once and for all, when every upstream has told its directory. Those that are not there
    # are not waited for, but for a moment after the start; nor are those for long that are there
    # and do not know theirs, once another has told: they may never.
    cdef bint awaited = False
    cdef bint any = False
    cdef uint32_t i
    for i in range(bone.upstreams_count):
        if bone.upstreams[i].pages.whole:
            any = True
        elif bone.upstreams[i].peer.state == PEER_UP or (
            bone.now_us - bone.opened_us < CONNECTING_US
            and bone.upstreams[i].peer.state == PEER_CONNECTING
        ):
            awaited = True
    if not any:
        bone.whole_us = 0
    elif bone.whole_us == 0:
        bone.whole_us = bone.now_us
    if any and (not awaited or bone.now_us - bone.whole_us >= WHOLE_US):
        store_u32(&bone.engine.directory_known, 1)

cdef inline void child_page(backbone_t* bone, upstream_t* up, reader_t* reader) noexcept nogil:
    cdef wire_page_t page
    cdef wire_entry_t entry
    cdef uint32_t i
    cdef bint begun = up.pages.best != 0
    cdef uint64_t since = up.pages.since
    cdef int status = wire_check_page(reader, &page)
    if status == WIRE_OK and memcmp(page.node_id, up.node_id, 16) != 0:
        status = WIRE_FIELD
    if status != WIRE_OK:
        refuse(bone, status)
        up.pages.retry_us = bone.now_us + HOP_RETRY_US_MAX
        return
    if page.flags & PAGE_FIRST:
        bone.rounds += 1
        up.pages.round = bone.rounds
    for i in range(page.count):
        take_entry(reader, &entry)
        child_entry(bone, up, &entry)
        if entry.version > up.pages.since or i == 0:
            up.pages.since = entry.version
    if page.flags & PAGE_LAST:
        up.pages.best = up.pages.stuck = 0
        if page.version == since and page.version < up.pages.wanted:
            up.pages.retry_us = bone.now_us + HOP_RETRY_US     # its beacon tells of a newer one
        up.pages.since = page.version
        if up.pages.wanted < page.version:
            up.pages.wanted = page.version
        if up.pages.round != 0:
            child_snapshot_over(bone, up)
    elif up.pages.since > up.pages.best and not (begun and page.flags & PAGE_FIRST):
        up.pages.best = up.pages.since
    else:
        child_page_stuck(bone, up)

cdef inline void child_page_stuck(backbone_t* bone, upstream_t* up) noexcept nogil:
    # More is to come, but this page brought nothing newer: asked again, but not without pause.
    up.pages.stuck += 1
    up.pages.retry_us = bone.now_us + HOP_RETRY_US
    if up.pages.stuck > PAGES_STUCK_MAX:
        refuse(bone, WIRE_FIELD)
        up.pages.retry_us = bone.now_us + HOP_RETRY_US_MAX

cdef inline void child_page_answer(
    backbone_t* bone, upstream_t* up, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    up.pages.request = 0
    if head.kind == KIND_PAGE:
        child_page(bone, up, reader)
    elif head.kind == KIND_LATER:
        up.pages.retry_us = bone.now_us + HOP_RETRY_US
    else:
        refuse(bone, WIRE_KIND)

# wire.pxd: what nodes say to each other, as bytes. The specification is docs/wire.md.
#
# Rules of this room
#   1. Pure: encodes into a buffer it is given, decodes into structs that point into the message.
#   2. Every length and number from outside is bounded here, once; who gets WIRE_OK need not look
#      again.
#   3. A reader or writer that runs out stays broken (`short`, `full`): check once, at the end.
#   4. Little endian. All messages begin with kind, key, version; requests and answers go on with
#      an id.
#   5. What a later version has appended to a body is not looked at (versions.pxd).
#   6. Knows no sockets, no streams, no time.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from relay._core.frames cimport FRAME_BYTES_MAX
from relay._core.ring cimport FRAME_TITLE, HEADER_BYTES_MAX, TITLE_BYTES_MAX
from relay._core.stream cimport INFO_BYTES_MAX, MOUNT_BYTES_MAX
from relay._core.versions cimport VERSION_LONGER, version_is_known, versions_t
from relay._core.wire_text cimport is_address, is_info, is_mount

cdef extern from "<endian.h>" nogil:
    uint16_t htole16(uint16_t)
    uint16_t le16toh(uint16_t)
    uint32_t htole32(uint32_t)
    uint32_t le32toh(uint32_t)
    uint64_t htole64(uint64_t)
    uint64_t le64toh(uint64_t)

cdef enum:
    WIRE_TOPIC_BYTES = 9          # kind and key: what a child subscribes to
    WIRE_HEAD_BYTES = 10          # … and version
    WIRE_ASK_BYTES = 14           # … and request id
    WIRE_RUN_FIXED_BYTES = 44     # of a run, before its records
    WIRE_RUN_BYTES_MAX = 131072   # a whole message of frames
    WIRE_RUN_FRAMES_MAX = 4096
    WIRE_BEACON_BYTES_MAX = 65536
    WIRE_BEACON_ENTRY_BYTES = 25
    WIRE_REQUEST_BYTES_MAX = 1024
    WIRE_PAGE_BYTES_MAX = 131072
    WIRE_CHUNK_BYTES_MAX = 65536  # of a header blob
    WIRE_PATH_MAX = 16            # nodes between a node and the root
    WIRE_ADDRESS_BYTES_MAX = 255
    WIRE_DURATION_US_MAX = 60000000

cdef enum:  # kinds: published (also topics), requests, answers
    KIND_BEACON = 66      # 'B'
    KIND_STREAM = 83      # 'S'
    KIND_JOIN = 74        # 'J'
    KIND_REPAIR = 82      # 'R'
    KIND_DIRECTORY = 68   # 'D'
    KIND_HERE = 104       # 'h'
    KIND_HEADER = 101     # 'e'
    KIND_RUN = 115        # 's'
    KIND_DONE = 100       # 'd'
    KIND_LATER = 108      # 'l'
    KIND_GONE = 103       # 'g'
    KIND_UNKNOWN = 117    # 'u'
    KIND_PAGE = 112       # 'p'

cdef enum:  # flags
    RUN_END = 1           # the epoch ends after this run
    BEACON_DRAINING = 1
    BEACON_GOODBYE = 2            # the upper four bits: versions.pxd
    ENTRY_UP = 1
    ENTRY_REMOVED = 2
    PAGE_LAST = 1
    PAGE_FIRST = 2        # all is told from here on: what does not come is gone

cdef enum:  # why a message is refused; the counters are indexed by -reason
    WIRE_OK = 0
    WIRE_SHORT = -1       # ends before its fields do, or goes on after them where it may not
    WIRE_VERSION = -2     # another protocol version
    WIRE_KIND = -3        # a kind that nobody may send here
    WIRE_SIZE = -4        # longer than its kind may be, or in several parts
    WIRE_FIELD = -5       # a number out of bounds
    WIRE_TEXT = -6        # a mount, header line or address with bytes that do not belong there
    WIRE_TOPIC = -7       # a subscription that is no topic of ours
    WIRE_FULL = -8        # more than a bound of this node (subscriptions, streams)
    WIRE_REASONS = 9

cdef struct reader_t:
    const uint8_t* at
    const uint8_t* end
    bint short
    bint longer               # the body may go on behind what we know of it

cdef struct writer_t:
    uint8_t* at
    uint8_t* end
    bint full

cdef struct wire_head_t:
    uint8_t kind
    uint8_t version
    uint64_t key
    uint32_t request          # 0 in published messages

cdef struct wire_run_t:       # consecutive frames of one stream
    uint8_t flags             # RUN_…
    uint64_t origin
    uint64_t epoch
    uint64_t first_sequence
    uint64_t first_position
    uint64_t first_media_us
    uint32_t count
    const uint8_t* records    # count × 8 bytes
    const uint8_t* payload

cdef struct wire_record_t:
    uint32_t size_bytes
    uint32_t flags
    uint32_t duration_us

cdef struct wire_beacon_t:
    uint8_t flags             # BEACON_…
    uint64_t node_id[2]
    uint64_t directory_version  # 0: the directory is not known yet
    uint64_t turn
    uint32_t load             # ‰ of the backbone thread's time
    uint32_t router_port
    uint32_t path_count
    uint64_t path[WIRE_PATH_MAX]  # low halves of the node ids above the sender, nearest first
    uint32_t address_bytes    # 0: the child's own way to the sender, with router_port
    const uint8_t* address    # host:port
    uint32_t count
    const uint8_t* entries

cdef struct wire_beacon_entry_t:
    uint64_t key
    uint64_t epoch
    uint64_t sequence         # the next that will be sent
    uint8_t flags             # RUN_END

cdef struct wire_here_t:
    uint8_t flags             # RUN_END: the epoch has ended at head_sequence
    uint64_t epoch
    uint64_t origin
    uint64_t first_sequence
    uint64_t first_position
    uint64_t first_media_us
    uint64_t head_sequence
    uint64_t title_sequence
    uint64_t title_position
    uint32_t title_bytes      # 0: no title
    const uint8_t* title

cdef struct wire_range_t:     # a repair request, or the answers done and gone
    uint8_t flags             # done: RUN_END: `to` is the epoch's end
    uint64_t epoch
    uint64_t from_sequence
    uint64_t to_sequence

cdef struct wire_header_t:    # a piece of a header blob
    uint64_t epoch
    uint64_t end_sequence
    uint32_t total_bytes
    uint32_t offset
    uint32_t size_bytes
    const uint8_t* bytes

cdef struct wire_ask_t:       # a join or directory request
    uint64_t epoch            # join: 0: the newest
    uint64_t burst_us
    uint64_t node_id[2]       # directory: whose versions `since` counts
    uint64_t since

cdef struct wire_page_t:
    uint64_t node_id[2]
    uint64_t version          # the sender's directory as of this page
    uint8_t flags             # PAGE_…
    uint32_t count

cdef struct wire_entry_t:     # one stream of a directory
    uint64_t version
    uint8_t flags             # ENTRY_…
    uint8_t hops
    uint64_t epoch
    uint64_t origin
    uint32_t mount_bytes
    const uint8_t* mount
    uint32_t info_bytes
    const uint8_t* info

# --- numbers -------------------------------------------------------------------------------------

cdef inline reader_t reader_of(const uint8_t* bytes, size_t size) noexcept nogil:
    cdef reader_t reader
    reader.at = bytes
    reader.end = bytes + size
    reader.short = reader.longer = False
    return reader

cdef inline const uint8_t* take(reader_t* reader, size_t size) noexcept nogil:
    cdef const uint8_t* at = reader.at
    if <size_t>(reader.end - at) < size:
        reader.short = True
        reader.at = reader.end
        return NULL
    reader.at = at + size
    return at

cdef inline uint8_t take_u8(reader_t* reader) noexcept nogil:
    cdef const uint8_t* at = take(reader, 1)
    return 0 if at == NULL else at[0]

cdef inline uint16_t take_u16(reader_t* reader) noexcept nogil:
    cdef uint16_t value = 0
    cdef const uint8_t* at = take(reader, 2)
    if at != NULL:
        memcpy(&value, at, 2)
    return le16toh(value)

cdef inline uint32_t take_u32(reader_t* reader) noexcept nogil:
    cdef uint32_t value = 0
    cdef const uint8_t* at = take(reader, 4)
    if at != NULL:
        memcpy(&value, at, 4)
    return le32toh(value)

cdef inline uint64_t take_u64(reader_t* reader) noexcept nogil:
    cdef uint64_t value = 0
    cdef const uint8_t* at = take(reader, 8)
    if at != NULL:
        memcpy(&value, at, 8)
    return le64toh(value)

cdef inline writer_t writer_of(uint8_t* bytes, size_t room) noexcept nogil:
    cdef writer_t writer
    writer.at = bytes
    writer.end = bytes + room
    writer.full = False
    return writer

cdef inline void put(writer_t* writer, const void* bytes, size_t size) noexcept nogil:
    if <size_t>(writer.end - writer.at) < size:
        writer.full = True
        return
    if size:
        memcpy(writer.at, bytes, size)
    writer.at += size

cdef inline void put_u8(writer_t* writer, uint8_t value) noexcept nogil:
    put(writer, &value, 1)

cdef inline void put_u16(writer_t* writer, uint16_t value) noexcept nogil:
    value = htole16(value)
    put(writer, &value, 2)

cdef inline void put_u32(writer_t* writer, uint32_t value) noexcept nogil:
    value = htole32(value)
    put(writer, &value, 4)

cdef inline void put_u64(writer_t* writer, uint64_t value) noexcept nogil:
    value = htole64(value)
    put(writer, &value, 8)

cdef inline bint is_far(uint64_t number) noexcept nogil:
    # Sequences, positions and media times stay below 2^62, so that sums of them never wrap.
    return number >> 62 != 0

cdef inline int ended(reader_t* reader) noexcept nogil:
    return WIRE_SHORT if reader.short or (
        reader.at != reader.end and not reader.longer
    ) else WIRE_OK

# --- heads ---------------------------------------------------------------------------------------

cdef inline void put_topic(uint8_t* topic, uint8_t kind, uint64_t key) noexcept nogil:
    key = htole64(key)
    topic[0] = kind
    memcpy(topic + 1, &key, 8)

cdef inline bint is_published(uint8_t kind) noexcept nogil:
    return kind == KIND_BEACON or kind == KIND_STREAM

cdef inline void put_head(
    writer_t* writer, uint8_t kind, uint64_t key, uint32_t request, uint8_t version,
) noexcept nogil:
    put_u8(writer, kind)
    put_u64(writer, key)
    put_u8(writer, version)
    if not is_published(kind):
        put_u32(writer, request)

cdef inline int take_head(
    reader_t* reader, wire_head_t* head, const versions_t* ours,
) noexcept nogil:
    head.kind = take_u8(reader)
    head.key = take_u64(reader)
    head.version = take_u8(reader)
    head.request = 0
    if reader.short:
        return WIRE_SHORT
    if not version_is_known(ours, head.version):
        return WIRE_VERSION
    reader.longer = head.version >= VERSION_LONGER
    if not is_published(head.kind):
        head.request = take_u32(reader)
    return WIRE_SHORT if reader.short else WIRE_OK

# --- runs of frames ------------------------------------------------------------------------------

cdef inline void put_run(writer_t* writer, const wire_run_t* run) noexcept nogil:
    # All but the records and the payload.
    put_u8(writer, run.flags)
    put_u8(writer, 0)
    put_u64(writer, run.origin)
    put_u64(writer, run.epoch)
    put_u64(writer, run.first_sequence)
    put_u64(writer, run.first_position)
    put_u64(writer, run.first_media_us)
    put_u16(writer, <uint16_t>run.count)

cdef inline void put_record(
    uint8_t* at, uint32_t size_bytes, uint32_t flags, uint32_t duration_us
) noexcept nogil:
    cdef uint64_t record = htole64(
        size_bytes | <uint64_t>(flags & 0xFF) << 24 | <uint64_t>duration_us << 32
    )
    memcpy(at, &record, 8)

cdef inline wire_record_t get_record(const uint8_t* at) noexcept nogil:
    cdef uint64_t packed
    cdef wire_record_t record
    memcpy(&packed, at, 8)
    packed = le64toh(packed)
    record.size_bytes = <uint32_t>(packed & 0xFFFFFF)
    record.flags = <uint32_t>(packed >> 24 & 0xFF)
    record.duration_us = <uint32_t>(packed >> 32)
    return record

cdef inline void get_records(const wire_run_t* run, uint64_t* records) noexcept nogil:
    # All records in host order: size (24 bits), flags (8), duration (32), from the low end.
    cdef uint32_t i
    if run.count:
        memcpy(records, run.records, 8 * <size_t>run.count)
    for i in range(run.count):
        records[i] = le64toh(records[i])

cdef inline int take_run(reader_t* reader, wire_run_t* run) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t i
    cdef wire_record_t record
    run.flags = take_u8(reader)
    take_u8(reader)
    run.origin = take_u64(reader)
    run.epoch = take_u64(reader)
    run.first_sequence = take_u64(reader)
    run.first_position = take_u64(reader)
    run.first_media_us = take_u64(reader)
    run.count = take_u16(reader)
    if run.count > WIRE_RUN_FRAMES_MAX or is_far(run.first_sequence) or is_far(run.epoch):
        return WIRE_FIELD
    if is_far(run.first_position) or is_far(run.first_media_us):
        return WIRE_FIELD
    run.records = take(reader, <size_t>run.count * 8)
    if reader.short:
        return WIRE_SHORT
    for i in range(run.count):
        record = get_record(run.records + 8 * i)
        if record.size_bytes == 0 or record.size_bytes > FRAME_BYTES_MAX or record.flags > 15:
            return WIRE_FIELD
        if record.flags & FRAME_TITLE and record.size_bytes > TITLE_BYTES_MAX:
            return WIRE_FIELD
        if record.duration_us > WIRE_DURATION_US_MAX:
            return WIRE_FIELD
        total += record.size_bytes
    run.payload = take(reader, total)
    return ended(reader)

# --- beacons -------------------------------------------------------------------------------------

cdef inline void put_beacon(writer_t* writer, const wire_beacon_t* beacon) noexcept nogil:
    # All but the entries.
    cdef uint32_t i
    put_u8(writer, beacon.flags)
    put_u64(writer, beacon.node_id[0])
    put_u64(writer, beacon.node_id[1])
    put_u64(writer, beacon.directory_version)
    put_u64(writer, beacon.turn)
    put_u16(writer, <uint16_t>beacon.load)
    put_u16(writer, <uint16_t>beacon.router_port)
    put_u8(writer, <uint8_t>beacon.path_count)
    for i in range(beacon.path_count):
        put_u64(writer, beacon.path[i])
    put_u8(writer, <uint8_t>beacon.address_bytes)
    put(writer, beacon.address, beacon.address_bytes)
    put_u16(writer, <uint16_t>beacon.count)

cdef inline int take_beacon(reader_t* reader, wire_beacon_t* beacon) noexcept nogil:
    cdef uint32_t i
    beacon.flags = take_u8(reader)
    beacon.node_id[0] = take_u64(reader)
    beacon.node_id[1] = take_u64(reader)
    beacon.directory_version = take_u64(reader)
    beacon.turn = take_u64(reader)
    beacon.load = take_u16(reader)
    beacon.router_port = take_u16(reader)
    beacon.path_count = take_u8(reader)
    if beacon.path_count > WIRE_PATH_MAX:
        return WIRE_FIELD
    for i in range(beacon.path_count):
        beacon.path[i] = take_u64(reader)
    beacon.address_bytes = take_u8(reader)
    beacon.address = take(reader, beacon.address_bytes)
    beacon.count = take_u16(reader)
    beacon.entries = take(reader, <size_t>beacon.count * WIRE_BEACON_ENTRY_BYTES)
    if reader.short:
        return WIRE_SHORT
    if not is_address(beacon.address, beacon.address_bytes, WIRE_ADDRESS_BYTES_MAX):
        return WIRE_TEXT
    return ended(reader)

cdef inline void put_beacon_entry(
    writer_t* writer, const wire_beacon_entry_t* entry,
) noexcept nogil:
    put_u64(writer, entry.key)
    put_u64(writer, entry.epoch)
    put_u64(writer, entry.sequence)
    put_u8(writer, entry.flags)

cdef inline wire_beacon_entry_t get_beacon_entry(const uint8_t* at) noexcept nogil:
    cdef reader_t reader = reader_of(at, WIRE_BEACON_ENTRY_BYTES)
    cdef wire_beacon_entry_t entry
    entry.key = take_u64(&reader)
    entry.epoch = take_u64(&reader)
    entry.sequence = take_u64(&reader) & ((<uint64_t>1 << 62) - 1)
    entry.flags = take_u8(&reader)
    return entry

# --- requests and answers ------------------------------------------------------------------------

cdef inline void put_join(writer_t* writer, const wire_ask_t* ask) noexcept nogil:
    put_u64(writer, ask.epoch)
    put_u64(writer, ask.burst_us)

cdef inline int take_join(reader_t* reader, wire_ask_t* ask) noexcept nogil:
    ask.epoch = take_u64(reader)
    ask.burst_us = take_u64(reader)
    if is_far(ask.burst_us):
        return WIRE_FIELD
    return ended(reader)

cdef inline void put_directory(writer_t* writer, const wire_ask_t* ask) noexcept nogil:
    put_u64(writer, ask.node_id[0])
    put_u64(writer, ask.node_id[1])
    put_u64(writer, ask.since)

cdef inline int take_directory(reader_t* reader, wire_ask_t* ask) noexcept nogil:
    ask.node_id[0] = take_u64(reader)
    ask.node_id[1] = take_u64(reader)
    ask.since = take_u64(reader)
    return ended(reader)

cdef inline void put_range(writer_t* writer, const wire_range_t* span) noexcept nogil:
    put_u8(writer, span.flags)
    put_u64(writer, span.epoch)
    put_u64(writer, span.from_sequence)
    put_u64(writer, span.to_sequence)

cdef inline int take_range(reader_t* reader, wire_range_t* span) noexcept nogil:
    span.flags = take_u8(reader)
    span.epoch = take_u64(reader)
    span.from_sequence = take_u64(reader)
    span.to_sequence = take_u64(reader)
    if is_far(span.to_sequence) or span.from_sequence > span.to_sequence:
        return WIRE_FIELD
    return ended(reader)

cdef inline void put_here(writer_t* writer, const wire_here_t* here) noexcept nogil:
    put_u8(writer, here.flags)
    put_u64(writer, here.epoch)
    put_u64(writer, here.origin)
    put_u64(writer, here.first_sequence)
    put_u64(writer, here.first_position)
    put_u64(writer, here.first_media_us)
    put_u64(writer, here.head_sequence)
    put_u64(writer, here.title_sequence)
    put_u64(writer, here.title_position)
    put_u16(writer, <uint16_t>here.title_bytes)
    put(writer, here.title, here.title_bytes)

cdef inline int take_here(reader_t* reader, wire_here_t* here) noexcept nogil:
    here.flags = take_u8(reader)
    here.epoch = take_u64(reader)
    here.origin = take_u64(reader)
    here.first_sequence = take_u64(reader)
    here.first_position = take_u64(reader)
    here.first_media_us = take_u64(reader)
    here.head_sequence = take_u64(reader)
    here.title_sequence = take_u64(reader)
    here.title_position = take_u64(reader)
    here.title_bytes = take_u16(reader)
    here.title = take(reader, here.title_bytes)
    if here.title_bytes > TITLE_BYTES_MAX or here.epoch == 0 or is_far(here.epoch):
        return WIRE_FIELD
    if is_far(here.head_sequence) or here.first_sequence > here.head_sequence:
        return WIRE_FIELD
    if is_far(here.first_position) or is_far(here.first_media_us):
        return WIRE_FIELD
    if here.title_bytes and (
        here.title_sequence > here.head_sequence or is_far(here.title_position)
    ):
        return WIRE_FIELD
    return ended(reader)

cdef inline void put_header(writer_t* writer, const wire_header_t* header) noexcept nogil:
    put_u64(writer, header.epoch)
    put_u64(writer, header.end_sequence)
    put_u32(writer, header.total_bytes)
    put_u32(writer, header.offset)
    put_u32(writer, header.size_bytes)
    put(writer, header.bytes, header.size_bytes)

cdef inline int take_header(reader_t* reader, wire_header_t* header) noexcept nogil:
    header.epoch = take_u64(reader)
    header.end_sequence = take_u64(reader)
    header.total_bytes = take_u32(reader)
    header.offset = take_u32(reader)
    header.size_bytes = take_u32(reader)
    if header.total_bytes == 0 or header.total_bytes > HEADER_BYTES_MAX:
        return WIRE_FIELD
    if header.size_bytes > WIRE_CHUNK_BYTES_MAX or header.offset > header.total_bytes:
        return WIRE_FIELD
    if header.size_bytes > header.total_bytes - header.offset or is_far(header.end_sequence):
        return WIRE_FIELD
    header.bytes = take(reader, header.size_bytes)
    return ended(reader)

cdef inline void put_page(writer_t* writer, const wire_page_t* page) noexcept nogil:
    put_u64(writer, page.node_id[0])
    put_u64(writer, page.node_id[1])
    put_u64(writer, page.version)
    put_u8(writer, page.flags)
    put_u16(writer, <uint16_t>page.count)

cdef inline int take_page(reader_t* reader, wire_page_t* page) noexcept nogil:
    # The reader then stands at the first entry: page.count times take_entry, then `ended`.
    page.node_id[0] = take_u64(reader)
    page.node_id[1] = take_u64(reader)
    page.version = take_u64(reader)
    page.flags = take_u8(reader)
    page.count = take_u16(reader)
    return WIRE_SHORT if reader.short else WIRE_OK

cdef inline void put_entry(writer_t* writer, const wire_entry_t* entry) noexcept nogil:
    put_u64(writer, entry.version)
    put_u8(writer, entry.flags)
    put_u8(writer, entry.hops)
    put_u64(writer, entry.epoch)
    put_u64(writer, entry.origin)
    put_u8(writer, <uint8_t>entry.mount_bytes)
    put_u16(writer, <uint16_t>entry.info_bytes)
    put(writer, entry.mount, entry.mount_bytes)
    put(writer, entry.info, entry.info_bytes)

cdef inline int take_entry(reader_t* reader, wire_entry_t* entry) noexcept nogil:
    entry.version = take_u64(reader)
    entry.flags = take_u8(reader)
    entry.hops = take_u8(reader)
    entry.epoch = take_u64(reader)
    entry.origin = take_u64(reader)
    entry.mount_bytes = take_u8(reader)
    entry.info_bytes = take_u16(reader)
    entry.mount = take(reader, entry.mount_bytes)
    entry.info = take(reader, entry.info_bytes)
    if reader.short:
        return WIRE_SHORT
    if entry.hops > WIRE_PATH_MAX or is_far(entry.epoch):
        return WIRE_FIELD
    if is_mount(entry.mount, entry.mount_bytes, MOUNT_BYTES_MAX) and (
        is_info(entry.info, entry.info_bytes, INFO_BYTES_MAX)
    ):
        return WIRE_OK
    return WIRE_TEXT

# --- a whole message -----------------------------------------------------------------------------

cdef inline int wire_check_page(reader_t* reader, wire_page_t* page) noexcept nogil:
    # All entries, before the first is acted upon.
    cdef wire_entry_t entry
    cdef reader_t ahead
    cdef uint32_t i
    cdef int status = take_page(reader, page)
    ahead = reader[0]
    for i in range(page.count):
        if status != WIRE_OK:
            break
        status = take_entry(&ahead, &entry)
    return status if status != WIRE_OK else ended(&ahead)

cdef inline size_t wire_size_max(uint8_t kind) noexcept nogil:
    if kind == KIND_STREAM or kind == KIND_RUN:
        return WIRE_RUN_BYTES_MAX
    if kind == KIND_PAGE:
        return WIRE_PAGE_BYTES_MAX
    if kind == KIND_BEACON:
        return WIRE_BEACON_BYTES_MAX
    if kind == KIND_HEADER:
        return WIRE_CHUNK_BYTES_MAX + 64
    if kind == KIND_HERE:
        return TITLE_BYTES_MAX + 128
    return WIRE_REQUEST_BYTES_MAX

# frame.pxd: the frames of the swarm's programme: valid MP3, each says what it is and when it left.
#
# Rules of this room
#   1. MPEG-1 layer III, 64 kbit/s, 48 kHz, mono, no CRC: exactly 192 B and 24 ms each, never padded
#      (ISO/IEC 11172-3 §2.4.3.1: 144 × 64000 / 48000). So a position is a sequence times 192.
#   2. It decodes as silence: side information of zeros means no main data (§2.4.2.7,
#      part2_3_length 0); what follows it is ancillary data, which decoders pass over.
#   3. All behind the header is 7-bit: no byte can be taken for a sync word (§2.4.2.3).
#   4. Each step of the checksum is a bijection of the state, so a changed byte, or several within
#      one run of eight, is always found; anything else with all but 2**-64.
#   5. Pure functions; nothing is allocated; knows no clock.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    FRAME_BYTES = 192
    FRAME_US = 24000
    BODY_AT = 21              # 4 B header, 17 B side information (mono)
    RUN_AT = 29               # after a magic of 8 B
    MOUNT_AT = 34
    SEQUENCE_AT = 37
    WRITTEN_AT = 47
    SUM_AT = 176              # covers all before it; zeros follow it
    SUMMED_WORDS = 22         # of 8 B

cdef struct mark_t:           # what one frame says about itself
    uint32_t run              # which swarm made it: random
    uint32_t mount            # its number there
    uint64_t sequence         # from 0
    uint64_t written_us       # CLOCK_MONOTONIC right before the send

cdef extern from *:
    """
    static const unsigned char swarm_head[29] = {
        0xFF, 0xFB, 0x54, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        'r', 'l', 'y', 'S', 'w', 'r', 'm', '1'
    };
    """
    const uint8_t swarm_head[29]

cdef inline void put_number(uint8_t* to, uint64_t value, int size) noexcept nogil:
    # Seven bits a byte, the lowest first.
    cdef int i
    for i in range(size):
        to[i] = <uint8_t>(value & 0x7F)
        value >>= 7

cdef inline uint64_t get_number(const uint8_t* at, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value |= <uint64_t>at[i] << (7 * i)
    return value

cdef inline uint64_t frame_sum(const uint8_t* frame) noexcept nogil:
    cdef uint64_t total = 0x9E3779B97F4A7C15
    cdef uint64_t word
    cdef int i
    for i in range(SUMMED_WORDS):
        memcpy(&word, frame + 8 * i, 8)
        total = (total ^ word) * <uint64_t>0xD6E8FEB86659FD93
        total ^= total >> 32
    return total

cdef inline void frame_write(uint8_t* frame, const mark_t* mark) noexcept nogil:
    memcpy(frame, swarm_head, 29)
    put_number(frame + RUN_AT, mark.run, 5)
    put_number(frame + MOUNT_AT, mark.mount, 3)
    put_number(frame + SEQUENCE_AT, mark.sequence, 10)
    put_number(frame + WRITTEN_AT, mark.written_us, 10)
    memset(frame + WRITTEN_AT + 10, 0, FRAME_BYTES - WRITTEN_AT - 10)
    put_number(frame + SUM_AT, frame_sum(frame), 10)

cdef inline bint frame_read(const uint8_t* frame, mark_t* mark) noexcept nogil:
    # FRAME_BYTES are there. True when each of them is as it was made.
    cdef uint8_t made[16]
    if memcmp(frame, swarm_head, 29) != 0:
        return False
    memset(made, 0, 16)
    put_number(made, frame_sum(frame), 10)
    if memcmp(frame + SUM_AT, made, 16) != 0:
        return False
    mark.run = <uint32_t>get_number(frame + RUN_AT, 5)
    mark.mount = <uint32_t>get_number(frame + MOUNT_AT, 3)
    mark.sequence = get_number(frame + SEQUENCE_AT, 10)
    mark.written_us = get_number(frame + WRITTEN_AT, 10)
    return True

cdef inline int64_t frame_find(const uint8_t* bytes, int64_t size, mark_t* mark) noexcept nogil:
    # Where the first whole frame begins (a burst cut by bytes may begin inside one), or -1.
    cdef int64_t at
    for at in range(size - FRAME_BYTES + 1):
        if bytes[at] == 0xFF and frame_read(bytes + at, mark):
            return at
    return -1

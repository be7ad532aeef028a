# sound.pxd: what a decoder must be set up for: codec, sample rate and channels, out of one frame.
#
# Rules of this room
#   1. Pure: bytes in, one number out. Two frames with the same number need the same decoder set up
#      alike; 0: the bytes do not tell. Reads nothing behind `size`.
#   2. Joint stereo and stereo are the same; mono is another. Bit rates are no difference.
#   3. Of an Ogg chain its first header page tells (RFC 7845 §5.1, Vorbis I §4.2.2, RFC 9639 §10.1,
#      the Speex manual §7); of MPEG audio and ADTS each frame's own header does (ISO/IEC 11172-3
#      §2.4.1.3, 13818-7 §6.2).

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from relay._core.frames_state cimport le32

cdef enum:
    SOUND_MPEG = 1            # the uppermost byte
    SOUND_ADTS = 2
    SOUND_OPUS = 3
    SOUND_VORBIS = 4
    SOUND_FLAC = 5
    SOUND_SPEEX = 6
    PAGE_HEAD_BYTES = 27      # of an Ogg page; behind it come as many sizes as the last one says

cdef inline uint64_t sound_make(uint64_t codec, uint32_t channels, uint32_t rate) noexcept nogil:
    return codec << 56 | <uint64_t>(channels & 0xFFFF) << 32 | rate

cdef inline uint64_t sound_of_frame(const uint8_t* bytes, uint64_t size) noexcept nogil:
    # Of an MPEG or ADTS frame; rate is its index, with version and layer above it.
    if size < 4 or bytes[0] != 0xFF or bytes[1] & 0xE0 != 0xE0:
        return 0
    if bytes[1] & 0x06:
        return sound_make(
            SOUND_MPEG, 1 if bytes[3] >> 6 == 3 else 2, <uint32_t>(bytes[1] & 0x1E) << 8
            | (bytes[2] >> 2 & 3),
        )
    if bytes[1] & 0xF0 != 0xF0:
        return 0
    return sound_make(
        SOUND_ADTS, (bytes[2] & 1) << 2 | bytes[3] >> 6, <uint32_t>(bytes[2] >> 6) << 8
        | (bytes[2] >> 2 & 15),
    )

cdef inline uint64_t sound_of_header(const uint8_t* page, uint64_t size) noexcept nogil:
    # Of the first header page of an Ogg chain.
    cdef const uint8_t* head
    cdef uint64_t offset
    if size < PAGE_HEAD_BYTES or memcmp(page, b"OggS", 4) != 0:
        return 0
    offset = <uint64_t>PAGE_HEAD_BYTES + page[PAGE_HEAD_BYTES - 1]
    if size < offset + 30:
        # the shortest that is read below: OpusHead has 19 bytes or more
        if size >= offset + 19 and memcmp(page + offset, b"OpusHead", 8) == 0:
            return sound_make(SOUND_OPUS, page[offset + 9], 48000)
        return 0
    head = page + offset
    if memcmp(head, b"OpusHead", 8) == 0:
        return sound_make(SOUND_OPUS, head[9], 48000)     # whatever went in, 48 kHz come out
    if memcmp(head, b"\x01vorbis", 7) == 0:
        return sound_make(SOUND_VORBIS, head[11], le32(head + 12))
    if memcmp(head, b"\x7fFLAC", 5) == 0:
        return sound_make(
            SOUND_FLAC, (head[29] >> 1 & 7) + 1,
            <uint32_t>head[27] << 12 | <uint32_t>head[28] << 4 | head[29] >> 4,
        )
    if size >= offset + 52 and memcmp(head, b"Speex   ", 8) == 0:
        return sound_make(SOUND_SPEEX, le32(head + 48), le32(head + 36))
    return 0

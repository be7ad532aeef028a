# icy.pxd: the in-band title of the ICY protocol, as one block.
#
# Rules of this room
#   1. After each ICY_METAINT audio bytes comes one length byte L and 16 × L bytes, NUL padded; L =
#      0 means unchanged. The counter is per listener and counts audio bytes only.
#   2. Titles are hostile input: control bytes become spaces, and what would end the quoted text
#      early is taken apart. UTF-8 is cut between characters.
#   3. Pure functions; nothing is allocated.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

cdef enum:
    ICY_METAINT = 16000
    ICY_BLOCK_BYTES_MAX = 4081   # 1 + 255 × 16
    ICY_TEXT_BYTES_MAX = 4064    # what remains beside StreamTitle='';

cdef inline uint32_t utf8_cut(const uint8_t* text, uint32_t size, uint32_t size_max) noexcept nogil:
    # The longest prefix of at most size_max bytes that does not split a character.
    if size <= size_max:
        return size
    size = size_max
    while size > 0 and text[size] & 0xC0 == 0x80:
        size -= 1
    return size

cdef inline uint32_t icy_block(const uint8_t* text, uint32_t size, uint8_t* block) noexcept nogil:
    # Writes the block of this title; block has ICY_BLOCK_BYTES_MAX bytes. Returns its size.
    cdef uint32_t used = 1
    cdef uint32_t blocks
    cdef uint32_t i
    cdef uint8_t c
    size = utf8_cut(text, size, ICY_TEXT_BYTES_MAX)
    memcpy(block + used, b"StreamTitle='", 13)
    used += 13
    for i in range(size):
        c = text[i]
        if c < 32 or c == 127:
            c = 32
        elif c == 59 and i > 0 and text[i - 1] == 39:
            c = 44            # "';" would end the title: the semicolon becomes a comma
        block[used] = c
        used += 1
    block[used] = 39
    block[used + 1] = 59
    used += 2
    blocks = (used - 1 + 15) // 16
    memset(block + used, 0, 1 + blocks * 16 - used)
    block[0] = <uint8_t>blocks
    return 1 + blocks * 16

# icy.pxd: the in-band title of the ICY protocol, as one block.
#
# Rules of this room
#   1. After each ICY_METAINT audio bytes comes one length byte L and 16 × L bytes, NUL padded; L =
#      0 means unchanged. The counter is per listener and counts audio bytes only.
#   2. A title may have a URL, StreamUrl; in the text of a title it stands behind a NUL.
#   3. Titles are hostile input: control bytes become spaces, and what would end the quoted text
#      early is taken apart. UTF-8 is cut between characters.
#   4. Pure functions; nothing is allocated.

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

cdef inline uint32_t icy_value(
    uint8_t* out, const uint8_t* text, uint32_t size
) noexcept nogil:
    # The text as it may stand between quotes, and `';` behind it. As many bytes as it had, and two.
    cdef uint32_t i
    cdef uint8_t c
    for i in range(size):
        c = text[i]
        if c < 32 or c == 127:
            c = 32
        elif c == 59 and i > 0 and text[i - 1] == 39:
            c = 44            # "';" would end the value: the semicolon becomes a comma
        out[i] = c
    out[size] = 39
    out[size + 1] = 59
    return size + 2

cdef inline uint32_t icy_block(const uint8_t* text, uint32_t size, uint8_t* block) noexcept nogil:
    # Writes the block of this title; block has ICY_BLOCK_BYTES_MAX bytes. Returns its size. What
    # stands behind a NUL in the text is the title's URL; it goes where there is no room for it.
    cdef uint32_t used = 1
    cdef uint32_t blocks
    cdef uint32_t url = 0
    while url < size and text[url] != 0:
        url += 1
    cdef uint32_t title_bytes = utf8_cut(text, url, ICY_TEXT_BYTES_MAX)
    memcpy(block + used, b"StreamTitle='", 13)
    used += 13 + icy_value(block + used + 13, text, title_bytes)
    url += 1                  # behind the NUL
    if url < size and used + 13 + (size - url) <= ICY_BLOCK_BYTES_MAX:
        memcpy(block + used, b"StreamUrl='", 11)
        used += 11 + icy_value(block + used + 11, text + url, size - url)
    blocks = (used - 1 + 15) // 16
    memset(block + used, 0, 1 + blocks * 16 - used)
    block[0] = <uint8_t>blocks
    return 1 + blocks * 16

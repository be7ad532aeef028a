# versions.pxd: which versions of the protocol two nodes speak with each other. The rules stand in
# docs/wire.md.
#
# Rules of this room
#   1. Pure numbers.
#   2. A node speaks its own version and the one before it. What it publishes goes to all children,
#      so it is said in the older one; a request, and its answer, in the newest that both speak.
#      Those whose own versions differ by one understand each other, either way round.
#   3. Two things stay at their place in all versions: the version of a message, in its head, and
#      the first byte of a beacon's body.

from libc.stdint cimport uint8_t

cdef enum:
    VERSION_OWN = 2
    VERSION_LEAST = 1         # the oldest that we speak
    VERSION_LONGER = 2        # from this one on a body may be longer than its reader knows it

cdef struct versions_t:       # what a node speaks: all from … to; 0: not heard yet
    uint8_t least
    uint8_t own

cdef inline bint version_is_known(const versions_t* ours, uint8_t version) noexcept nogil:
    # Do we understand a message that says so? A neighbour that is older than we are publishes in a
    # version that is one older still.
    return version != 0 and ours.least <= version + 1 and version <= ours.own

cdef inline bint versions_are_near(
    const versions_t* ours, const versions_t* theirs,
) noexcept nogil:
    # Is the sender of this beacon a neighbour, or of our own version?
    return version_is_known(ours, theirs.least) and theirs.own >= ours.least

cdef inline uint8_t version_between(
    const versions_t* ours, const versions_t* theirs,
) noexcept nogil:
    # The newest that both speak.
    return ours.own if ours.own < theirs.own else theirs.own

cdef inline uint8_t version_flags(const versions_t* ours) noexcept nogil:
    # How much newer than its head the sender of a beacon is: in its upper four flags, which
    # version 1 sends as 0 and does not look at.
    return <uint8_t>((ours.own - ours.least) << 4)

cdef inline versions_t versions_told(uint8_t version, uint8_t flags) noexcept nogil:
    # What the sender of a beacon speaks, out of its head and the first byte of its body.
    cdef versions_t theirs
    theirs.least = version
    theirs.own = <uint8_t>(version + (flags >> 4)) if version < 240 else version
    return theirs

# fallback.pxd: which stream the listeners of a mount hear: its own, or one of its fallbacks.
#
# Rules of this room
#   1. Pure: a step is a function of what is known (fallback_t), what is seen now (sight_t) and the
#      time. One thread steps; any thread may read what is published: at, best, heard, unfit.
#   2. Member 0 is the mount itself; the others are its chain, in order. The first of all that can
#      be entered wins. Nobody is moved to where nothing can be heard.
#   3. A stream is alive for after_us after its head has last moved, whatever the reason of the
#      silence: a source that left, one that says nothing, an upstream that is away.
#   4. A member fits when it has the format that the mount has promised, the codec, sample rate and
#      channels that it last had, as far as frames tell (a player is set up once), and another Ogg
#      serial: two chains in a row with one serial are one broken chain (RFC 3533 §4).
#   5. Knows no stream, no listener and no clock.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from relay._core.atomics cimport load_u32, store_u32

cdef enum:
    FALLBACK_MEMBERS = 5      # the mount and a chain of at most four
    FALLBACK_NONE = 255       # nobody: `best` while no stream can be entered

cdef enum:  # why a member is not used
    FIT_YES = 0
    FIT_FORMAT = 1            # another format than the mount has promised
    FIT_SERIAL = 2            # the Ogg serial of the chain before it
    FIT_SOUND = 3             # another codec, sample rate or number of channels

cdef struct sight_t:          # what is to be seen of one stream now
    bint open                 # it is here, with a ring and a source
    bint begins               # its ring holds a frame
    bint idle                 # nobody here wants it, and an upstream would have it
    uint64_t epoch            # ms
    uint64_t position         # of its head
    uint64_t format           # a hash of its content type; 0: unknown
    uint64_t serial           # of its newest Ogg chain, + 1; 0: it has none
    uint64_t sound            # of its newest frame or chain (sound.pxd); 0: unknown
    uint32_t listeners        # of the mount itself
    uint32_t away             # those of them who hear a fallback

cdef struct member_t:         # owner: who steps
    uint64_t epoch            # ms; as last seen
    uint64_t position
    uint64_t moved_us         # when its head last moved (monotonic); 0: never seen to
    bint alive
    bint enterable            # a listener may begin here now
    uint32_t unfit            # FIT_…; published

cdef struct fallback_t:       # owner: who steps
    uint64_t after_us         # fallback_after_ms
    uint32_t count            # members, the mount included; published
    member_t members[FALLBACK_MEMBERS]
    uint64_t sound            # that the mount itself last had; 0: it has had none
    uint32_t last             # where it last was, but on member 0
    uint32_t wanted           # one bit a member: it is to be fetched from upstream
    # published
    uint32_t at               # the member that listeners are to hear
    uint32_t best             # the same for who has heard nothing yet; FALLBACK_NONE: nothing
    uint32_t heard            # 1: at is a fallback, and it has audio

cdef inline uint64_t fallback_format(const uint8_t* info, uint32_t size) noexcept nogil:
    # A hash of the content type, the first of the header lines; case is no difference. FNV-1a; 0
    # where there is none.
    cdef uint64_t key = <uint64_t>0xCBF29CE484222325
    cdef uint32_t i = 0
    cdef uint8_t c
    while i < size and info[i] != 13:
        c = info[i]
        key = (key ^ (c + 32 if 65 <= c <= 90 else c)) * <uint64_t>0x100000001B3
        i += 1
    return key | 1 if i > 0 else 0

cdef inline void fallback_change(
    fallback_t* fallback, uint32_t count, uint64_t after_us
) noexcept nogil:
    # Another chain behind the same mount: what is known of the mount itself stays.
    cdef uint32_t i
    for i in range(1, FALLBACK_MEMBERS):
        fallback.members[i] = member_t(0, 0, 0, False, False, FIT_YES)
    store_u32(&fallback.count, count)
    fallback.after_us = after_us
    fallback.last = fallback.wanted = 0
    store_u32(&fallback.at, 0)
    store_u32(&fallback.best, FALLBACK_NONE)
    store_u32(&fallback.heard, 0)

cdef inline void member_look(
    member_t* member, const sight_t* sight, uint64_t after_us, uint64_t now_us
) noexcept nogil:
    # Has its head moved since the last look? One that first shows with audio has just moved.
    if sight.begins and (sight.open or sight.epoch == member.epoch) and (
        sight.epoch != member.epoch or sight.position != member.position
    ):
        member.epoch = sight.epoch
        member.position = sight.position
        member.moved_us = now_us
    elif sight.idle:
        member.moved_us = now_us      # not silent: not asked for
    member.alive = member.moved_us > 0 and now_us < member.moved_us + after_us

cdef inline uint32_t member_unfit(
    const sight_t* own, const sight_t* sight, uint64_t sound
) noexcept nogil:
    if own.format != 0 and sight.format != 0 and own.format != sight.format:
        return FIT_FORMAT
    if sound != 0 and sight.sound != 0 and sound != sight.sound:
        return FIT_SOUND
    if own.serial != 0 and own.serial == sight.serial:
        return FIT_SERIAL
    return FIT_YES

cdef inline uint32_t fallback_first(const fallback_t* fallback, uint32_t below) noexcept nogil:
    # The first member below this one that can be entered; FALLBACK_NONE: none.
    cdef uint32_t i
    for i in range(below):
        if fallback.members[i].enterable:
            return i
    return FALLBACK_NONE

cdef inline uint32_t fallback_choose(fallback_t* fallback) noexcept nogil:
    # Back as soon as one before can be heard; else it stays while it has audio; else on.
    cdef uint32_t at = fallback.at
    cdef uint32_t better = fallback_first(fallback, at)
    if better != <uint32_t>FALLBACK_NONE:
        return better
    if at == 0 and fallback.members[0].alive:
        return 0
    if fallback.members[0].alive and not fallback.members[at].alive:
        return 0
    if fallback.members[at].alive:
        return at
    better = fallback_first(fallback, fallback.count)
    return at if better == <uint32_t>FALLBACK_NONE else better

cdef inline uint32_t fallback_wants(
    const fallback_t* fallback, const sight_t* own
) noexcept nogil:
    # Whom upstream is asked for: all up to the first who can be heard, those before it so that
    # they are seen to return; and who is still heard by somebody.
    cdef uint32_t wanted = 0
    cdef uint32_t i
    if own.away > 0:
        wanted = <uint32_t>1 << fallback.last
    if own.listeners == 0 or fallback.members[0].alive:
        return wanted & ~<uint32_t>1
    for i in range(1, fallback.count):
        wanted |= <uint32_t>1 << i
        if fallback.members[i].enterable:
            break
    return wanted & ~<uint32_t>1

cdef inline bint fallback_step(
    fallback_t* fallback, const sight_t* sights, uint64_t now_us
) noexcept nogil:
    # One look at all of its streams. True: listeners are to hear another one than before.
    cdef member_t* member
    cdef uint32_t at = fallback.at
    cdef uint32_t i
    if sights[0].sound != 0:
        fallback.sound = sights[0].sound
    for i in range(fallback.count):
        member = &fallback.members[i]
        member_look(member, &sights[i], fallback.after_us, now_us)
        store_u32(
            &member.unfit,
            member_unfit(&sights[0], &sights[i], fallback.sound) if i > 0 else FIT_YES,
        )
        member.enterable = sights[i].open and sights[i].begins and member.alive and (
            i == 0 or (sights[0].format != 0 and sights[0].format == sights[i].format
                       and member.unfit == FIT_YES)
        )
    store_u32(&fallback.at, 0 if sights[0].idle else fallback_choose(fallback))
    if fallback.at > 0:
        fallback.last = fallback.at
    store_u32(
        &fallback.best,
        0 if sights[0].idle else fallback_first(fallback, fallback.count)
    )
    store_u32(&fallback.heard, fallback.at > 0 and fallback.members[fallback.at].alive)
    fallback.wanted = fallback_wants(fallback, &sights[0])
    return fallback.at != at

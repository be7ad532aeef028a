# tempo.pxd: which pace a shard chooses from its own load.
#
# Rules of this room
#   1. Decides only: handed the time, what the turn has cost and how many listen; answers with a
#      pace. Knows no clock, no wheel and no listener.
#   2. The busy share is aimed at SHARE_TARGET. Between SHARE_LOW and SHARE_HIGH nothing changes. A
#      step up ends at the target or above it, a step back far below SHARE_HIGH: under a steady load
#      no step is ever taken back, so it cannot swing.
#   3. It tells apart what the pace can change (those who follow it) from what it cannot (the rest:
#      mounts with a pace of their own, the door). The rest takes its part of each mark away, but
#      never all: those who follow have ROOM_PART of it to themselves, since below that the slowest
#      pace would hardly help the others, and would cost them all they have.
#   4. Up: after one window; at once where the house grows so that SHARE_URGENT is foreseen. Back:
#      after CALM_WINDOWS in a row, in small steps.
#   5. Serving counts at once, other work (the door) only when it lasts: a storm of joins alone
#      moves nobody; those who have come in with it do.
#   6. What is measured while listeners still move to a new pace is thrown away.

from libc.stdint cimport uint32_t, uint64_t

from relay._core.pace cimport MOVES_PART, SLOT_US

cdef enum:  # shares are permille of one core; more than 1000 is foreseen, or fell behind
    SHARE_TARGET = 500
    SHARE_LOW = 400
    SHARE_HIGH = 600
    SHARE_URGENT = 800
    SHARE_MAX = 16000         # beyond it nothing is told apart
    ROOM_PART = 5             # a fifth
    STEP_UP = 1250            # permille of the pace, at most
    STEP_URGENT = 1500
    STEP_BACK = 870

cdef enum:
    WINDOW_US = 500000        # or one pace, if that is longer: each listener is in it once
    CALM_WINDOWS = 4
    URGENT_EVERY_US = 100000  # a growing house is judged so often
    OTHER_PART = 8            # a window's weight in the share of other work: 1/8
    VISIT_NS = 10000          # serving one listener once, until it has been measured
    KNOWN_MIN = 256           # fewer share the cost of a turn: a crowd costs less each

cdef struct tempo_t:          # owner: the shard
    uint64_t pace_us          # chosen now; whole slots where floor and ceiling are
    uint64_t floor_us
    uint64_t ceiling_us
    uint64_t visit_ns         # serving costs a listener and pace so much, on average
    uint64_t known            # listeners of whom that was measured
    uint64_t fixed_share      # permille: serving those who do not follow
    uint64_t other_share      # permille; smoothed
    uint64_t settled_us       # before this, listeners may still be on their way to the pace
    uint64_t judged_us        # when it was last looked at between windows
    uint64_t window_us        # when the window began; 0: none is open
    uint64_t serve_us         # in this window: serving those due who follow
    uint64_t fixed_us         # and those who do not
    uint64_t other_us         # heads, accepts, events
    uint64_t behind_us        # by which the schedule was put off
    uint32_t began_with       # followers when the window began
    uint32_t calm             # windows in a row below SHARE_LOW

cdef inline uint64_t tempo_clamp(uint64_t value, uint64_t low, uint64_t high) noexcept nogil:
    value = value if value < high else high
    return value if value > low else low

cdef inline void tempo_open(
    tempo_t* tempo, uint64_t floor_us, uint64_t ceiling_us, uint64_t now_us
) noexcept nogil:
    tempo.floor_us = tempo.pace_us = floor_us
    tempo.ceiling_us = ceiling_us
    tempo.visit_ns = VISIT_NS
    tempo.settled_us = tempo.judged_us = now_us
    tempo.window_us = tempo.fixed_share = tempo.other_share = tempo.known = 0
    tempo.calm = 0

cdef inline bint tempo_has_choice(uint64_t floor_us, uint64_t ceiling_us) noexcept nogil:
    # May listeners of a mount with these bounds follow the pace at all?
    return floor_us < ceiling_us

cdef inline bint tempo_is_followed(
    const tempo_t* tempo, uint64_t floor_us, uint64_t ceiling_us
) noexcept nogil:
    # Do they follow it where it is now? Who is held at a bound of his mount does not.
    return floor_us < ceiling_us and floor_us <= tempo.pace_us <= ceiling_us

cdef inline uint64_t tempo_rest(const tempo_t* tempo) noexcept nogil:
    return tempo.fixed_share + tempo.other_share

cdef inline uint64_t tempo_mark(const tempo_t* tempo, uint64_t share) noexcept nogil:
    # What one of the marks above leaves for those who follow.
    cdef uint64_t rest = tempo_rest(tempo)
    cdef uint64_t least = share // ROOM_PART
    return share - rest if share > rest + least else least

cdef inline uint64_t tempo_follow_share(
    tempo_t* tempo, uint64_t listeners, uint64_t pace_us
) noexcept nogil:
    # The share, in permille, that so many of those who follow make at this pace.
    cdef uint64_t known = listeners if listeners < tempo.known else tempo.known
    cdef uint64_t each_ns = tempo.visit_ns if tempo.known >= <uint64_t>KNOWN_MIN else VISIT_NS
    cdef uint64_t round_ns = known * tempo.visit_ns + (listeners - known) * each_ns
    return tempo_clamp(round_ns // pace_us, 0, SHARE_MAX)

cdef inline bint tempo_change(tempo_t* tempo, uint64_t pace_us, uint64_t now_us) noexcept nogil:
    cdef uint64_t old = tempo.pace_us
    pace_us = tempo_clamp((pace_us + SLOT_US - 1) // SLOT_US * SLOT_US,
                          tempo.floor_us, tempo.ceiling_us)
    tempo.calm = 0
    if pace_us == old:
        return False
    tempo.pace_us = pace_us
    # all are served, and so moved, within the old pace; more than the wheel moves at once, later
    tempo.settled_us = now_us + old + MOVES_PART * SLOT_US
    tempo.window_us = 0
    return True

cdef inline bint tempo_up(
    tempo_t* tempo, uint64_t share, uint64_t step, uint64_t now_us
) noexcept nogil:
    # So far that the target is met, but one step at most. share: of those who follow.
    cdef uint64_t most = tempo.pace_us * step // 1000
    cdef uint64_t pace_us = tempo.pace_us * share // tempo_mark(tempo, SHARE_TARGET)
    return tempo_change(tempo, pace_us if pace_us < most else most, now_us)

cdef inline bint tempo_back(tempo_t* tempo, uint64_t listeners, uint64_t now_us) noexcept nogil:
    # One small step, a slot at least; not where slots are so coarse that it would be too far.
    cdef uint64_t pace_us = tempo.pace_us * STEP_BACK // 1000
    if pace_us + SLOT_US > tempo.pace_us:
        pace_us = tempo.pace_us - SLOT_US if tempo.pace_us > SLOT_US else SLOT_US
    pace_us = tempo_clamp(pace_us, tempo.floor_us, tempo.ceiling_us)
    if tempo_follow_share(tempo, listeners, pace_us) > tempo_mark(tempo, SHARE_TARGET):
        return False
    return tempo_change(tempo, pace_us, now_us)

cdef inline void tempo_measure(tempo_t* tempo, uint64_t listeners, uint64_t now_us) noexcept nogil:
    # Closes a window. Serving is held against the time by which the schedule went on: where it was
    # put off, less of it was served than was due. Half of the outcome is the one before.
    cdef uint64_t wall_us = now_us - tempo.window_us
    cdef uint64_t went_us = wall_us - tempo.behind_us if tempo.behind_us < wall_us else 0
    cdef uint64_t share = tempo_clamp(tempo.other_us * 1000 // wall_us, 0, 1000)
    went_us = went_us if went_us > wall_us // 8 else wall_us // 8
    tempo.known = (listeners + tempo.began_with + 1) // 2
    tempo.visit_ns += tempo.serve_us * 1000 * tempo.pace_us // (went_us * tempo.known)
    tempo.visit_ns = (tempo.visit_ns + 1) // 2
    tempo.fixed_share += tempo_clamp(tempo.fixed_us * 1000 // went_us, 0, SHARE_MAX)
    tempo.fixed_share //= 2
    tempo.other_share = ((OTHER_PART - 1) * tempo.other_share + share) // OTHER_PART
    tempo.window_us = 0

cdef inline bint tempo_judge(tempo_t* tempo, uint64_t listeners, uint64_t now_us) noexcept nogil:
    # At the end of a window.
    cdef uint64_t share = tempo_follow_share(tempo, listeners, tempo.pace_us)
    cdef bint urgent = share > tempo_mark(tempo, SHARE_URGENT)
    if share > tempo_mark(tempo, SHARE_HIGH):
        return tempo_up(tempo, share, STEP_URGENT if urgent else STEP_UP, now_us)
    if share >= tempo_mark(tempo, SHARE_LOW):
        tempo.calm = 0
        return False
    tempo.calm += 1
    if tempo.calm < <uint32_t>CALM_WINDOWS:
        return False
    return tempo_back(tempo, listeners, now_us)

cdef inline bint tempo_turn(
    tempo_t* tempo, uint64_t listeners, uint64_t now_us, uint64_t serve_us, uint64_t fixed_us,
    uint64_t other_us, uint64_t behind_us,
) noexcept nogil:
    # Once a turn, with what it has cost. listeners: whose mounts leave a choice; serve_us: those
    # who follow the pace now, fixed_us: the others. True: the pace is another one from here on.
    cdef uint64_t share
    if listeners == 0:        # nobody is there to be disturbed
        tempo.window_us = 0
        return tempo.pace_us != tempo.floor_us and tempo_change(tempo, tempo.floor_us, now_us)
    if now_us >= tempo.judged_us + URGENT_EVERY_US:
        tempo.judged_us = now_us
        share = tempo_follow_share(tempo, listeners, tempo.pace_us)
        if share > tempo_mark(tempo, SHARE_URGENT) and tempo_up(tempo, share, STEP_URGENT, now_us):
            return True
    if now_us < tempo.settled_us:   # listeners move as the schedule goes on, not as time does
        tempo.settled_us += behind_us
        return False
    if tempo.window_us == 0:
        tempo.window_us = now_us
        tempo.serve_us = tempo.fixed_us = tempo.other_us = tempo.behind_us = 0
        tempo.began_with = <uint32_t>listeners
        return False
    tempo.serve_us += serve_us
    tempo.fixed_us += fixed_us
    tempo.other_us += other_us
    tempo.behind_us += behind_us
    if now_us - tempo.window_us < WINDOW_US or now_us - tempo.window_us < tempo.pace_us:
        return False
    tempo_measure(tempo, listeners, now_us)
    return tempo_judge(tempo, listeners, now_us)

cdef inline uint64_t tempo_pace_us(
    const tempo_t* tempo, uint64_t floor_us, uint64_t ceiling_us
) noexcept nogil:
    # The pace of a mount with these bounds; a fixed pace is both of them.
    return tempo_clamp(tempo.pace_us, floor_us, ceiling_us)

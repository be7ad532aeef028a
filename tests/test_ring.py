"""The ring beside a plain Python model of it: any order of frames, holes, repairs and lies."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_data import RingProbe

START, HEADER, CHAIN, TITLE = 1, 2, 4, 8
PLACED, DUPLICATE, FAR, BAD = 1, 0, -1, -2
PAGE = 4096
HUGE = [2**31, 2**32, 2**61, 2**62, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@dataclass
class Frame:
    """One frame of a tape: what a source sent, whether or not it arrives."""

    sequence: int
    position: int
    media_us: int
    data: bytes
    duration_us: int
    flags: int

    @property
    def end(self) -> int:
        """The position after its last byte of audio."""
        return self.position + (0 if self.flags & TITLE else len(self.data))

    @property
    def entry(self) -> tuple[int, int, int, int, int]:
        """What the index says of it."""
        return self.position, len(self.data), self.media_us, self.duration_us, self.flags


def tape_of(seed: int, count: int, *, size_max: int = 3000, sequence: int = 0, position: int = 0):
    """A run of frames, the same for the same arguments: a third are starts, a few are titles."""
    rng = random.Random(seed)
    tape, media_us = [], 0
    for i in range(count):
        flags = rng.choice([0, 0, START]) if rng.random() > 0.1 else TITLE
        size = min(rng.choice([1, 17, 400, 1400, size_max]), size_max if flags != TITLE else 40)
        duration_us = 0 if flags == TITLE else 20_000
        tape.append(
            Frame(sequence + i, position, media_us, rng.randbytes(size), duration_us, flags)
        )
        position, media_us = tape[-1].end, media_us + duration_us
    return tape


@dataclass
class Model:
    """What ring.pxd promises, with lists and loops instead of clever searches."""

    tape: list[Frame]
    size: int
    count: int
    head: int = 0
    base: int = 0
    reserved: int = 0
    reserved_position: int = 0
    slots: dict[int, int] = field(default_factory=dict)
    holes: list[tuple[int, int, int]] = field(default_factory=list)

    def has(self, sequence: int) -> bool:
        """Is this frame in its slot?"""
        return self.slots.get(sequence % self.count) == sequence

    def position(self, sequence: int) -> int:
        """Where a frame of the tape (or the end of the tape) lies."""
        return self.tape[sequence].position if sequence < len(self.tape) else self.tape[-1].end

    @property
    def guard(self) -> int:
        """A fifth of the ring."""
        return self.size // 5

    def place(self, frame: Frame) -> int:
        """The answer of ring_place, for a frame that tells the truth."""
        sequence, reach = frame.sequence, self.size - self.guard
        if sequence < self.base:
            index_reach = self.count - self.count // 8
            if self.reserved - sequence > index_reach:
                return FAR
            if self.reserved_position - frame.position > reach:
                return FAR
            if self.has(sequence):
                return DUPLICATE
            self.store(frame)
            while self.base > 0 and self.has(self.base - 1):
                self.base -= 1
            return PLACED
        if sequence < self.head:
            return DUPLICATE
        if sequence > self.head:
            ahead = frame.end - self.position(self.head)
            if sequence - self.head >= self.count // 2 or ahead > reach // 2:
                return FAR
            if self.has(sequence):
                return DUPLICATE
        self.store(frame)
        self.advance()
        return PLACED

    def store(self, frame: Frame) -> None:
        """A frame takes its slot."""
        self.slots[frame.sequence % self.count] = frame.sequence
        self.reserved = max(self.reserved, frame.sequence + 1)
        self.reserved_position = max(self.reserved_position, frame.end)

    def advance(self) -> None:
        """The head passes all that connects."""
        while self.has(self.head):
            self.head += 1

    def give_up(self) -> int:
        """The head jumps to the next frame that is here; at most 8 lost runs are remembered."""
        here = [s for s in range(self.head, self.reserved) if self.has(s)]
        lost = here[0] - self.head if here else 0
        if lost:
            to = here[0]
            if len(self.holes) >= 8:
                self.base = max(self.base, self.holes[-8][2])
            self.holes.append((self.position(self.head), self.position(to), to))
            self.head = to
            self.advance()
        return lost

    def resized(self, size: int, count: int) -> Model | None:
        """The same frames, as far as they fit, in another ring."""
        if self.reserved != self.head:
            return None
        keep = [
            s
            for s in self.readable()
            if self.position(self.head) - self.position(s) <= size - size // 5
            and self.head - s <= count - count // 8
        ]
        base = keep[0] if keep else self.head
        other = Model(self.tape, size, count, self.head, base, self.head, holes=list(self.holes))
        other.slots = {s % count: s for s in keep}
        other.reserved_position = self.position(self.head)
        return other

    @property
    def tail_position(self) -> int:
        """The oldest byte that may be read."""
        behind = self.reserved_position - (self.size - self.guard)
        return max(self.position(self.base), behind)

    def readable(self) -> list[int]:
        """All frames that may be read, in order."""
        low = max(self.base, self.reserved - (self.count - self.count // 8))
        return [
            s
            for s in range(low, self.head)
            if self.has(s) and self.position(s) >= self.tail_position
        ]

    def readable_end(self, position: int) -> int:
        """The head or the next lost run, whatever the ring remembers of it."""
        begins = [a for a, b, _ in self.holes if b > position and a < self.position(self.head)]
        return max(position, min([*begins, self.position(self.head)]))

    def burst(self, burst_us: int) -> int:
        """The oldest start within the burst, else the newest start; not across a lost run."""
        whole: list[int] = []
        head_media = self.tape[self.head - 1].media_us + self.tape[self.head - 1].duration_us
        for s in reversed(self.readable()):
            if s != self.head - 1 - len(whole):
                break
            whole.append(s)
        starts = [s for s in whole if self.tape[s].flags & START]
        near = [s for s in starts if head_media - self.tape[s].media_us <= burst_us]
        return min(near) if near else max(starts, default=self.head)


def check_readers(ring: RingProbe, model: Model) -> None:
    """All readers' answers, the bytes and the index, against the model's."""
    state, readable, tape = ring.state, model.readable(), model.tape
    assert state["head_sequence"] == model.head
    assert state["head_position"] == model.position(model.head)
    assert state["reserved_sequence"] == model.reserved
    assert state["base_sequence"] == model.base
    assert state["base_position"] == model.position(model.base)
    assert state["tail_position"] == model.tail_position
    assert state["tail_sequence"] == (readable[0] if readable else model.head)
    for s in readable:
        assert ring.entry(s) == tape[s].entry
        if not tape[s].flags & TITLE:
            assert ring.bytes_at(tape[s].position, len(tape[s].data)) == tape[s].data
    head = model.position(model.head)
    edges = {p for s in readable[:3] + readable[-3:] for p in (tape[s].position, tape[s].end)}
    edges |= {p for hole in model.holes[-8:] for p in hole[:2]} | {head, model.tail_position}
    for p in sorted({q + d for q in edges for d in (-1, 0, 1)}):
        if model.tail_position <= p <= head:
            assert ring.readable_end(p) == model.readable_end(p)
        at = [s for s in readable if tape[s].end > p] if p >= 0 else readable
        if p >= 0:
            assert ring.sequence_at(p) == (at[0] if at else model.head)
            starts = [s for s in at if tape[s].flags & START and tape[s].position >= p]
            assert ring.start_after(p) == (starts[0] if starts else model.head)
    if model.head:
        for burst_us in (0, 100_000, 10**9):
            assert ring.burst_sequence(burst_us) == model.burst(burst_us)


def place(ring: RingProbe, frame: Frame) -> int:
    """Places one frame of a tape."""
    return ring.place(
        frame.sequence, frame.position, frame.media_us, frame.data, frame.duration_us, frame.flags
    )


def ring_of(size: int = 16 * PAGE, frames: int = 64, **begin: int) -> RingProbe:
    """A small ring."""
    return RingProbe(size, frames, **begin)


# --- order, duplicates, holes ---------------------------------------------------------------------


@given(st.integers(0, 2**32), st.permutations(range(24)), st.lists(st.integers(0, 23), max_size=9))
def test_any_order_of_a_run_gives_the_same_bytes_and_head(seed, order, again):
    """Whatever the order and the repetitions, the ring ends as the source sent it."""
    tape, ring = tape_of(seed, 24, size_max=800), ring_of()
    for sequence in order:
        assert place(ring, tape[sequence]) == PLACED
        for other in again:
            if other in order[: order.index(sequence) + 1]:
                assert place(ring, tape[other]) == DUPLICATE
    audio = b"".join(frame.data for frame in tape if not frame.flags & TITLE)
    assert ring.state["head_sequence"] == 24
    assert ring.state["head_position"] == len(audio)
    assert ring.bytes_at(0, len(audio)) == audio


RUN_SIZES = [1, 17, 400, 400, 400, 1400, 3000]
RUN_SIZES_REFUSED = [0, 20_000, 65_536, 65_537]
RUN_FLAGS = [0, 0, 0, START, START, CHAIN, TITLE, HEADER, HEADER | CHAIN, TITLE | START]
RUN_OPERATIONS = st.tuples(
    st.sampled_from(["run", "run", "run", "odd run", "ahead", "give up", "aside"]),
    st.integers(1, 60),
)


def run_after(ring: RingProbe, rng: random.Random, count: int, *, odd: bool, ahead: int = 0):
    """Frames in a row from the head on (or `ahead` frames of 400 bytes later)."""
    state, frames = ring.state, []
    sequence, position = state["head_sequence"] + ahead, state["head_position"] + 400 * ahead
    media_us = state["head_media_us"] + 20_000 * ahead
    for i in range(count):
        flags = rng.choice(RUN_FLAGS) if odd else rng.choice([0, START])
        size = rng.choice(RUN_SIZES + RUN_SIZES_REFUSED * (odd and rng.random() < 0.2))
        duration_us = rng.choice([0, 20_000, 26_122, 60_000_000])
        frames.append(
            Frame(sequence + i, position, media_us, rng.randbytes(size), duration_us, flags)
        )
        position, media_us = frames[-1].end, media_us + duration_us
    return frames


def place_in_runs(ring: RingProbe, frames: list[Frame]) -> list[int]:
    """The answers for all frames: as many at once as can be, the others one by one."""
    answers: list[int] = []
    while len(answers) < len(frames):
        rest = frames[len(answers) :]
        records = [(frame.data, frame.duration_us, frame.flags) for frame in rest]
        taken = ring.place_run(rest[0].sequence, rest[0].position, rest[0].media_us, records)
        answers += [PLACED] * taken if taken else [place(ring, rest[0])]
    return answers


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(RUN_OPERATIONS, max_size=40),
    st.sampled_from([(6, 64), (16, 256), (400, 2048), (6, 16)]),
    st.sampled_from([0, 7, 2**32 - 20, 2**62 - 3_000, 2**62 - 20]),
)
def test_runs_placed_at_once_and_frame_by_frame_are_the_same(seed, operations, shape, begin):
    """Titles, header pages, holes, frames ahead, refused sizes, great numbers: no difference."""
    pages, count = shape
    numbers = {"sequence": begin, "position": begin, "media_us": begin}
    fast, slow = (RingProbe(pages * PAGE, count, **numbers) for _ in range(2))
    rng = random.Random(seed)
    for name, value in operations:
        if name == "give up":
            assert fast.give_up() == slow.give_up()
        else:
            ahead = value % 5 + 1 if name == "ahead" else 0
            frames = run_after(slow, rng, value, odd=name == "odd run", ahead=ahead)
            if name == "aside":  # a run that does not begin where the head is
                for frame in frames:
                    frame.position += value
            assert place_in_runs(fast, frames) == [place(slow, frame) for frame in frames]
        state = fast.state
        assert state == slow.state
        head = state["head_sequence"]
        for sequence in range(max(begin, head - count), head + 70):
            assert fast.entry(sequence) == slow.entry(sequence)
        assert fast.bytes_at(0, pages * PAGE) == slow.bytes_at(0, pages * PAGE)
        assert fast.header(head) == slow.header(head)
        assert fast.title(state["head_position"]) == slow.title(state["head_position"])


@pytest.mark.parametrize("offset", [-1, 1])
def test_run_beside_the_head_is_not_taken_at_once(offset):
    """Late, early or at another position: nothing is written, ring_place has to judge."""
    ring = ring_of(16 * PAGE, 256)
    for frame in plain_tape(4):
        place(ring, frame)
    before = ring.state, ring.bytes_at(0, 16 * PAGE)
    records = [(b"x" * 100, 20_000, 0)] * 3
    assert ring.place_run(4 + offset, 400, 80_000, records) == 0
    assert ring.place_run(4, 400 + offset, 80_000, records) == 0
    assert (ring.state, ring.bytes_at(0, 16 * PAGE)) == before
    assert ring.place_run(4, 400, 80_000, records) == 3


@pytest.mark.parametrize("refused", [b"", b"x" * 65_537])
def test_run_ends_before_a_size_that_no_frame_has(refused):
    """ring_place refuses it, so a run does not take it either, whatever the ring could hold."""
    ring = ring_of(400 * PAGE, 256)
    records = [(b"x" * 400, 20_000, 0), (refused, 20_000, 0), (b"x" * 400, 20_000, 0)]
    assert ring.place_run(0, 0, 0, records) == 1
    assert ring.place_run(1, 400, 20_000, records[1:]) == 0
    assert ring.place(1, 400, 20_000, refused, 20_000, 0) == BAD


@pytest.mark.parametrize("name", ["sequence", "position", "media_us"])
def test_run_at_the_end_of_the_numbers_is_left_to_ring_place(name):
    """Past 2^62 nothing is taken: near it frames go in one by one."""
    begin = {"sequence": 0, "position": 0, "media_us": 0, name: 2**62}
    ring = ring_of(16 * PAGE, 256, **begin)
    records = [(b"x" * 400, 20_000, 0)] * 3
    assert ring.place_run(begin["sequence"], begin["position"], begin["media_us"], records) == 0


OPERATIONS = st.one_of(
    st.tuples(st.just("place"), st.integers(-6, 20)),
    st.tuples(st.just("run"), st.integers(1, 30)),
    st.tuples(st.just("give_up"), st.just(0)),
    st.tuples(st.just("back"), st.integers(1, 12)),
    st.tuples(st.just("resize"), st.sampled_from([(4, 16), (6, 64), (9, 32), (16, 128)])),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.lists(OPERATIONS, max_size=60))
def test_ring_and_model_agree_after_any_history(seed, operations):
    """Frames early, late and twice, losses, repairs and resizes: all readers stay right."""
    tape = tape_of(seed, 2000)
    ring, model = ring_of(6 * PAGE, 64), Model(tape, 6 * PAGE, 64)
    for name, value in operations:
        if name == "resize":
            pages, frames = value
            other = model.resized(pages * PAGE, frames)
            if other is None:
                with pytest.raises(MemoryError):
                    RingProbe(pages * PAGE, frames, resized=ring)
            else:
                ring, model = RingProbe(pages * PAGE, frames, resized=ring), other
        elif name == "give_up":
            assert ring.give_up() == model.give_up()
        elif name == "run":
            for _ in range(value):
                assert place(ring, tape[model.head]) == model.place(tape[model.head])
        else:
            at = model.head + value if name == "place" else model.base - value
            if 0 <= at < len(tape):
                assert place(ring, tape[at]) == model.place(tape[at])
        check_readers(ring, model)


def test_head_never_passes_a_hole():
    """Frames ahead of a missing one wait; the missing one lets all of them through."""
    tape, ring = tape_of(1, 10, size_max=400), ring_of()
    for frame in tape[:3] + tape[4:]:
        assert place(ring, frame) == PLACED
    assert ring.state["head_sequence"] == 3
    assert ring.readable_end(0) == tape[3].position
    assert place(ring, tape[3]) == PLACED
    assert ring.state["head_sequence"] == 10


def test_give_up_answers_0_without_a_hole():
    """An empty and a whole ring have nothing to lose."""
    ring = ring_of()
    assert ring.give_up() == 0
    place(ring, tape_of(1, 1)[0])
    assert ring.give_up() == 0
    assert ring.state["holes_total"] == 0


def lose_every_second(ring: RingProbe, tape: list[Frame]) -> None:
    """Frames 0, 2, 4 … arrive, all others are lost."""
    for frame in tape[::2]:
        place(ring, frame)
        ring.give_up()


def plain_tape(count: int, size: int = 100, sequence: int = 0, position: int = 0) -> list[Frame]:
    """Frames of one size, each a start, each with its own bytes."""
    return [
        Frame(sequence + i, position + i * size, i * 20_000, bytes([i % 251]) * size, 20_000, START)
        for i in range(count)
    ]


def test_ninth_hole_puts_all_before_the_forgotten_one_out_of_reach():
    """Eight lost runs are remembered; what lies before the ninth newest is not read any more."""
    tape, ring = plain_tape(21), ring_of()
    lose_every_second(ring, tape)  # lost: 1, 3, … 19: ten holes, two of them forgotten
    state = ring.state
    assert state["holes_total"] == 10
    assert (state["base_sequence"], state["base_position"]) == (4, 400)
    assert state["tail_sequence"] == 4
    assert [ring.readable_end(p) for p in (0, 150, 399)] == [0, 150, 399]
    assert ring.readable_end(400) == 500


def test_forgotten_hole_may_still_be_repaired():
    """A lost run before the base can come back; then the base goes back over it."""
    tape, ring = plain_tape(21), ring_of()
    lose_every_second(ring, tape)
    assert place(ring, tape[3]) == PLACED
    assert ring.state["base_sequence"] == 2
    assert place(ring, tape[5]) == DUPLICATE  # a remembered hole is lost, once
    assert ring.bytes_at(200, 300) == b"".join(frame.data for frame in tape[2:5])
    assert ring.readable_end(200) == 500


def test_reader_in_a_hole_goes_on_at_the_next_start():
    """start_after and sequence_at land behind the lost run; the burst does not reach before it."""
    tape, ring = plain_tape(12), ring_of()
    for frame in tape[:4] + tape[8:]:
        place(ring, frame)
    assert ring.give_up() == 4
    assert ring.readable_end(tape[2].position) == 400
    assert ring.readable_end(400) == 400
    assert ring.sequence_at(401) == 8
    assert ring.start_after(400) == 8
    assert ring.burst_sequence(10**9) == 8


# --- backfill -------------------------------------------------------------------------------------


@given(st.permutations(range(16)))
def test_backfill_in_any_order_moves_the_base_back_over_what_connects(order):
    """A ring that began at frame 16 gets its tail; nobody reads it before it connects."""
    tape = tape_of(5, 20, size_max=400)
    ring = ring_of(sequence=16, position=tape[16].position)
    for frame in tape[16:]:
        assert place(ring, frame) == PLACED
    here = set(range(16, 20))
    for sequence in order:
        assert place(ring, tape[sequence]) == PLACED
        assert place(ring, tape[sequence]) == DUPLICATE
        here.add(sequence)
        base = 16
        while base - 1 in here:
            base -= 1
        assert ring.state["base_sequence"] == base
        assert ring.state["base_position"] == tape[base].position
    assert ring.bytes_at(0, tape[19].end) == b"".join(f.data for f in tape if f.flags != TITLE)


def test_backfill_beyond_the_reach_is_far():
    """What would lie in the guard, or under newer index entries, is refused."""
    tape = plain_tape(100, 1000)
    ring = ring_of(16 * PAGE, 64, sequence=60, position=60_000)
    assert place(ring, tape[60]) == PLACED
    assert place(ring, tape[61 - 52 - 1]) == FAR
    assert place(ring, tape[61 - 52]) == PLACED


# --- what contradicts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "answer"),
    [
        (Frame(5, 501, 0, b"x" * 100, 20_000, 1), BAD),  # at the head, at another position
        (Frame(5, 499, 0, b"x" * 100, 20_000, 1), BAD),
        (Frame(7, 499, 0, b"x" * 100, 20_000, 1), BAD),  # ahead, before the head
        (Frame(9, 901, 0, b"x" * 100, 20_000, 1), BAD),  # does not reach its neighbour
        (Frame(9, 900, 0, b"x" * 99, 20_000, 1), BAD),
        (Frame(11, 1101, 0, b"x" * 100, 20_000, 1), BAD),
        (Frame(5 + 32, 3700, 0, b"x" * 100, 20_000, 1), FAR),
        (Frame(30, 40_000, 0, b"x" * 100, 20_000, 1), FAR),
        (Frame(5, 500, 0, b"", 20_000, 1), BAD),
        (Frame(5, 500, 0, b"x" * 65_537, 20_000, 1), BAD),
        (Frame(5, 500, 0, b"x" * 13_108, 20_000, 1), FAR),  # more than the guard
        (Frame(5, 500, 0, b"x" * 4081, 0, TITLE), BAD),
        (Frame(5, 500, 0, b"title", 0, TITLE | HEADER), BAD),
        (Frame(5, 500, 0, b"title", 0, TITLE | START), BAD),
        (Frame(5, 500, 2**62 + 1, b"x", 20_000, 1), BAD),
        (Frame(3, 300, 0, b"x" * 100, 20_000, 1), DUPLICATE),
    ],
)
def test_frame_that_contradicts_is_refused_and_changes_nothing(frame, answer):
    """Each lie has its answer, and the ring is as before."""
    tape, ring = plain_tape(20), ring_of()
    for known in [*tape[:5], tape[10]]:
        place(ring, known)
    before = ring.state
    assert place(ring, frame) == answer
    assert ring.state == before
    assert ring.bytes_at(0, 500) == b"".join(known.data for known in tape[:5])


def test_frame_may_be_ahead_by_half_of_what_readers_may_use():
    """Half the index, half the bytes outside the guard: the last that fits, the first too far."""
    ring = ring_of(5 * PAGE, 64)
    assert ring.place(9, 2 * PAGE - 9, 0, b"x" * 10, 20_000) == FAR
    assert ring.place(9, 2 * PAGE - 10, 0, b"x" * 10, 20_000) == PLACED
    assert ring.place(32, 2 * PAGE, 0, b"x", 20_000) == FAR
    assert ring.place(31, 2 * PAGE, 0, b"title", 0, TITLE) == PLACED


def test_lying_frame_far_ahead_cannot_pull_the_head_back():
    """An island that claims a position before another one is taken as lost, not as a way back."""
    ring = ring_of()
    assert ring.place(10, 5000, 0, b"a" * 100, 20_000) == PLACED
    assert ring.place(20, 300, 0, b"b" * 100, 20_000) == PLACED
    assert ring.place(25, 5500, 0, b"c" * 100, 20_000) == PLACED
    assert ring.give_up() == 10
    assert ring.state["head_position"] == 5100
    assert ring.give_up() == 14
    assert ring.state["head_position"] == 5600
    assert ring.entry(20) is None
    assert ring.sequence_at(5100) == 25
    assert ring.burst_sequence(10**9) == 25


NUMBER = st.one_of(
    st.integers(0, 200), st.integers(0, 2**64 - 1), st.sampled_from(HUGE), st.just(2**62 - 30)
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([0, 5, 2**31 - 3, 2**32 - 3, 2**62 - 5]),
    st.sampled_from([0, 5000, 2**32 - 300, 2**62 - 3000]),
    st.lists(
        st.tuples(
            st.integers(-40, 70),
            st.integers(-9000, 9000),
            st.one_of(st.just(None), NUMBER),
            st.integers(0, 5000),
            st.integers(0, 2**32 - 1),
            st.booleans(),
        ),
        max_size=40,
    ),
    NUMBER,
)
def test_hostile_numbers_never_break_the_invariants(begin, position, hostile, probe):
    """Lies about every number: base ≤ tail ≤ head ≤ reserved, positions rise, readers answer."""
    ring = ring_of(4 * PAGE, 32, sequence=begin, position=position)
    head, head_position = begin, position
    for ahead, offset, number, size, flags, give_up in hostile:
        sequence = number if number is not None and flags & 16 else head + ahead
        where = number if number is not None and flags & 32 else head_position + offset
        media_us = number if number is not None and flags & 64 else 0
        if 0 <= sequence < 2**64 and 0 <= where < 2**64:
            ring.place(sequence, where, media_us, b"h" * size, flags, flags)
        if give_up:
            ring.give_up()
        state = ring.state
        assert state["head_position"] >= head_position
        assert state["head_sequence"] >= head
        head, head_position = state["head_sequence"], state["head_position"]
        assert (
            state["base_sequence"] <= state["tail_sequence"] <= head <= state["reserved_sequence"]
        )
        assert (
            state["base_position"] <= head_position <= state["reserved_position"] <= 2**62 + 65_536
        )
        present = [e for s in range(state["tail_sequence"], head) if (e := ring.entry(s))]
        assert [e[0] for e in present] == sorted(e[0] for e in present)
        assert all(e[0] + (0 if e[4] & TITLE else e[1]) <= head_position for e in present)
        for reader in (ring.sequence_at, ring.start_after):
            assert state["tail_sequence"] <= reader(probe) <= head
        assert probe <= ring.readable_end(probe) <= max(probe, head_position)
        assert ring.burst_sequence(probe) <= head
        ring.header(probe)
        ring.title(probe)


@pytest.mark.parametrize("huge", [2**62 + 1, 2**63, 2**64 - 1])
def test_ring_does_not_open_beyond_the_bounds(huge):
    """Sizes and beginnings from elsewhere are bounded before use."""
    for size, frames, begin in [
        (0, 8, {}),
        (huge, 8, {}),
        (PAGE, huge, {}),
        (PAGE, (1 << 20) + 1, {}),
        (PAGE, 8, {"sequence": huge}),
        (PAGE, 8, {"position": huge}),
        (PAGE, 8, {"media_us": huge}),
    ]:
        with pytest.raises(MemoryError):
            RingProbe(size, frames, **begin)


def test_head_stops_at_the_last_number():
    """At the end of all numbers frames are refused instead of wrapping around."""
    ring = ring_of(sequence=2**62, position=2**62)
    assert ring.place(2**62, 2**62, 0, b"last", 1) == PLACED
    assert ring.place(2**62 + 1, 2**62 + 4, 0, b"more", 1) == BAD
    assert ring.bytes_at(2**62, 4) == b"last"


# --- being overtaken ------------------------------------------------------------------------------


def test_run_is_overtaken_when_one_byte_of_it_is_reserved_again():
    """Exactly the ring's size behind the writer is whole; one byte further is not."""
    ring = ring_of(4 * PAGE, 64)
    for frame in plain_tape(20, 1024):
        place(ring, frame)
    edge = 20 * 1024 - 4 * PAGE
    assert not ring.was_overtaken(edge)
    assert ring.was_overtaken(edge - 1)


def test_entry_is_overtaken_when_its_slot_is_taken_again():
    """An index of 64 entries holds the last 64 frames and no other."""
    ring = ring_of(16 * PAGE, 64)
    for frame in plain_tape(70, 10):
        place(ring, frame)
    assert [ring.entry(s) is not None for s in (0, 5, 6, 69, 70)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert ring.entry_was_overtaken(5)
    assert not ring.entry_was_overtaken(6)


def test_new_readers_keep_a_guard_away_from_the_writer():
    """The tail is a fifth of the bytes and an eighth of the index away from being overtaken."""
    ring = ring_of(5 * PAGE, 64)
    for frame in plain_tape(200, 1000):
        place(ring, frame)
    assert ring.state["tail_position"] == 200_000 - 4 * PAGE
    assert ring.state["tail_sequence"] == 184
    ring = ring_of(50 * PAGE, 64)
    for frame in plain_tape(200, 10):
        place(ring, frame)
    assert ring.state["tail_sequence"] == 200 - 56


def test_long_frame_crosses_the_wrap_in_one_piece():
    """The mirrored mapping: a run over the end of the ring is read at one go."""
    ring, data = ring_of(5 * PAGE, 64), bytes(range(256)) * 16
    for i in range(50):
        assert ring.place(i, i * 4000, 0, data[i : i + 4000], 20_000) == PLACED
        assert ring.bytes_at(i * 4000, 4000) == data[i : i + 4000]


@pytest.mark.parametrize("size", [1, 65_536])
def test_smallest_and_largest_frame(size):
    """One byte and 65,536 bytes pass; the ring must be five times as large."""
    ring, data = ring_of(5 * 65_536, 64), bytes(i % 251 for i in range(size))
    for i in range(12):
        assert ring.place(i, i * size, 0, data, 20_000) == PLACED
    assert ring.bytes_at(11 * size, size) == data


# --- titles and headers ---------------------------------------------------------------------------


def test_title_holds_from_its_place_on():
    """A cursor gets the newest title at or before it; a late one takes its own place."""
    ring = ring_of()
    ring.place(0, 0, 0, b"x" * 10, 20_000)
    ring.place(1, 10, 0, b"one", 0, TITLE)
    ring.place(2, 10, 0, b"x" * 10, 20_000)
    ring.place(4, 20, 0, b"x" * 10, 20_000)
    ring.place(3, 20, 0, b"two", 0, TITLE)
    assert [ring.title(p) for p in (9, 10, 19, 20, 99)] == [None, b"one", b"one", b"two", b"two"]
    assert ring.state["head_position"] == 30


def test_ninth_title_replaces_the_oldest_and_a_late_one_replaces_none():
    """Eight titles are kept, the newest; a repair of an older one does not push one of them out."""
    ring = ring_of(sequence=1, position=10)
    for i in range(9):
        ring.place(2 * i + 1, 10 + 10 * i, 0, b"t%d" % i, 0, TITLE)
        ring.place(2 * i + 2, 10 + 10 * i, 0, b"x" * 10, 20_000)
    assert [ring.title(p) for p in (10, 20, 90)] == [None, b"t1", b"t8"]
    assert ring.place(0, 10, 0, b"late", 0, TITLE) == PLACED
    assert [ring.title(p) for p in (10, 20, 90)] == [None, b"t1", b"t8"]


def push_chain(ring: RingProbe, name: bytes, pages: int = 2, audio: int = 3) -> int:
    """A chain: header pages, then audio; returns the sequence of its first audio frame."""
    state = ring.state
    sequence, position = state["head_sequence"], state["head_position"]
    kinds = [HEADER | CHAIN] + [HEADER] * (pages - 1) + [START] * audio
    for i, flags in enumerate(kinds):
        data = name + b"%d" % i
        assert ring.place(sequence + i, position, 0, data, 20_000, flags) == PLACED
        position += len(data)
    return sequence + pages


def test_header_is_kept_for_those_who_begin_after_it():
    """A reader gets the header pages of its own chain, not of an earlier or a later one."""
    ring = ring_of()
    assert ring.header(0) is None
    firsts = [push_chain(ring, name) for name in (b"a", b"b")]
    assert [ring.header(s) for s in firsts] == [b"a0a1", b"b0b1"]
    assert ring.header(firsts[1] - 1) == b"a0a1"


def test_fifth_header_replaces_the_oldest_also_after_a_resize():
    """Four headers are kept, and a resize does not forget which is the oldest."""
    ring = ring_of()
    firsts = [push_chain(ring, b"%c" % (97 + i)) for i in range(5)]
    assert [ring.header(s) for s in firsts] == [None, b"b0b1", b"c0c1", b"d0d1", b"e0e1"]
    ring = RingProbe(8 * PAGE, 64, resized=ring)
    firsts.append(push_chain(ring, b"f"))
    assert [ring.header(s) for s in firsts[2:]] == [b"c0c1", b"d0d1", b"e0e1", b"f0f1"]
    assert ring.header(firsts[1]) is None


def test_title_between_header_pages_does_not_end_the_header():
    """The first audio frame completes a header, a title does not."""
    ring = ring_of()
    ring.place(0, 0, 0, b"h0", 0, HEADER | CHAIN)
    ring.place(1, 2, 0, b"title", 0, TITLE)
    ring.place(2, 2, 0, b"h1", 0, HEADER)
    ring.place(3, 4, 0, b"audio", 20_000, START)
    assert ring.header(3) == b"h0h1"


def test_header_with_a_lost_page_is_not_published():
    """A hole inside the header pages: no header is better than half of one."""
    ring = ring_of()
    ring.place(0, 0, 0, b"h0", 0, HEADER | CHAIN)
    ring.place(2, 4, 0, b"h2", 0, HEADER)
    ring.place(3, 6, 0, b"audio", 20_000, START)
    assert ring.give_up() == 1
    assert ring.header(3) is None


def test_header_above_its_bound_is_not_published():
    """More than 1 MiB of header pages is no header, and the pages that fit are not half of one."""
    ring = ring_of(5 * 65_536, 64)
    for i in range(17):
        flags = HEADER | (CHAIN if i == 0 else 0)
        ring.place(i, i * 65_536, 0, b"h" * 65_536, 0, flags)
    ring.place(17, 17 * 65_536, 0, b"audio", 20_000, START)
    assert ring.header(17) is None


# --- resizing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pages", "frames"), [(32, 256), (8, 64), (2, 8), (16, 8), (1, 64)])
def test_resized_ring_holds_the_newest_frames_at_their_positions(pages, frames):
    """Up and down, with lost runs, titles and headers: positions stay, holes stay."""
    ring = ring_of(16 * PAGE, 64)
    first = push_chain(ring, b"head", audio=1)
    begin, at = first + 1, ring.state["head_position"]
    tape = plain_tape(40, 1000, begin, at)
    for frame in tape:
        if frame.sequence - begin not in (20, 21, 30):
            place(ring, frame)
            ring.give_up()
    ring.place(begin + 40, at + 40_000, 0, b"now", 0, TITLE)
    other = RingProbe(pages * PAGE, frames, resized=ring)
    for name in ("head_sequence", "head_position", "head_media_us", "holes_total"):
        assert other.state[name] == ring.state[name]
    assert other.title(at + 40_000) == b"now"
    assert other.header(begin) == b"head0head1"
    tail = other.state["tail_sequence"]
    assert ring.entry(tail) is not None
    for sequence in range(tail, begin + 40):
        assert other.entry(sequence) == ring.entry(sequence)
    position = other.state["tail_position"]
    assert other.bytes_at(position, 1000) == ring.bytes_at(position, 1000)
    for hole in (at + 20_000, at + 30_000):
        if hole >= position:
            assert other.readable_end(hole) == hole
    place(other, Frame(begin + 41, at + 40_000, 0, b"after", 20_000, START))
    assert other.bytes_at(at + 40_000, 5) == b"after"


def test_resize_waits_while_frames_lie_ahead_of_a_hole():
    """What waits ahead of a hole is not in the copy: the writer tries again later."""
    ring, tape = ring_of(), plain_tape(3)
    place(ring, tape[0])
    place(ring, tape[2])
    with pytest.raises(MemoryError):
        RingProbe(8 * PAGE, 64, resized=ring)
    place(ring, tape[1])
    assert RingProbe(8 * PAGE, 64, resized=ring).state["head_sequence"] == 3


def test_resized_ring_never_begins_at_a_lost_frame():
    """The index bound may fall into a lost run: the copy begins at the next frame that is here."""
    ring, tape = ring_of(16 * PAGE, 64), plain_tape(12)
    for frame in tape[:2] + tape[9:]:
        place(ring, frame)
    ring.give_up()
    other = RingProbe(16 * PAGE, 8, resized=ring)
    assert other.state["base_sequence"] == 9
    assert other.state["base_position"] == 900

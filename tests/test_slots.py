"""The places of an index: which one a number has, when they are no power of two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_data import slot


@given(st.integers(0, 2**63 - 1), st.integers(1, 2**20))
def test_a_number_has_the_place_of_its_remainder(number: int, count: int) -> None:
    """Two multiplications say what a division would."""
    assert slot(number, count) == number % count


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 639, 640, 1023, 2**20 - 1, 2**20])
def test_places_follow_one_another_and_begin_again(count: int) -> None:
    """Around each multiple of the count, small and large, where a quotient may be one too small."""
    for times in (1, 2, 3, 2**31 // count, 2**32 // count, 2**62 // count):
        numbers = range(max(0, times * count - 2), times * count + 3)
        assert [slot(number, count) for number in numbers] == [n % count for n in numbers]

from __future__ import annotations

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.token_ids import common_prefix

IDS = st.lists(st.integers(0, 3), max_size=40)


@given(IDS, IDS, IDS, st.integers(0, 20))
def test_the_common_prefix_is_that_of_a_walk_token_by_token(
    shared: list[int], left: list[int], right: list[int], times: int
) -> None:
    left, right = shared * times + left, shared * times + right
    walked = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
    assert common_prefix(left, right) == walked

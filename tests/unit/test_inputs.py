from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stream2llm_rag.engine.inputs import checked_ids
from stream2llm_rag.errors import InvalidInputError


@pytest.mark.parametrize("token_ids", [[0, 9], (0, 9), np.array([0, 9]), [np.int64(0), np.int32(9)]])
def test_checked_ids_are_plain_integers(token_ids: Any) -> None:
    ids = checked_ids(token_ids, 10)
    assert ids == [0, 9]
    assert {type(id_) for id_ in ids} == {int}
    assert checked_ids(token_ids[:0], 10) == []


@pytest.mark.parametrize(
    "token_ids", [[1, 10], [-1], [1.0], [True], ["1"], [None], [2**70], "12", {1, 2}, 5, None, [[1]], [[1], [2, 3]]]
)
def test_what_are_no_ids_is_refused(token_ids: Any) -> None:
    with pytest.raises(InvalidInputError, match="token ids must be"):
        checked_ids(token_ids, 10)

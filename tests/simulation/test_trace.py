from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.trace import Chunk, Query, read_trace, write_trace

GROWING = Query("grows", 0.5, (Chunk(1.0, 10), Chunk(1.5, 0), Chunk(4.0, 5)), num_output_tokens=3)
CHANGING = Query("changes", 0.5, (Chunk(0.25, 10), Chunk(1.0, 5, 7), Chunk(2.0, 3), Chunk(3.0, 1, 8)))


def test_an_append_mode_query_grows_by_each_chunk() -> None:
    assert (GROWING.final_s, GROWING.is_update, GROWING.num_replaced) == (4.5, False, 0)
    assert GROWING.prompt_lengths == (10, 10, 15)
    assert GROWING.pieces(2) == ((0, 10), (2, 5))


def test_an_update_keeps_the_front_and_takes_out_the_rest() -> None:
    assert CHANGING.is_update
    assert CHANGING.prompt_lengths == (10, 12, 15, 9)
    assert CHANGING.pieces(1) == ((0, 7), (1, 5))
    assert CHANGING.pieces(3) == ((0, 7), (1, 1), (3, 1))
    assert CHANGING.num_replaced == 3 + 7


@st.composite
def queries(draw: st.DrawFn) -> Query:
    after_s, length, chunks = 0.0, 0, []
    for _ in range(draw(st.integers(1, 6))):
        after_s += draw(st.floats(0, 100))
        num_kept = draw(st.none() | st.integers(0, length))
        chunks.append(Chunk(after_s, draw(st.integers(1, 50)), num_kept))
        length = (length if num_kept is None else num_kept) + chunks[-1].num_tokens
    return Query(draw(st.text(min_size=1)), draw(st.floats(0, 1e6)), tuple(chunks), draw(st.integers(1, 9)))


@given(queries())
def test_pieces_add_up_to_the_prompt_and_share_what_was_kept(query: Query) -> None:
    for index, length in enumerate(query.prompt_lengths):
        tokens = [(number, at) for number, count in query.pieces(index) for at in range(count)]
        assert len(tokens) == length
        if index:
            before = [(number, at) for number, count in query.pieces(index - 1) for at in range(count)]
            num_kept = query.chunks[index].num_kept
            num_same = sum(1 for _ in _common(before, tokens))
            assert num_same == (len(before) if num_kept is None else num_kept)


def _common(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [a for i, a in enumerate(left) if left[: i + 1] == right[: i + 1]]


@given(st.lists(queries(), min_size=1, max_size=5, unique_by=lambda query: query.query_id))
def test_a_trace_reads_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, trace: list[Query]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    write_trace(path, trace)
    assert read_trace(path) == tuple(trace)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_s": -1}, "arrival_s is -1"),
        ({"arrival_s": float("nan")}, "arrival_s is nan"),
        ({"query_id": ""}, "query_id is ''"),
        ({"num_output_tokens": 0}, "num_output_tokens is 0"),
        ({"chunks": []}, "chunks is empty"),
        ({"chunks": "none"}, "chunks is 'none'"),
        ({"chunks": [{"after_s": 0, "num_tokens": 2.5}]}, r"chunks\[0\]: num_tokens is 2.5"),
        ({"chunks": [{"after_s": 0, "num_tokens": 5}, {"after_s": 1, "num_tokens": 0}]}, r"chunks\[1\] is the last"),
        ({"chunks": [{"after_s": 2, "num_tokens": 5}, {"after_s": 1, "num_tokens": 5}]}, r"chunks\[1\].after_s is 1, after 2"),
        ({"chunks": [{"after_s": 2, "num_tokens": 5, "num_kept": 1}]}, r"chunks\[0\].num_kept is 1, but the prompt has 0"),
        (
            {"chunks": [{"after_s": 0, "num_tokens": 5}, {"after_s": 1, "num_tokens": 0, "num_kept": 0}]},
            r"chunks\[1\] leaves the prompt empty",
        ),
        ({"chunks": [{"after_s": 2, "tokens": 5}]}, r"chunks\[0\]: num_tokens is missing"),
        ({"question": "why?"}, "question is unknown"),
    ],
)
def test_a_broken_line_is_named_with_its_field(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, [GROWING, CHANGING])
    good, other = path.read_text().splitlines()
    path.write_text("\n".join([good, json.dumps({**json.loads(other), **change})]))
    with pytest.raises(InvalidInputError, match=f"line 2: {message}"):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "line 1"), ("[1]", r"line 1: \[1\] is no object"), ("", "no queries"), ("\n\n", "no queries")]
)
def test_a_file_that_is_no_trace_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_trace(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl")


def test_two_queries_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="two queries are called 'grows'"):
        write_trace(tmp_path / "trace.jsonl", [GROWING, GROWING])

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from stream2llm_rag.documents import Document, Replace
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.pipeline import StreamingRAG
from stream2llm_rag.retrievers.base import InMemoryRetriever, TimedDelta
from stream2llm_rag.simulation.importing import trace_from_timelines
from stream2llm_rag.simulation.trace import Chunk
from stream2llm_rag.timeline import Event, EventKind, Timeline, timelines_from_json, timelines_to_json


def delta(at_s, tokens, num_kept=None):
    return Event(EventKind.DELTA, at_s, at_s, tokens=tokens, num_kept=num_kept)


def asked(*deltas, at=None, final_s=4.0, mode="streaming"):
    ends = (Event(EventKind.FINAL_CONTEXT, final_s, final_s, tokens=30), Event(EventKind.DONE, 9.0, 9.0, tokens=64))
    return Timeline("Why?", mode, (*deltas, *ends), asked_at=at)


def test_each_change_of_the_context_becomes_a_chunk_and_the_question_the_last_one():
    [query] = trace_from_timelines([asked(delta(0.0, 20), delta(1.0, 300), delta(2.5, 40), at=7.0)])
    assert query.chunks == (Chunk(0.0, 20), Chunk(1.0, 300), Chunk(2.5, 40), Chunk(4.0, 30))
    assert (query.arrival_s, query.num_output_tokens) == (0.0, 64)


def test_a_replacement_keeps_what_it_kept():
    [query] = trace_from_timelines([asked(delta(0.0, 20), delta(1.0, 300), delta(2.0, -50, 120), delta(3.0, 10, 20), at=0)])
    assert query.chunks[2:4] == (Chunk(2.0, 150, 120), Chunk(3.0, 260, 20))
    assert query.prompt_lengths == (20, 320, 270, 280, 310)


def test_what_was_told_after_the_end_of_retrieval_goes_in_with_the_question():
    [query] = trace_from_timelines([asked(delta(0.0, 20), delta(4.01, 300, 10), at=0)])
    assert query.chunks == (Chunk(0.0, 20), Chunk(4.0, 340, 10))


def test_questions_come_when_they_were_asked():
    trace = trace_from_timelines([asked(delta(0, 9), at=105.5), asked(delta(0, 9), at=100.0), asked(delta(0, 9), at=101.0)])
    assert [(query.query_id, query.arrival_s) for query in trace] == [
        ("question-1", 0.0),
        ("question-2", 1.0),
        ("question-0", 5.5),
    ]


def test_questions_can_come_at_a_rate_instead():
    timelines = [asked(delta(0, 9))] * 2000
    trace = trace_from_timelines(timelines, qps=4.0)
    assert trace[-1].arrival_s == pytest.approx(500, rel=0.1)
    assert trace == trace_from_timelines(timelines, qps=4.0) != trace_from_timelines(timelines, qps=4.0, seed=1)


def test_runs_of_the_usual_way_are_left_out():
    usual = asked(delta(4.0, 300), at=1.0, mode="non_streaming")
    assert len(trace_from_timelines([usual, asked(delta(1.0, 300), at=2.0)])) == 1
    with pytest.raises(InvalidInputError, match="none of 1 timelines"):
        trace_from_timelines([usual])


@pytest.mark.parametrize(
    ("timelines", "options", "message"),
    [
        ([asked(delta(0.0, 20))], {}, "do not say when they were asked"),
        ([asked(delta(0.0, 20))], {"qps": 0}, "qps is 0"),
        ([asked(delta(0.0, 20), delta(1.0, -5), at=0)], {}, "does not say where it was cut"),
        ([Timeline("Why?", "streaming", (delta(0.0, 20),), asked_at=0)], {}, "question-0 ended before"),
    ],
)
def test_timelines_that_do_not_say_enough_are_refused(timelines, options, message):
    with pytest.raises(InvalidInputError, match=message):
        trace_from_timelines(timelines, **options)


async def test_a_recorded_run_gives_the_prompt_that_was_sent(model_path):
    kept, dropped, new = (Document(f"{word} " * 40, word) for word in ("kept", "dropped", "new"))
    lists = [TimedDelta(0.0, Replace((kept, dropped))), TimedDelta(0.0, Replace((kept, new)))]
    retriever = InMemoryRetriever(lists)
    rag = StreamingRAG(FakeEngine(AutoTokenizer.from_pretrained(model_path)), retriever, sampling={"max_tokens": 3})
    result = await rag.answer("Why?")
    [query] = trace_from_timelines(timelines_from_json(timelines_to_json([result.timeline])))
    assert query.num_prompt_tokens == result.prompt_tokens
    assert query.is_update
    assert 0 < query.num_replaced < query.num_prompt_tokens
    assert query.final_s == pytest.approx(result.retrieval_s)

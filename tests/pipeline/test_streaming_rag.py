from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from stream2llm_rag import (
    Append,
    ContextDelta,
    Document,
    InvalidInputError,
    Replace,
    RetrievalError,
    StreamingRAG,
)
from stream2llm_rag.documents import RetrievalEvent
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.errors import CapacityError, EngineDied, LifecycleError, PromptTooLongError
from stream2llm_rag.timeline import Event, EventKind

TEXT = "Cancel a task by calling its cancel method, and await it afterwards. " * 4


def document(number: int, text: str = TEXT) -> Document:
    return Document(f"{text} {number}", f"https://docs.example/{number}", title=f"Page {number}")


class Script:
    """A retriever that does what it is told: yields deltas, waits for events, raises. Notes whether it was closed."""

    def __init__(self, *steps: ContextDelta | anyio.Event | Exception) -> None:
        self._steps = steps
        self.closed = anyio.Event()
        self.delivered = anyio.Event()

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        try:
            for step in self._steps:
                if isinstance(step, anyio.Event):
                    self.delivered.set()
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.closed.set()


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture
def engine(tokenizer: Any) -> FakeEngine:
    return FakeEngine(tokenizer)


NEVER = anyio.Event


async def test_streamed_and_usual_answers_are_the_same(engine: FakeEngine) -> None:
    steps = [Append((document(1), document(2))), Replace((document(3), document(1))), Append((document(4),))]
    rag = StreamingRAG(engine, Script(*steps))
    streamed, usual = await rag.answer("How?"), await rag.answer("How?", streaming=False)
    assert engine.prompts[0] == engine.prompts[1]
    assert (streamed.text, streamed.token_ids) == (usual.text, usual.token_ids)
    assert streamed.sources == usual.sources == tuple(f"https://docs.example/{i}" for i in (1, 3, 4))
    assert usual.overlap_tokens == 0
    assert streamed.prompt_tokens == usual.prompt_tokens == len(engine.prompts[0])


async def test_context_is_computed_before_retrieval_ends(engine: FakeEngine) -> None:
    gate = anyio.Event()
    events: list[Event] = []
    rag = StreamingRAG(engine, Script(Append((document(1),)), gate))
    computed = anyio.Event()

    def watch(event: Event) -> None:
        events.append(event)
        if sum(e.tokens or 0 for e in events if e.kind is EventKind.COMPUTED) > 100:
            computed.set()

    async with rag.stream("How?", on_event=watch) as answer:
        with anyio.fail_after(30):
            await computed.wait()
        assert not any(event.kind is EventKind.FINAL_CONTEXT for event in events)
        gate.set()
        assert "".join([text async for text in answer]) == answer.result.text
    assert answer.result.overlap_tokens > 100
    assert [e.kind for e in answer.result.timeline.events if e.kind is EventKind.FIRST_TOKEN]


async def test_the_measures_are_those_of_the_timeline(engine: FakeEngine) -> None:
    result = await StreamingRAG(engine, Script(Append((document(1),)), Append((document(2),)))).answer("How?")
    at = {event.kind: event.start_s for event in result.timeline.events}
    assert result.ttft_s == pytest.approx(at[EventKind.FIRST_TOKEN] - at[EventKind.FINAL_CONTEXT])
    assert result.arrival_to_first_token_s == pytest.approx(at[EventKind.FIRST_TOKEN])
    assert result.retrieval_s == pytest.approx(at[EventKind.RETRIEVAL_END])
    assert result.arrival_to_first_token_s == pytest.approx(result.retrieval_s + result.ttft_s)
    assert result.timeline.measures["prompt_tokens"] == result.prompt_tokens
    assert result.last_delta_tokens == result.documents[-1].num_tokens


class TestARetrieverThatFails:
    async def test_midway_answers_from_what_came_and_says_so(self, engine: FakeEngine) -> None:
        result = await StreamingRAG(engine, Script(Append((document(1),)), OSError("reset"))).answer("How?")
        assert result.sources == ("https://docs.example/1",)
        assert isinstance(result.retrieval_error, RetrievalError)
        assert isinstance(result.retrieval_error.__cause__, OSError)
        assert result.retrieval_error.documents == (document(1),)

    @pytest.mark.parametrize("streaming", [True, False])
    async def test_midway_raises_where_the_caller_chose_that(self, engine: FakeEngine, streaming: bool) -> None:
        rag = StreamingRAG(engine, Script(Append((document(1),)), OSError("reset")), on_retrieval_error="raise")
        with pytest.raises(RetrievalError, match="reset") as caught:
            await rag.answer("How?", streaming=streaming)
        assert caught.value.documents == (document(1),)
        assert not engine.sessions

    async def test_before_anything_came_raises(self, engine: FakeEngine) -> None:
        with pytest.raises(RetrievalError, match="no luck"):
            await StreamingRAG(engine, Script(RetrievalError("no luck"))).answer("How?")
        assert not engine.sessions

    async def test_where_it_makes_its_iterator_raises(self, engine: FakeEngine) -> None:
        class Broken:
            def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                raise OSError("no index")

        with pytest.raises(RetrievalError, match="no index"):
            await StreamingRAG(engine, Broken()).answer("How?")

    @pytest.mark.parametrize(
        ("junk", "words"),
        [
            (None, "but NoneType came"),
            (document(2), "but Document came"),
            (Append(("text",)), "but str came"),  # type: ignore[arg-type]
            (Append("text"), "but str came"),  # type: ignore[arg-type]
            (Replace((Document(None, "https://docs.example/2"),)), "text of a document is a str, but None came"),  # type: ignore[arg-type]
            (Append((Document("text", 5),)), "source of a document is a str, but 5 came"),  # type: ignore[arg-type]
            (Append((document(2),), num_remaining=-1), "num_remaining is -1"),
        ],
    )
    async def test_by_what_it_yields_is_told_what_to_yield(self, engine: FakeEngine, junk: Any, words: str) -> None:
        result = await StreamingRAG(engine, Script(Append((document(1),)), junk)).answer("How?")
        assert words in str(result.retrieval_error)
        assert result.retrieval_error.documents == (document(1),)  # type: ignore[union-attr]
        assert [placed.document for placed in result.documents] == [document(1)]
        with pytest.raises(RetrievalError, match=words):
            await StreamingRAG(engine, Script(junk)).answer("How?")


class TestARetrieverThatHangs:
    async def test_is_ended_by_the_deadline(self, engine: FakeEngine) -> None:
        retriever = Script(Append((document(1),)), NEVER())
        with anyio.fail_after(30):
            result = await StreamingRAG(engine, retriever).answer("How?", answer_by_s=0.05)
        assert result.deadline_reached
        assert result.retrieval_s >= 0.05
        assert retriever.closed.is_set()

    async def test_is_ended_by_a_call(self, engine: FakeEngine) -> None:
        retriever = Script(Append((document(1),)), NEVER())
        async with StreamingRAG(engine, retriever).stream("How?") as answer:
            await retriever.delivered.wait()
            answer.answer_now()
            assert [text async for text in answer]
        assert answer.result.deadline_reached
        assert answer.result.sources == ("https://docs.example/1",)

    async def test_a_deadline_of_zero_answers_without_context(self, engine: FakeEngine) -> None:
        result = await StreamingRAG(engine, Script(NEVER())).answer("How?", answer_by_s=0)
        assert result.documents == ()
        assert result.token_ids


class TestARetrieverThatClosesBadly:
    class Closing:
        def __init__(self, aclose: Callable[[], Any]) -> None:
            self._aclose = aclose

        def stream(self, query: str) -> TestARetrieverThatClosesBadly.Closing:
            self._left = [Append((document(1),))]
            return self

        def __aiter__(self) -> TestARetrieverThatClosesBadly.Closing:
            return self

        async def __anext__(self) -> ContextDelta:
            if not self._left:
                raise StopAsyncIteration
            return self._left.pop()

        async def aclose(self) -> None:
            await self._aclose()

    async def test_and_slowly_does_not_hold_the_answer_up(self, engine: FakeEngine) -> None:
        gate = anyio.Event()
        async with StreamingRAG(engine, self.Closing(gate.wait)).stream("How?") as answer:
            with anyio.fail_after(30):
                assert [text async for text in answer]
            gate.set()
        assert answer.result.retrieval_error is None

    async def test_with_an_error_does_not_cost_the_answer(self, engine: FakeEngine) -> None:
        async def fail() -> None:
            raise OSError("socket")

        result = await StreamingRAG(engine, self.Closing(fail)).answer("How?")
        assert result.token_ids
        assert result.retrieval_error is None


async def test_a_cancellation_that_comes_out_of_the_retriever_is_its_failure(engine: FakeEngine) -> None:
    class Cancelled:
        async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
            yield Append((document(1),))
            inner = asyncio.create_task(anyio.sleep_forever())
            inner.cancel()
            await inner

    result = await StreamingRAG(engine, Cancelled()).answer("How?")
    assert isinstance(result.retrieval_error, RetrievalError)
    assert 0 <= result.ttft_s < 60


async def test_a_listener_that_raises_does_not_cost_the_answer(engine: FakeEngine) -> None:
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        raise ValueError("mine")

    result = await StreamingRAG(engine, Script(Append((document(1),)))).answer("How?", on_event=listen)
    assert result.token_ids
    assert result.retrieval_error is None
    assert len(seen) == 1


async def test_updates_that_come_together_are_sent_as_one(engine: FakeEngine) -> None:
    sent: list[int] = []
    send = engine.send

    async def count(*args: Any) -> None:
        sent.append(len(args[2]))
        await send(*args)

    engine.send = count  # type: ignore[method-assign]
    deltas = [Replace(tuple(document(i) for i in range(n, n + 3))) for n in range(9)]
    result = await StreamingRAG(engine, Script(*deltas)).answer("How?")
    assert result.sources == tuple(f"https://docs.example/{i}" for i in (8, 9, 10))
    assert len(sent) < len(deltas)


class TestLeavingEarly:
    @pytest.mark.parametrize("streaming", [True, False])
    async def test_during_retrieval_ends_it_and_frees_the_request(self, engine: FakeEngine, streaming: bool) -> None:
        retriever = Script(Append((document(1),)), NEVER())
        async with StreamingRAG(engine, retriever).stream("How?", streaming=streaming):
            await retriever.delivered.wait()
        assert retriever.closed.is_set()
        assert not engine.sessions

    async def test_during_the_answer_frees_the_request(self, engine: FakeEngine) -> None:
        async with StreamingRAG(engine, Script(Append((document(1),)))).stream("How?") as answer:
            await anext(answer)
        assert not engine.sessions
        with pytest.raises(LifecycleError, match="not ended"):
            _ = answer.result

    async def test_by_cancellation_frees_the_request(self, engine: FakeEngine) -> None:
        retriever = Script(Append((document(1),)), NEVER())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(StreamingRAG(engine, retriever).answer, "How?")
            await retriever.delivered.wait()
            tasks.cancel_scope.cancel()
        assert retriever.closed.is_set()
        assert not engine.sessions

    async def test_by_an_error_of_the_caller_passes_that_on(self, engine: FakeEngine) -> None:
        retriever = Script(Append((document(1),)), NEVER())
        with pytest.raises(KeyError):
            async with StreamingRAG(engine, retriever).stream("How?"):
                raise KeyError("mine")
        assert not engine.sessions

    async def test_gives_the_place_back(self, engine: FakeEngine) -> None:
        rag = StreamingRAG(engine, Script(NEVER()), max_streams=1)
        async with rag.stream("How?"):
            with pytest.raises(CapacityError, match="max_streams=1"):
                async with rag.stream("How?"):
                    pass
        async with rag.stream("How?"):
            pass


async def test_hundreds_of_streams_share_one_engine(engine: FakeEngine) -> None:
    rag = StreamingRAG(engine, Script(*(Append((document(i),)) for i in range(4))))
    results: list[Any] = []

    async def ask(number: int) -> None:
        results.append((number, await rag.answer(f"Question {number}?")))

    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(ask, number)
    alone = {number: (await rag.answer(f"Question {number}?")).token_ids for number in range(0, 300, 50)}
    assert all(result.token_ids == alone[number] for number, result in results if number in alone)
    assert len({result.token_ids for _, result in results}) == 300


async def test_an_error_of_the_engine_reaches_the_reader(engine: FakeEngine) -> None:
    async def die(*args: object) -> None:
        raise EngineDied("gone")

    engine.send = die  # type: ignore[method-assign]
    with pytest.raises(EngineDied):
        await StreamingRAG(engine, Script(Append((document(1),)))).answer("How?")
    assert not engine.sessions


async def test_skipped_sources_are_named_in_the_result(engine: FakeEngine) -> None:
    skip = RetrievalEvent("skip", "https://docs.example/missing", 1.0, 1.0, detail="404")
    result = await StreamingRAG(engine, Script(Append((), events=(skip,)), Append((document(1),)))).answer("How?")
    assert result.skipped == (skip,)


async def test_what_came_of_a_crawl_is_in_the_result(engine: FakeEngine) -> None:
    fetched = RetrievalEvent("fetch", "https://docs.example/a", 1.0, 2.0)
    skipped = RetrievalEvent("skip", "https://docs.example/b", 1.0, 2.0, detail="HTTP 404", category="http_status")
    deltas = Append((document(1),), events=(fetched,)), Append((), events=(skipped,))
    crawl = (await StreamingRAG(engine, Script(*deltas)).answer("How?")).crawl
    assert crawl is not None
    assert {host: (each.num_fetched, dict(each.skipped)) for host, each in crawl.hosts.items()} == {
        "docs.example": (1, {"http_status": 1})
    }
    assert (await StreamingRAG(engine, Script(Append((document(1),)))).answer("How?")).crawl is None


async def test_the_history_goes_before_the_documents(engine: FakeEngine, tokenizer: Any) -> None:
    rag = StreamingRAG(engine, Script(Append((document(1),))))
    history = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "General"}]
    await rag.answer("How?", history=history)
    text = tokenizer.decode(engine.prompts[0])
    assert text.index("Hello there") < text.index("General") < text.index("Page 1") < text.rindex("How?")


async def test_a_system_prompt_of_one_call_takes_the_place_of_the_instances(engine: FakeEngine, tokenizer: Any) -> None:
    rag = StreamingRAG(engine, Script(Append((document(1),))), system_prompt="Be exact.")
    await rag.answer("How?", system_prompt="Be brief.", history=[{"role": "user", "content": "Hello there"}])
    await rag.answer("How?")
    once, ever = (tokenizer.decode(prompt) for prompt in engine.prompts)
    assert once.index("Be brief.") < once.index("Hello there")
    assert "Be exact." not in once
    assert "Be exact." in ever


async def test_documents_beyond_the_context_are_reported(tokenizer: Any) -> None:
    engine = FakeEngine(tokenizer, max_model_len=600)
    rag = StreamingRAG(engine, Script(*(Append((document(i),)) for i in range(9))), sampling={"max_tokens": 8})
    result = await rag.answer("How?")
    assert result.left_out
    assert len(result.documents) + len(result.left_out) == 9
    assert result.prompt_tokens <= 600 - 8


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda rag: rag.answer(""), InvalidInputError),
        (lambda rag: rag.answer(" \n\u200b"), InvalidInputError),
        (lambda rag: rag.answer(None), InvalidInputError),
        (lambda rag: rag.answer("How?", answer_by_s=-1), InvalidInputError),
        (lambda rag: rag.answer("How?", answer_by_s=math.nan), InvalidInputError),
        (lambda rag: rag.answer("How?", sampling={"max_tokens": 8192}), InvalidInputError),
        (lambda rag: rag.answer("How? " * 9000), PromptTooLongError),
        (lambda rag: rag.answer("How?", history=[{"role": "king", "content": "x"}]), InvalidInputError),
        (lambda rag: rag.answer("How?", history=["Hello"]), InvalidInputError),
    ],
)
async def test_bad_input_is_refused_before_anything_starts(
    engine: FakeEngine, ask: Callable[[StreamingRAG], Any], error: type[Exception]
) -> None:
    rag = StreamingRAG(engine, Script(Append((document(1),))), max_streams=1)
    with pytest.raises(error):
        await ask(rag)
    assert not engine.sessions
    assert (await rag.answer("How?")).token_ids


@pytest.mark.parametrize("options", [{"on_retrieval_error": "ignore"}, {"max_streams": 0}])
def test_bad_settings_are_refused(engine: FakeEngine, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        StreamingRAG(engine, Script(), **options)


def test_what_is_no_retriever_is_refused(engine: FakeEngine) -> None:
    with pytest.raises(InvalidInputError, match="has a method stream"):
        StreamingRAG(engine, ["a", "list"])  # type: ignore[arg-type]


async def test_an_answer_is_read_inside_its_block(engine: FakeEngine) -> None:
    answer = StreamingRAG(engine, Script()).stream("How?")
    with pytest.raises(LifecycleError, match="async with"):
        await anext(answer)
    async with answer:
        pass
    with pytest.raises(LifecycleError, match="opened once"):
        async with answer:
            pass


async def test_two_that_read_one_answer_share_its_text(engine: FakeEngine) -> None:
    gate = anyio.Event()
    read: list[str] = []
    with anyio.fail_after(30):
        async with StreamingRAG(engine, Script(gate)).stream("How?") as answer, anyio.create_task_group() as readers:

            async def collect() -> None:
                read.extend([text async for text in answer])

            for _ in range(2):
                readers.start_soon(collect)
            await anyio.wait_all_tasks_blocked()
            gate.set()
    assert sorted(read) == sorted(list_of_texts(answer.result.token_ids, engine))


def list_of_texts(token_ids: tuple[int, ...], engine: FakeEngine) -> list[str]:
    return [text for text in (engine.tokenizer.decode([token]) for token in token_ids) if text]


async def test_sampling_of_a_call_takes_the_place_of_the_instances_also_where_it_is_empty(tokenizer: Any) -> None:
    engine = FakeEngine(tokenizer, max_model_len=2048)
    rag = StreamingRAG(engine, Script(), sampling={"max_tokens": 2040})
    with pytest.raises(PromptTooLongError):
        await rag.answer("How?")
    assert (await rag.answer("How?", sampling={})).text


async def test_history_and_question_are_not_tokenised_on_the_event_loop(engine: FakeEngine) -> None:
    threads: set[int] = set()

    class Watched(str):
        __slots__ = ()

        def isascii(self) -> bool:
            threads.add(threading.get_ident())
            return super().isascii()

    history = [{"role": "user", "content": Watched("Before?")}, {"role": "assistant", "content": Watched("Yes.")}]
    await StreamingRAG(engine, Script()).answer(Watched("How?"), history=history)
    assert threads
    assert threading.get_ident() not in threads

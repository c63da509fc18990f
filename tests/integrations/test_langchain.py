"""What LangChain's users build with: runs, events, composition, cancellation, conversions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.documents import Document as LangChainDocument
from langchain_core.documents.compressor import BaseDocumentCompressor
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from stream2llm_rag import Append, ContextDelta, Document, InvalidInputError, Replace, RetrievalError
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.engine.session import OutputDelta
from stream2llm_rag.engine.tools import ToolCallReader
from stream2llm_rag.errors import CapacityError, UnsupportedError
from stream2llm_rag.integrations import BackgroundEngine
from stream2llm_rag.integrations.langchain import (
    ChatStream2LLM,
    Stream2LLMRetriever,
    StreamingRAGRunnable,
    StreamingSource,
    handlers,
)
from stream2llm_rag.integrations.langchain.messages import from_langchain, to_langchain, to_openai
from stream2llm_rag.integrations.langchain.tools import ForcedReader, ParsingReader, forced_calls, read_tool_choice
from stream2llm_rag.retrievers.base import InMemoryRetriever

from .conftest import TOOL_TEMPLATE, documents


class Gated:
    """Yields documents, then waits for ever; says when it has been read that far, and when it was closed."""

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self.is_waiting = anyio.Event()
        self.is_closed = anyio.Event()

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        try:
            yield Append(tuple(documents(self._count)))
            self.is_waiting.set()
            await anyio.sleep_forever()
        finally:
            self.is_closed.set()


class Listening(AsyncCallbackHandler):
    """Notes the starts and ends of runs."""

    def __init__(self) -> None:
        self.open: dict[UUID, str] = {}
        self.ended: list[str] = []

    async def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **_: Any) -> None:
        self.open[run_id] = "chain"

    async def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, **_: Any) -> None:
        self.open[run_id] = "retriever"

    async def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **_: Any) -> None:
        self.open[run_id] = "model"

    async def _end(self, how: str, run_id: UUID) -> None:
        self.ended.append(f"{self.open.pop(run_id)} {how}")

    async def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        await self._end("end", run_id)

    async def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        await self._end("error", run_id)

    async def on_retriever_end(self, documents: Any, *, run_id: UUID, **_: Any) -> None:
        await self._end("end", run_id)

    async def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        await self._end("error", run_id)

    async def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:
        await self._end("end", run_id)

    async def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        await self._end("error", run_id)


class Fixed(BaseRetriever):
    """Finds what it was given; hangs where that is None."""

    found: list[LangChainDocument] | None

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[LangChainDocument]:
        raise AssertionError("retrieval is asked for asynchronously")

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[LangChainDocument]:
        if self.found is None:
            await anyio.sleep_forever()
        return self.found or []


def page(name: str) -> LangChainDocument:
    return LangChainDocument(f"Text of {name}.", metadata={"source": name})


def rag_of(engine: BackgroundEngine, retriever: Any = None, **options: Any) -> StreamingRAGRunnable:
    chosen = InMemoryRetriever.from_documents(documents(3)) if retriever is None else retriever
    return StreamingRAGRunnable(engine=engine, retriever=chosen, **options)


class TestTheAnswer:
    async def test_has_sources_measures_and_usage(self, background: BackgroundEngine) -> None:
        answer = await rag_of(background).ainvoke("How?")
        metadata = answer.response_metadata
        assert metadata["sources"] == [f"https://docs.example/{i}" for i in range(3)]
        assert metadata["measures"]["prompt_tokens"] == answer.usage_metadata["input_tokens"]  # type: ignore[index]
        assert 0 < metadata["measures"]["ttft_s"] <= metadata["measures"]["arrival_to_first_token_s"]
        assert metadata["finish_reason"] == "length"
        assert metadata["retrieval_error"] is None

    async def test_streams_in_chunks_that_come_to_the_same(self, background: BackgroundEngine) -> None:
        rag = rag_of(background)
        chunks = [chunk async for chunk in rag.astream("How?")]
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk  # type: ignore[operator]
        assert whole.text == (await rag.ainvoke("How?")).text
        assert whole.response_metadata["sources"]
        assert [bool(chunk.response_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]

    def test_composes(self, background: BackgroundEngine) -> None:
        chain = {"question": RunnablePassthrough()} | rag_of(background) | StrOutputParser()
        assert chain.invoke("How?") == rag_of(background).invoke("How?").text
        assert "".join(chain.stream("How?")) == chain.invoke("How?")

    async def test_takes_a_history(self, background: BackgroundEngine, fake: FakeEngine, tokenizer: Any) -> None:
        history = [SystemMessage("Be brief."), HumanMessage("Hello there"), AIMessage("General")]
        await rag_of(background).ainvoke({"question": "How?", "history": history})
        text = tokenizer.decode(fake.prompts[-1])
        assert text.index("Be brief.") < text.index("Hello there") < text.index("General") < text.index("Page 1")
        assert "Answer the question from the documents" not in text

    async def test_is_limited_in_number_with_a_system_message_too(self, background: BackgroundEngine) -> None:
        rag, asked = rag_of(background, Gated(), max_streams=1), {"question": "How?", "history": [SystemMessage("Be brief.")]}
        first = asyncio.create_task(rag.ainvoke(asked))
        await rag.retriever.is_waiting.wait()
        with pytest.raises(CapacityError, match="max_streams=1"):
            await rag.ainvoke(asked)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    async def test_is_made_with_the_settings_of_now(
        self, background: BackgroundEngine, fake: FakeEngine, tokenizer: Any
    ) -> None:
        rag = rag_of(background, system_prompt="Be exact.")
        await rag.ainvoke("How?")
        await rag.model_copy(update={"system_prompt": "Be brief."}).ainvoke("How?")
        await rag.ainvoke("How?")
        rag.system_prompt = "Be kind."
        await rag.ainvoke("How?")
        said = [next(word for word in ("exact", "brief", "kind") if word in tokenizer.decode(ids)) for ids in fake.prompts]
        assert said == ["exact", "brief", "exact", "kind"]

    async def test_is_the_same_the_usual_way(self, background: BackgroundEngine) -> None:
        streamed, usual = await rag_of(background).ainvoke("How?"), await rag_of(background, streaming=False).ainvoke("How?")
        assert streamed.text == usual.text
        assert usual.response_metadata["measures"]["overlap_tokens"] == 0

    @pytest.mark.parametrize("given", [{}, {"query": "How?"}, {"question": "How?", "context": "x"}, 7])
    async def test_needs_a_question(self, background: BackgroundEngine, given: Any) -> None:
        with pytest.raises(InvalidInputError, match="question"):
            await rag_of(background).ainvoke(given)

    @pytest.mark.parametrize("history", [7, [7], [{"role": "user"}], [("king", "Hello")]])
    async def test_needs_a_history_of_messages(self, background: BackgroundEngine, history: Any) -> None:
        with pytest.raises(InvalidInputError, match="history is a list of messages"):
            await rag_of(background).ainvoke({"question": "How?", "history": history})

    async def test_is_made_by_the_deadline(self, background: BackgroundEngine) -> None:
        answer = await rag_of(background, Gated(), answer_by_s=1).ainvoke("How?")
        assert answer.response_metadata["deadline_reached"]
        assert len(answer.response_metadata["sources"]) == 1

    def test_settings_that_do_not_exist_are_refused(self, background: BackgroundEngine) -> None:
        with pytest.raises(ValueError, match="temprature"):
            rag_of(background, temprature=0)
        with pytest.raises(ValueError, match="a retriever of ours or of LangChain"):
            rag_of(background, retriever="docs")

    def test_is_not_serialised_as_if_it_could_be(self, background: BackgroundEngine) -> None:
        assert dumpd(rag_of(background))["type"] == "not_implemented"


class TestWrapped:
    async def test_with_retry_asks_again(self, background: BackgroundEngine) -> None:
        class Flaky:
            num_calls = 0

            async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                self.num_calls += 1
                if self.num_calls == 1:
                    raise OSError("reset")
                yield Append(tuple(documents(1)))

        rag = rag_of(background, Flaky()).with_retry(
            retry_if_exception_type=(RetrievalError,), wait_exponential_jitter=False, stop_after_attempt=2
        )
        assert (await rag.ainvoke("How?")).response_metadata["sources"]

    async def test_with_fallbacks_answers_without_context(self, background: BackgroundEngine) -> None:
        class Broken:
            async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                raise OSError("no index")
                yield  # pragma: no cover - makes it a generator

        chat = RunnableLambda(lambda asked: asked["question"]) | ChatStream2LLM(engine=background)
        rag = rag_of(background, Broken()).with_fallbacks([chat])
        assert (await rag.ainvoke({"question": "How?"})).text

    async def test_with_config_names_the_run_and_tags_what_is_inside(self, background: BackgroundEngine) -> None:
        rag = rag_of(background).with_config(run_name="library", tags=["docs"])
        events = [event async for event in rag.astream_events("How?")]
        assert events[0]["name"] == "library"
        assert all("docs" in event["tags"] for event in events)


async def events_of(rag: Any, given: Any = "How?") -> list[dict[str, Any]]:
    return [event async for event in rag.astream_events(given)]


class TestRuns:
    async def test_retriever_and_model_overlap_and_prefill_comes_before_the_retriever_ends(
        self, background: BackgroundEngine
    ) -> None:
        names = [
            event["name"] if event["event"] == "on_custom_event" else event["event"]
            for event in await events_of(rag_of(background, InMemoryRetriever.from_documents(documents(3), gap_s=0.05)))
        ]
        end = names.index("on_retriever_end")
        assert names.index("on_retriever_start") < names.index("on_chat_model_start") < end
        assert "prefill" in names[:end]
        assert "context_delta" in names[:end]
        assert end < names.index("final_context") < names.index("first_token") < names.index("on_chat_model_stream")
        assert names[-1] == "on_chain_end"
        assert Counter(names)["on_retriever_end"] == Counter(names)["on_chat_model_end"] == 1

    async def test_custom_events_carry_times_and_tokens(self, background: BackgroundEngine) -> None:
        deltas = [event["data"] for event in await events_of(rag_of(background)) if event["name"] == "context_delta"]
        assert [delta["label"] for delta in deltas] == ["prompt prefix", "Page 0", "Page 1", "Page 2"]
        assert all(delta["tokens"] > 100 for delta in deltas[1:])
        assert [delta["at_s"] for delta in deltas] == sorted(delta["at_s"] for delta in deltas)

    async def test_the_retriever_run_has_the_documents_and_the_model_run_the_usage(self, background: BackgroundEngine) -> None:
        events = await events_of(rag_of(background))
        [retrieved] = [event["data"]["output"] for event in events if event["event"] == "on_retriever_end"]
        assert [document.metadata["source"] for document in retrieved] == [f"https://docs.example/{i}" for i in range(3)]
        [answered] = [event["data"]["output"] for event in events if event["event"] == "on_chat_model_end"]
        assert answered.usage_metadata["output_tokens"] == 8

    async def test_langchains_retrievers_are_children_of_the_retriever_run(self, background: BackgroundEngine) -> None:
        rag = rag_of(background, [Fixed(found=[page("a")]), Fixed(found=[page("b")])])
        starts = [event for event in await events_of(rag) if event["event"] == "on_retriever_start"]
        outer, *inner = starts
        assert outer["name"] == "StreamingSource"
        assert [start["parent_ids"][-1] for start in inner] == [outer["run_id"]] * 2

    async def test_a_failure_of_retrieval_closes_its_run_and_the_answer_goes_on(self, background: BackgroundEngine) -> None:
        class Midway:
            async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                yield Append(tuple(documents(1)))
                raise OSError("reset")

        listening = Listening()
        answer = await rag_of(background, Midway()).ainvoke("How?", {"callbacks": [listening]})
        assert "reset" in answer.response_metadata["retrieval_error"]
        assert listening.ended == ["retriever error", "model end", "chain end"]
        assert not listening.open

    async def test_cancellation_closes_all_runs(self, background: BackgroundEngine, fake: FakeEngine) -> None:
        listening, retriever = Listening(), Gated()
        task = asyncio.create_task(rag_of(background, retriever).ainvoke("How?", {"callbacks": [listening]}))
        await retriever.is_waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not listening.open
        assert sorted(listening.ended) == ["chain error", "model error", "retriever error"]
        assert retriever.is_closed.is_set()
        assert not fake.sessions

    @pytest.mark.parametrize("told", ["on_chat_model_start", "on_retriever_end", "on_llm_end"])
    async def test_cancellation_while_a_callback_is_told_closes_all_runs(
        self, background: BackgroundEngine, fake: FakeEngine, told: str
    ) -> None:
        class Slow(Listening):
            pass

        async def tell(self: Slow, *args: Any, **kwargs: Any) -> None:
            is_told.set()
            await may_go_on.wait()
            await getattr(Listening, told)(self, *args, **kwargs)

        setattr(Slow, told, tell)
        is_told, may_go_on, listening = anyio.Event(), anyio.Event(), Slow()
        task = asyncio.create_task(rag_of(background).ainvoke("How?", {"callbacks": [listening]}))
        await is_told.wait()
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not listening.open
        assert not fake.sessions

    @pytest.mark.parametrize("num_cancellations", [1, 2])
    @pytest.mark.parametrize("stuck", [("on_retriever_end",), ("on_retriever_error", "on_llm_error"), ("on_chat_model_start",)])
    async def test_a_callback_that_hangs_keeps_no_answer_that_is_cancelled(
        self,
        background: BackgroundEngine,
        fake: FakeEngine,
        monkeypatch: Any,
        caplog: Any,
        stuck: Sequence[str],
        num_cancellations: int,
    ) -> None:
        class Stuck(Listening):
            pass

        async def hang(self: Stuck, *args: Any, **kwargs: Any) -> None:
            is_told.set()
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                is_left.set()
                raise

        for told in stuck:
            setattr(Stuck, told, hang)
        monkeypatch.setattr(handlers, "_TIMEOUT_S", 0.05)
        is_told, is_left, may_end, retriever, listening = anyio.Event(), anyio.Event(), anyio.Event(), Gated(), Listening()
        asked = retriever if "on_retriever_error" in stuck else None
        task = asyncio.create_task(rag_of(background, asked).ainvoke("How?", {"callbacks": [Stuck(), listening]}))
        await (is_told if asked is None else retriever.is_waiting).wait()
        for _ in range(num_cancellations):
            task.cancel()
            await anyio.lowlevel.checkpoint()
        await asyncio.wait([task], timeout=30)
        assert task.cancelled()
        assert is_told.is_set()
        assert not fake.sessions
        assert "and was left" in caplog.text
        if "on_chat_model_start" in stuck:
            await asyncio.wait_for(is_left.wait(), 30)
        else:  # which LangChain shields
            assert not listening.open
        may_end.set()

    @pytest.mark.parametrize("raising", ["on_retriever_end", "on_retriever_error"])
    async def test_a_callback_that_raises_takes_the_place_of_no_cancellation(
        self, background: BackgroundEngine, fake: FakeEngine, caplog: Any, raising: str
    ) -> None:
        class Raising(Listening):
            raise_error = True

        async def fail(self: Raising, *args: Any, **kwargs: Any) -> None:
            is_told.set()
            await may_raise.wait()
            raise KeyError("mine")

        setattr(Raising, raising, fail)
        is_told, may_raise, retriever = anyio.Event(), anyio.Event(), Gated()
        asked, reached = (None, is_told) if raising == "on_retriever_end" else (retriever, retriever.is_waiting)
        task = asyncio.create_task(rag_of(background, asked).ainvoke("How?", {"callbacks": [Raising()]}))
        await reached.wait()
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        may_raise.set()
        await asyncio.wait([task], timeout=30)
        assert task.cancelled()
        assert "a callback raised" in caplog.text
        assert not fake.sessions

    async def test_a_stream_that_is_left_early_closes_all_runs(self, background: BackgroundEngine, fake: FakeEngine) -> None:
        listening = Listening()
        stream = rag_of(background).astream("How?", {"callbacks": [listening]})
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert not listening.open
        assert not fake.sessions

    async def test_a_deadline_closes_the_runs_of_langchains_retrievers(self, background: BackgroundEngine) -> None:
        listening = Listening()
        stuck = EnsembleRetriever(retrievers=[Fixed(found=None).with_config(tags=["slow"])])
        rag = rag_of(background, [Fixed(found=[page("a")]), Fixed(found=None), stuck], answer_by_s=1)
        answer = await rag.ainvoke("How?", {"callbacks": [listening]})
        assert answer.response_metadata["sources"] == ["a"]
        assert not listening.open
        assert Counter(listening.ended)["retriever error"] == 3  # the ensemble's, its member's, and the other's

    async def test_calls_that_are_not_async_tell_the_same(self, background: BackgroundEngine) -> None:
        listening = Listening()
        await asyncio.to_thread(rag_of(background).invoke, "How?", {"callbacks": [listening]})
        assert listening.ended == ["retriever end", "model end", "chain end"]


class TestManyAtOnce:
    async def test_a_third_of_64_streams_is_cancelled_and_the_rest_is_right(
        self, background: BackgroundEngine, fake: FakeEngine
    ) -> None:
        rag = rag_of(background, InMemoryRetriever.from_documents(documents(3), gap_s=0.01))
        alone = {number: (await rag.ainvoke(f"Question {number}?")).text for number in range(0, 64, 9)}
        texts: dict[int, str] = {}

        async def ask(number: int) -> None:
            texts[number] = "".join([chunk.text async for chunk in rag.astream(f"Question {number}?")])

        tasks = [asyncio.create_task(ask(number)) for number in range(64)]
        while not fake.sessions:
            await anyio.lowlevel.checkpoint()
        for task in tasks[::3]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[::3]] == [asyncio.CancelledError] * 22
        assert all(texts[number] == text for number, text in alone.items() if number % 3)
        assert len(texts) == 42
        assert not fake.sessions

    async def test_abatch_keeps_to_max_concurrency(self, background: BackgroundEngine) -> None:
        most = now = 0

        class Counting:
            async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                nonlocal most, now
                now += 1
                most = max(most, now)
                yield Append(tuple(documents(1)))
                await anyio.sleep(0.01)
                now -= 1

        answers = await rag_of(background, Counting()).abatch([f"{n}?" for n in range(12)], {"max_concurrency": 3})
        assert len({answer.text for answer in answers}) == 12
        assert most == 3


class TestARetriever:
    @pytest.mark.parametrize(
        ("junk", "words"),
        [
            ("text", "yields Append(documents) or Replace(documents), but str came"),
            (Append(tuple(documents(2)), num_remaining=-1), "num_remaining is -1"),
        ],
    )
    async def test_that_yields_no_delta_is_told_what_to_yield(
        self, background: BackgroundEngine, junk: Any, words: str
    ) -> None:
        class Junk:
            async def stream(self, query: str) -> AsyncIterator[Any]:
                yield Append(tuple(documents(1)))
                yield junk

        class Telling(AsyncCallbackHandler):
            async def on_retriever_error(self, error: BaseException, **_: Any) -> None:
                errors.append(error)

        errors: list[Any] = []
        answer = await rag_of(background, Junk()).ainvoke("How?", {"callbacks": [Telling()]})
        assert words in answer.response_metadata["retrieval_error"]
        assert [error.documents for error in errors] == [tuple(documents(1))]

    async def test_that_yields_no_delta_is_told_so_where_it_stands_alone(self) -> None:
        class Junk:
            async def stream(self, query: str) -> AsyncIterator[Any]:
                yield "text"

        with pytest.raises(TypeError, match="but str came"):
            await Stream2LLMRetriever(retriever=Junk()).ainvoke("How?")

    async def test_gives_deltas_as_they_come(self) -> None:
        retriever = Stream2LLMRetriever(retriever=InMemoryRetriever.from_documents(documents(3)), k=1)
        assert [type(delta) async for delta in retriever.astream_deltas("How?")] == [Append] * 3

    def test_works_beside_a_loop_and_from_one(self, background: BackgroundEngine) -> None:
        retriever = Stream2LLMRetriever(retriever=InMemoryRetriever.from_documents(documents(3)))

        async def inside() -> list[LangChainDocument]:
            return retriever.invoke("How?", k=2)

        assert len(asyncio.run(inside())) == 2

    async def test_that_is_cancelled_closes_its_run(self) -> None:
        listening, gated = Listening(), Gated()
        task = asyncio.create_task(Stream2LLMRetriever(retriever=gated).ainvoke("How?", {"callbacks": [listening]}))
        await gated.is_waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert listening.ended == ["retriever error"]
        assert gated.is_closed.is_set()

    async def test_that_is_cancelled_does_not_wait_for_ever_for_a_callback(self, monkeypatch: Any) -> None:
        class Stuck(Listening):
            async def on_retriever_error(self, *args: Any, **kwargs: Any) -> None:
                await may_end.wait()

        monkeypatch.setattr(handlers, "_TIMEOUT_S", 0.05)
        may_end, gated = anyio.Event(), Gated()
        task = asyncio.create_task(Stream2LLMRetriever(retriever=gated).ainvoke("How?", {"callbacks": [Stuck()]}))
        await gated.is_waiting.wait()
        task.cancel()
        await asyncio.wait([task], timeout=30)
        assert task.cancelled()
        may_end.set()

    @pytest.mark.parametrize("options", [{"retriever": "docs"}, {"retriever": Gated(), "k": 0}, {"retriever": Gated(), "n": 1}])
    def test_needs_one_that_streams_and_a_sensible_k(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"stream\(query\)|greater than|Extra inputs"):
            Stream2LLMRetriever(**options)


class TestASource:
    async def test_of_an_ensemble_runs_its_members_and_gives_at_the_end_what_that_would(self) -> None:
        named = Fixed(found=[page("b"), page("a"), page("c")]).with_config(run_name="named")
        ensemble = EnsembleRetriever(retrievers=[Fixed(found=[page("a")]), named], weights=[0.2, 0.8])
        deltas = [delta async for delta in StreamingSource.from_langchain(ensemble).stream("How?")]
        assert [type(delta) for delta in deltas] == [Append, Append, Replace]
        assert sorted(len(delta.documents) for delta in deltas[:2]) == [1, 3]
        fused = [document.metadata["source"] for document in await ensemble.ainvoke("How?")]
        assert [document.source for document in deltas[-1].documents] == fused == ["a", "b", "c"]

    async def test_asks_an_ensemble_among_others_as_a_whole(self) -> None:
        ensemble = EnsembleRetriever(retrievers=[Fixed(found=[page("a")]), Fixed(found=[page("b")])])
        source = StreamingSource.from_langchain([ensemble, Fixed(found=[page("c")])])
        deltas = [delta async for delta in source.stream("How?")]
        assert sorted(document.source for delta in deltas for document in delta.documents) == ["a", "b", "c"]

    async def test_takes_any_runnable_that_finds_documents(self) -> None:
        chain = RunnableLambda(lambda question: [page(question)])
        [delta] = [delta async for delta in StreamingSource.from_langchain(chain).stream("How?")]
        assert [document.source for document in delta.documents] == ["How?"]

    @pytest.mark.parametrize("kind", ["compressor", "function", "coroutine"])
    async def test_is_reranked_at_the_end(self, kind: str) -> None:
        class First(BaseDocumentCompressor):
            def compress_documents(
                self, documents: Sequence[LangChainDocument], query: str, callbacks: Any = None
            ) -> Sequence[LangChainDocument]:
                return documents[-1:]

        async def rerank(query: str, found: list[LangChainDocument]) -> list[LangChainDocument]:
            return found[-1:]

        chosen = {"compressor": First(), "function": lambda query, found: found[-1:], "coroutine": rerank}[kind]
        source = StreamingSource.from_langchain([Fixed(found=[page("a")]), Fixed(found=[page("b")])], rerank=chosen)
        deltas = [delta async for delta in source.stream("How?")]
        assert [document.source for document in deltas[-1].documents] == ["b"]

    def test_needs_retrievers(self) -> None:
        with pytest.raises(InvalidInputError, match="str came"):
            StreamingSource.from_langchain(["docs"])  # type: ignore[list-item]


class TestConversions:
    def test_a_document_comes_back_as_it_was(self) -> None:
        original = Document("text", "https://a", title="A", score=0.5, metadata={"lang": "en"})
        assert from_langchain(to_langchain(original)) == original
        theirs = LangChainDocument("text", id="7", metadata={"source": "https://a"})
        assert to_langchain(from_langchain(theirs)) == theirs

    def test_a_document_without_a_source_is_called_by_its_id_or_a_digest_of_its_text(self) -> None:
        assert from_langchain(LangChainDocument("text", id="7")).source == "7"
        assert from_langchain(LangChainDocument("text")).source == from_langchain(LangChainDocument("text")).source != ""

    def test_messages_keep_tool_calls(self) -> None:
        call = {"name": "add", "args": {"a": 1}, "id": "x", "type": "tool_call"}
        converted = to_openai([AIMessage("", tool_calls=[call]), ToolMessage("1", tool_call_id="x", name="add")])
        assert converted[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
        assert converted[1] == {"role": "tool", "content": "1", "tool_call_id": "x", "name": "add"}

    def test_images_are_refused(self) -> None:
        with pytest.raises(UnsupportedError, match="image_url"):
            to_openai([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])


TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


class TestTools:
    def test_a_call_is_read_while_it_is_written(self, tokenizer: Any) -> None:
        text = 'Let me see. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
        reader = ParsingReader(ToolCallReader("hermes", tokenizer, [TOOL]))
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = [reader.feed(OutputDelta(tokenizer.decode([id_]), (id_,))) for id_ in ids]
        assert "".join(piece.text for piece in pieces).strip() == "Let me see."
        chunks = [chunk for piece in pieces for chunk in piece.tool_call_chunks]
        assert [chunk["name"] for chunk in chunks if chunk["name"]] == ["add"]
        assert "".join(chunk["args"] or "" for chunk in chunks) == '{"a": 1}'

    def test_an_unknown_parser_is_refused(self, tokenizer: Any) -> None:
        with pytest.raises(InvalidInputError, match="no tool parser 'mercury'"):
            ToolCallReader("mercury", tokenizer, [TOOL])

    def test_without_a_parser_only_a_forced_call_is_possible(self, background: BackgroundEngine) -> None:
        chat = ChatStream2LLM(engine=background, chat_template=TOOL_TEMPLATE)
        with pytest.raises(UnsupportedError, match="tool_parser"):
            chat.bind_tools([TOOL]).invoke("Hello")
        assert chat.bind_tools([TOOL], tool_choice="any").invoke("Hello").usage_metadata

    def test_a_template_that_shows_no_tools_is_refused(self, background: BackgroundEngine) -> None:
        with pytest.raises(UnsupportedError, match="chat template does not show tools"):
            ChatStream2LLM(engine=background).bind_tools([TOOL], tool_choice="any").invoke("Hello")

    @pytest.mark.parametrize(("choice", "read"), [(None, "auto"), (True, "any"), ("required", "any"), ("add", "add")])
    def test_choices_are_read(self, choice: Any, read: str) -> None:
        assert read_tool_choice(choice) == read
        assert read_tool_choice({"type": "function", "function": {"name": "add"}}) == "add"

    def test_a_choice_that_is_not_bound_is_refused(self, background: BackgroundEngine) -> None:
        with pytest.raises(InvalidInputError, match="subtract"):
            ChatStream2LLM(engine=background).bind_tools([TOOL], tool_choice="subtract")
        with pytest.raises(InvalidInputError, match="subtract"):
            forced_calls([TOOL], "subtract", parallel=True)

    def test_a_forced_call_that_was_cut_short_is_text(self) -> None:
        reader = ForcedReader()
        reader.feed(OutputDelta('[{"name": "add", "argu', (1,)))
        assert reader.end().text == '[{"name": "add", "argu'


class TestAChatModel:
    def test_of_another_name_is_refused(self, background: BackgroundEngine) -> None:
        with pytest.raises(InvalidInputError, match="one model"):
            ChatStream2LLM(engine=background, model="tiny").invoke("Hello", model="large")

    def test_counts_tokens_as_its_engine_does(self, background: BackgroundEngine, fake: FakeEngine) -> None:
        chat, messages = ChatStream2LLM(engine=background), [SystemMessage("Be brief."), HumanMessage("Hello <|eot_id|>")]
        chat.invoke(messages)
        assert chat.get_num_tokens_from_messages(messages) == len(fake.prompts[0])
        assert chat.get_num_tokens("Hello there") == len(fake.tokenizer.encode("Hello there", add_special_tokens=False))

    def test_stops_at_a_text_and_not_at_its_characters(self, background: BackgroundEngine) -> None:
        prompt, _ = ChatStream2LLM(engine=background)._prepare([HumanMessage("Hello")], "END", {})  # type: ignore[arg-type]
        assert prompt.sampling["stop"] == ["END"]

    def test_writes_its_prompt_by_the_template_of_now(
        self, background: BackgroundEngine, fake: FakeEngine, tokenizer: Any
    ) -> None:
        chat = ChatStream2LLM(engine=background, chat_template="A: {{ messages[0]['content'] }}")
        chat.invoke("Hello")
        chat.model_copy(update={"chat_template": "B: {{ messages[0]['content'] }}"}).invoke("Hello")
        assert [tokenizer.decode(ids) for ids in fake.prompts] == ["A: Hello", "B: Hello"]

    def test_takes_no_setting_that_it_does_not_have(self, background: BackgroundEngine) -> None:
        with pytest.raises(ValueError, match="temprature"):
            ChatStream2LLM(engine=background, temprature=0)  # type: ignore[call-arg]

    @pytest.mark.parametrize("format_", [{"type": "xml"}, {"type": "json_schema"}])
    def test_takes_no_response_format_that_it_cannot_meet(self, background: BackgroundEngine, format_: Any) -> None:
        with pytest.raises(InvalidInputError, match="response_format"):
            ChatStream2LLM(engine=background).invoke("Hello", response_format=format_)

    def test_needs_a_schema_for_all_but_json_mode(self, background: BackgroundEngine) -> None:
        chat = ChatStream2LLM(engine=background)
        with pytest.raises(InvalidInputError, match="a schema is needed"):
            chat.with_structured_output()
        answer = chat.with_structured_output(method="json_mode", include_raw=True).invoke("Hello")
        assert answer["raw"].text  # this engine writes no JSON
        assert isinstance(answer["parsing_error"], OutputParserException)

"""What LlamaIndex's users build with: the LLM, the query engine in routers, agents and workflows, events, conversions."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import llama_index.core.instrumentation as instrument
import pytest
from llama_index.core import QueryBundle
from llama_index.core.agent.workflow import AgentStream, ReActAgent
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, MessageRole
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import LLM
from llama_index.core.llms.mock import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import SubQuestion
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import QueryEngineTool, ToolMetadata
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from pydantic import PrivateAttr

from stream2llm_rag import Append, ContextDelta, Document, InvalidInputError, Replace
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.errors import LifecycleError, UnsupportedError
from stream2llm_rag.integrations import BackgroundEngine
from stream2llm_rag.integrations.llama_index import (
    Stream2LLM,
    Stream2LLMRetriever,
    StreamingRAGQueryEngine,
    StreamingSource,
)
from stream2llm_rag.integrations.llama_index.nodes import from_node, to_node
from stream2llm_rag.retrievers.base import InMemoryRetriever

from .conftest import documents


def query_engine(background: BackgroundEngine, retriever: Any = None, **options: Any) -> StreamingRAGQueryEngine:
    chosen = InMemoryRetriever.from_documents(documents(3)) if retriever is None else retriever
    return StreamingRAGQueryEngine(background, chosen, **options)


def node(name: str, score: float = 1.0) -> NodeWithScore:
    return NodeWithScore(node=TextNode(text=f"Text of {name}.", id_=name), score=score)


class Fixed(BaseRetriever):
    """Finds what it was given."""

    def __init__(self, *nodes: NodeWithScore) -> None:
        self._nodes = nodes
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=found.node, score=found.score) for found in self._nodes]


class Scripted(MockLLM):
    """Says what it was told to, one after the other."""

    _answers: list[str] = PrivateAttr()

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self._answers = list(answers)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        text = self._answers.pop(0)

        async def pieces() -> AsyncIterator[ChatResponse]:
            yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=text)

        return pieces()


class TestTheLLM:
    def test_is_an_llm_in_name_and_kind(self) -> None:
        assert [base.__name__ for base in Stream2LLM.__mro__][:2] == ["Stream2LLM", "LLM"]
        assert issubclass(Stream2LLM, LLM)
        assert issubclass(StreamingRAGQueryEngine, BaseQueryEngine)
        assert issubclass(Stream2LLMRetriever, BaseRetriever)
        assert Stream2LLM.class_name() == "Stream2LLM"

    def test_knows_its_model(self, background: BackgroundEngine) -> None:
        metadata = Stream2LLM(engine=background, model="tiny", max_tokens=9).metadata
        assert (metadata.context_window, metadata.num_output, metadata.model_name) == (8192, 9, "tiny")
        assert metadata.is_chat_model

    async def test_every_way_of_asking_gives_the_same(self, background: BackgroundEngine) -> None:
        llm = Stream2LLM(engine=background)
        messages = [ChatMessage(role=MessageRole.USER, content="Hello")]
        answers = {
            llm.complete("Hello").text,
            llm.chat(messages).message.content,
            "".join(piece.delta or "" for piece in llm.stream_complete("Hello")),
            [piece.message.content for piece in llm.stream_chat(messages)][-1],
            (await llm.acomplete("Hello")).text,
            (await llm.achat(messages)).message.content,
            "".join([piece.delta or "" async for piece in await llm.astream_complete("Hello")]),
            [piece.message.content async for piece in await llm.astream_chat(messages)][-1],
        }
        assert len(answers) == 1

    async def test_counts_tokens(self, background: BackgroundEngine, fake: FakeEngine) -> None:
        counts = (await Stream2LLM(engine=background).acomplete("Hello")).additional_kwargs
        assert counts["prompt_tokens"] == len(fake.prompts[-1])
        assert counts["completion_tokens"] == 8
        assert counts["finish_reason"] == "length"

    async def test_does_not_block_the_loop(self, tokenizer: Any) -> None:
        async with BackgroundEngine(FakeEngine(tokenizer, num_answer_tokens=10**9)) as background:
            pieces = await Stream2LLM(engine=background).astream_complete("Hello")
            with anyio.move_on_after(0.05) as scope:
                async for _ in pieces:
                    pass
            assert scope.cancelled_caught
            await pieces.aclose()

    def test_a_formatted_prompt_goes_in_as_it_is(self, background: BackgroundEngine, fake: FakeEngine, tokenizer: Any) -> None:
        prompt = "<|begin_of_text|>Once upon a time<|eot_id|>"
        Stream2LLM(engine=background).complete(prompt, formatted=True)
        assert fake.prompts[-1] == tokenizer.encode(prompt, add_special_tokens=False)

    def test_cannot_be_pickled_but_made_anew(self, background: BackgroundEngine) -> None:
        llm = Stream2LLM(engine=background, temperature=0.5, model="tiny")
        with pytest.raises(UnsupportedError, match="cannot be pickled"):
            pickle.dumps(llm)
        assert Stream2LLM.from_dict(llm.to_dict(), engine=background).temperature == 0.5
        with pytest.raises(ValueError, match="engine"):
            Stream2LLM.from_dict(llm.to_dict())

    def test_images_and_other_roles_are_refused(self, background: BackgroundEngine) -> None:
        llm = Stream2LLM(engine=background)
        with pytest.raises(UnsupportedError, match="ImageBlock"):
            llm.chat([ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(image=b"x")])])
        with pytest.raises(InvalidInputError, match="'tool'"):
            llm.chat([ChatMessage(role=MessageRole.TOOL, content="5")])

    def test_writes_its_prompt_by_the_template_of_now(
        self, background: BackgroundEngine, fake: FakeEngine, tokenizer: Any
    ) -> None:
        llm = Stream2LLM(engine=background, chat_template="A: {{ messages[0]['content'] }}")
        llm.complete("Hello")
        llm.chat_template = "B: {{ messages[0]['content'] }}"
        llm.complete("Hello")
        assert [tokenizer.decode(ids) for ids in fake.prompts] == ["A: Hello", "B: Hello"]


class TestTheQueryEngine:
    async def test_answers_with_source_nodes_and_measures(self, background: BackgroundEngine) -> None:
        for response in (query_engine(background).query("How?"), await query_engine(background).aquery("How?")):
            assert isinstance(response, Response)
            assert response.response
            assert [found.node.metadata["source"] for found in response.source_nodes] == [
                f"https://docs.example/{i}" for i in range(3)
            ]
            assert response.metadata["measures"]["ttft_s"] > 0  # type: ignore[index]

    def test_streams_with_source_nodes_that_grow(self, background: BackgroundEngine) -> None:
        gate = threading.Event()

        class TwoSteps:
            async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                yield Append(tuple(documents(1)))
                reached.set()
                await asyncio.to_thread(gate.wait)
                yield Append(tuple(documents(2)[1:]))

        reached = threading.Event()
        response = query_engine(background, TwoSteps(), streaming=True).query("How?")
        assert isinstance(response, StreamingResponse)
        assert reached.wait(30)  # nobody has read anything yet
        assert len(response.source_nodes) == 1
        gate.set()
        text = "".join(response.response_gen)
        assert len(response.source_nodes) == 2
        assert response.metadata["sources"] == ["https://docs.example/0", "https://docs.example/1"]  # type: ignore[index]
        assert text == query_engine(background, InMemoryRetriever.from_documents(documents(2))).query("How?").response  # type: ignore[union-attr]

    async def test_streams_to_a_loop(self, background: BackgroundEngine) -> None:
        response = await query_engine(background, streaming=True).aquery("How?")
        assert isinstance(response, AsyncStreamingResponse)
        text = "".join([piece async for piece in response.async_response_gen()])
        assert text == str(await query_engine(background).aquery("How?"))
        assert len(response.source_nodes) == 3

    async def test_a_response_that_nobody_reads_ends_with_it(self, background: BackgroundEngine, fake: FakeEngine) -> None:
        slow = InMemoryRetriever.from_documents(documents(2), gap_s=600)
        response = await query_engine(background, slow, streaming=True).aquery("How?")
        while not fake.sessions:
            await anyio.lowlevel.checkpoint()
        del response
        while fake.sessions or background._transfers:
            await anyio.lowlevel.checkpoint()

    async def test_postprocessors_see_the_whole_context_and_replace_it(self, background: BackgroundEngine) -> None:
        class Reverse(BaseNodePostprocessor):
            def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
                return nodes[::-1]

        engine = query_engine(background, node_postprocessors=[Reverse()], order="rank")
        response = await engine.aquery("How?")
        assert response.metadata["sources"] == [f"https://docs.example/{i}" for i in (2, 1, 0)]  # type: ignore[index]
        assert len(await engine.aretrieve(QueryBundle("How?"))) == len(engine.retrieve(QueryBundle("How?"))) == 3

    async def test_takes_llama_indexs_retrievers(self, background: BackgroundEngine) -> None:
        response = await query_engine(background, [Fixed(node("a")), Fixed(node("b"))]).aquery("How?")
        assert sorted(found.node.node_id for found in response.source_nodes) == ["a", "b"]

    async def test_a_listener_that_raises_does_not_cost_the_answer(self, background: BackgroundEngine) -> None:
        def listen(event: Any) -> None:
            raise ValueError("mine")

        assert str(await query_engine(background, on_event=listen).aquery("How?"))

    def test_is_closed_with_its_engine(self, fake: FakeEngine) -> None:
        with BackgroundEngine(fake) as background:
            engine = query_engine(background)
        with pytest.raises(LifecycleError, match="closed"):
            engine.query("How?")


class TestInsideOthers:
    async def test_a_router_chooses_it(self, background: BackgroundEngine) -> None:
        class Second(BaseSelector):
            def _get_prompts(self) -> dict[str, Any]:
                return {}

            def _update_prompts(self, prompts: Any) -> None: ...

            def _select(self, choices: Any, query: QueryBundle) -> SelectorResult:
                return SelectorResult(selections=[SingleSelection(index=1, reason="told to")])

            async def _aselect(self, choices: Any, query: QueryBundle) -> SelectorResult:
                return self._select(choices, query)

        tools = [
            QueryEngineTool.from_defaults(query_engine(background, Fixed(node(name)), streaming=name == "b"), name=name)
            for name in ("a", "b")
        ]
        router = RouterQueryEngine(Second(), tools, llm=MockLLM(), summarizer=get_response_synthesizer(llm=MockLLM()))  # type: ignore[arg-type]
        response = await router.aquery("How?")
        assert isinstance(response, AsyncStreamingResponse)
        assert await response.get_response()
        assert response.metadata["sources"] == ["b"]  # type: ignore[index]
        assert response.metadata["selector_result"].ind == 1  # type: ignore[index]

    async def test_sub_questions_go_to_it(self, background: BackgroundEngine) -> None:
        class Two:
            def _get_prompts(self) -> dict[str, Any]:
                return {}

            async def agenerate(self, tools: Any, query: Any) -> list[SubQuestion]:
                return [SubQuestion(sub_question=f"{word}?", tool_name="docs") for word in ("What", "Why")]

            def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
                raise AssertionError("retrieval is asked for asynchronously")

        tool = QueryEngineTool(query_engine(background), ToolMetadata(name="docs", description="Documentation"))
        engine = SubQuestionQueryEngine(
            question_gen=Two(),  # type: ignore[arg-type]
            response_synthesizer=get_response_synthesizer(llm=Stream2LLM(engine=background)),
            query_engine_tools=[tool],
            verbose=False,
        )
        response = await engine.aquery("How?")
        assert len([found for found in response.source_nodes if "Sub question" in found.node.get_content()]) == 2

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the agent uses what its own library and pydantic deprecate
    async def test_an_agent_calls_it_as_a_tool(self, background: BackgroundEngine) -> None:
        llm = Scripted(
            'Thought: I look it up.\nAction: docs\nAction Input: {"input": "How?"}',
            "Thought: I can answer without using any more tools.\nAnswer: Like this.",
        )
        agent = ReActAgent(tools=[QueryEngineTool.from_defaults(query_engine(background), name="docs")], llm=llm)
        handler = agent.run("How do I cancel a task?")
        events = [event async for event in handler.stream_events()]
        assert str((await handler).response.content) == "Like this."
        assert any(isinstance(event, AgentStream) for event in events)
        [called] = [event for event in events if type(event).__name__ == "ToolCallResult"]
        assert called.tool_output.raw_output.metadata["sources"]

    async def test_a_workflow_writes_its_progress_to_the_stream(self, background: BackgroundEngine) -> None:
        class Progress(Event):
            what: str

        class Asking(Workflow):
            @step
            async def ask(self, ctx: Context, start: StartEvent) -> StopEvent:
                engine = query_engine(
                    background,
                    streaming=True,
                    on_event=lambda event: ctx.write_event_to_stream(Progress(what=event.kind.value)),
                )
                response = await engine.aquery(start.question)
                async for text in response.async_response_gen():  # type: ignore[union-attr]
                    ctx.write_event_to_stream(Progress(what=f"text {text}"))
                return StopEvent(result=str(response.metadata["sources"]))  # type: ignore[union-attr, index]

        handler = Asking(timeout=60).run(question="How?")
        seen = [event.what async for event in handler.stream_events() if isinstance(event, Progress)]
        assert "https://docs.example/0" in await handler
        assert seen.index("delta") < seen.index("final_context") < seen.index("first_token")
        assert len([what for what in seen if what.startswith("text")]) == 8


class Events(BaseEventHandler):
    """Keeps what was told."""

    seen: list[Any]

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)


@pytest.fixture
def told() -> Iterator[tuple[Events, SimpleSpanHandler]]:
    root = instrument.get_dispatcher()
    before = list(root.event_handlers), list(root.span_handlers)
    events, spans = Events(seen=[]), SimpleSpanHandler()
    root.event_handlers = [events]
    root.span_handlers = [spans]
    yield events, spans
    root.event_handlers, root.span_handlers = before


def span_named(spans: Sequence[SimpleSpan], name: str) -> SimpleSpan:
    [found] = [span for span in spans if span.id_.startswith(f"StreamingRAGQueryEngine.{name}-")]
    return found


class TestInstrumentation:
    async def test_events_come_in_order_and_spans_end_with_generation(
        self, background: BackgroundEngine, told: tuple[Events, SimpleSpanHandler]
    ) -> None:
        events, spans = told
        slow = InMemoryRetriever.from_documents(documents(3), gap_s=0.05)
        response = await query_engine(background, slow, streaming=True).aquery("How?")
        names = [event.class_name() for event in events.seen]
        assert names[0] == "QueryStartEvent"
        assert names[-1] == "QueryEndEvent"  # LlamaIndex's own, before there is an answer
        async for _ in response.async_response_gen():  # type: ignore[union-attr]
            pass
        told_of = [
            event.kind if event.class_name() == "ContextProgressEvent" else event.class_name() for event in events.seen[2:]
        ]
        end = told_of.index("RetrievalEndEvent")
        assert told_of[:2] == ["RetrievalStartEvent", "LLMChatStartEvent"]
        assert "computed" in told_of[:end]
        assert end < told_of.index("first_token") < told_of.index("LLMChatInProgressEvent")
        assert told_of[-2:] == ["LLMChatEndEvent", "AnswerEndEvent"]
        retrieval, generation = span_named(spans.completed_spans, "retrieve"), span_named(spans.completed_spans, "generate")
        last_piece = [event for event in events.seen if event.class_name() == "LLMChatInProgressEvent"][-1]
        assert retrieval.end_time < last_piece.timestamp < generation.end_time  # type: ignore[operator]
        assert generation.parent_id.startswith("StreamingRAGQueryEngine._aquery-")  # type: ignore[union-attr]
        assert events.seen[-1].measures["ttft_s"] > 0

    async def test_spans_of_an_answer_that_is_cancelled_are_dropped(
        self, background: BackgroundEngine, fake: FakeEngine, told: tuple[Events, SimpleSpanHandler]
    ) -> None:
        _, spans = told
        slow = InMemoryRetriever.from_documents(documents(2), gap_s=600)
        task = asyncio.create_task(query_engine(background, slow).aquery("How?"))
        while not fake.sessions:
            await anyio.lowlevel.checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert span_named(spans.dropped_spans, "retrieve")
        assert span_named(spans.dropped_spans, "generate")
        assert not spans.open_spans
        assert not fake.sessions


class TestASource:
    async def test_of_a_fusion_retriever_gives_what_that_would(self, background: BackgroundEngine) -> None:
        members = [Fixed(node("a", 0.2), node("b", 0.9)), Fixed(node("b", 0.5), node("c", 0.4))]
        for mode in ("reciprocal_rerank", "relative_score", "dist_based_score", "simple"):
            fusion = QueryFusionRetriever(
                members,  # type: ignore[arg-type]
                llm=MockLLM(),
                mode=mode,  # type: ignore[arg-type]
                num_queries=1,
                similarity_top_k=2,
            )
            deltas = [delta async for delta in StreamingSource.from_llama_index(fusion).stream("How?")]
            assert [type(delta) for delta in deltas] == [Append, Append, Replace]
            expected = [(found.node.node_id, found.score) for found in await fusion.aretrieve("How?")]
            assert [(document.source, document.score) for document in deltas[-1].documents] == expected

    async def test_of_a_fusion_retriever_that_writes_queries_asks_it_as_a_whole(self) -> None:
        fusion = QueryFusionRetriever([Fixed(node("a"))], llm=MockLLM(), num_queries=2)
        deltas = [delta async for delta in StreamingSource.from_llama_index(fusion).stream("How?")]
        assert [type(delta) for delta in deltas] == [Append]

    async def test_postprocessors_run_at_the_end(self) -> None:
        source = StreamingSource.from_llama_index(
            [Fixed(node("a", 0.2)), Fixed(node("b", 0.9))],
            node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.5)],
        )
        deltas = [delta async for delta in source.stream("How?")]
        assert [document.source for document in deltas[-1].documents] == ["b"]

    def test_needs_retrievers(self) -> None:
        with pytest.raises(InvalidInputError, match="str came"):
            StreamingSource.from_llama_index(["docs"])  # type: ignore[list-item]


class TestConversions:
    def test_a_node_comes_back_itself(self) -> None:
        original = node("a", 0.5)
        assert to_node(from_node(original)) is original

    def test_a_document_becomes_a_node_with_its_source(self) -> None:
        made = to_node(Document("text", "https://a", title="A", score=0.5))
        assert (made.node.get_content(), made.score) == ("text", 0.5)
        assert made.node.metadata == {"source": "https://a", "title": "A"}

    def test_a_retriever_limits_its_nodes(self) -> None:
        retriever = Stream2LLMRetriever(InMemoryRetriever.from_documents(documents(3)), similarity_top_k=2)
        assert len(retriever.retrieve("How?")) == 2
        with pytest.raises(InvalidInputError, match="at least 1"):
            Stream2LLMRetriever(InMemoryRetriever.from_documents(documents(3)), similarity_top_k=0)
        with pytest.raises(InvalidInputError, match="stream"):
            Stream2LLMRetriever("docs")  # type: ignore[arg-type]

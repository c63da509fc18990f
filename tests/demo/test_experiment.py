from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stream2llm_rag.demo import TOPICS, DocumentationServer, Experiment, Settings, compare, experiment, forget_prefixes
from stream2llm_rag.demo.comparison import Answers
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.errors import CrawlError, EngineError
from stream2llm_rag.timeline import Event, EventKind

SETTINGS = Settings(max_pages=4, delay_s=0.0, max_document_tokens=200)


class Engine(FakeEngine):
    """A fake engine that notes when its prefix cache was reset: after how many answers."""

    def __init__(self, tokenizer: Any, num_refusals: int = 0) -> None:
        super().__init__(tokenizer, max_model_len=16384)
        self.resets: list[int] = []
        self._num_refusals = num_refusals

    async def reset_prefix_cache(self) -> bool:
        assert not self.sessions
        self._num_refusals -= 1
        if self._num_refusals >= 0:
            return False
        self.resets.append(len(self.prompts))
        return True


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture
def engine(tokenizer: Any) -> Engine:
    return Engine(tokenizer)


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[DocumentationServer]:
    async with DocumentationServer() as server:
        yield server


def ignore(index: int, event: Event) -> None:
    pass


async def test_the_replay_gives_the_prompt_that_was_streamed(engine: Engine, server: DocumentationServer) -> None:
    async with Experiment(engine, server, TOPICS[:1], SETTINGS) as demo:
        [streamed] = await demo.stream(ignore)
        [usual] = await demo.replay(ignore)
    assert engine.prompts[0] == engine.prompts[1]
    assert streamed.documents == usual.documents
    assert len(streamed.documents) == 4
    assert all(placed.num_tokens == 200 for placed in streamed.documents)
    assert usual.retrieval_s == pytest.approx(streamed.retrieval_s, rel=0.5, abs=1.0)
    assert streamed.overlap_tokens > 0 == usual.overlap_tokens
    assert (streamed.streaming, usual.streaming) == (True, False)


async def test_answers_are_equal_and_the_control_differs(engine: Engine, server: DocumentationServer) -> None:
    async with Experiment(engine, server, TOPICS[:2], SETTINGS) as demo:
        streamed, usual = await demo.stream(), await demo.replay()
        control = await demo.control(usual)
    for one, other, without in zip(streamed, usual, control, strict=True):
        comparison = compare(Answers(one, other, without))
        assert comparison.answers_equal
        assert comparison.control_differs
        assert [placed.document for placed in without.documents] == [placed.document for placed in other.documents[:-1]]


async def test_each_topic_is_asked_over_its_own_pages(engine: Engine, server: DocumentationServer) -> None:
    async with Experiment(engine, server, TOPICS[:3], SETTINGS) as demo:
        results = await demo.stream()
    assert [result.question for result in results] == [topic.question for topic in TOPICS[:3]]
    assert [result.sources[0] for result in results] == [server.page(topic.module) for topic in TOPICS[:3]]


async def test_the_prefix_cache_is_reset_before_each_step(engine: Engine, server: DocumentationServer) -> None:
    async with Experiment(engine, server, TOPICS[:2], SETTINGS) as demo:
        await demo.warm_up()
        streamed = await demo.stream()
        await demo.replay()
        await demo.control(streamed)
    assert engine.resets == [0, 1, 2, 4, 6]  # before each answer of the warm-up, then before each round of two
    assert len(engine.prompts) == 8


async def test_the_warm_up_is_as_long_as_what_follows(engine: Engine, server: DocumentationServer) -> None:
    async with Experiment(engine, server, TOPICS[:1], SETTINGS) as demo:
        await demo.warm_up()
        await demo.stream()
    warm_streamed, warm_usual, streamed = engine.prompts
    assert warm_streamed == warm_usual
    assert len(warm_streamed) == pytest.approx(len(streamed), rel=0.1)


async def test_events_are_told_with_the_topic_that_they_belong_to(engine: Engine, server: DocumentationServer) -> None:
    told: list[tuple[int, EventKind, str]] = []
    async with Experiment(engine, server, TOPICS[:2], SETTINGS) as demo:
        results = await demo.stream(lambda index, event: told.append((index, event.kind, event.label)))
    for index, result in enumerate(results):
        fetched = [label for at, kind, label in told if (at, kind) == (index, EventKind.FETCH)]
        assert fetched == [placed.document.title for placed in result.documents]


class GoneServer(DocumentationServer):
    """An address where nobody listens: port 9 of the loopback, discard (RFC 863)."""

    url = "http://127.0.0.1:9/"


async def test_a_crawl_that_finds_nothing_is_raised_as_it_is(engine: Engine) -> None:
    async with Experiment(engine, GoneServer(), TOPICS[:2], SETTINGS) as demo:
        with pytest.raises(CrawlError, match="No page could be read"):
            await demo.stream()
    assert not engine.sessions


async def test_a_prefix_cache_that_is_held_for_a_moment_is_waited_for(tokenizer: Any) -> None:
    engine = Engine(tokenizer, num_refusals=3)
    await forget_prefixes(engine)
    assert engine.resets == [0]


async def test_a_prefix_cache_that_stays_held_is_an_error(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_FORGET_TIMEOUT_S", 0.05)
    with pytest.raises(EngineError, match="requests hold KV"):
        await forget_prefixes(Engine(tokenizer, num_refusals=10**9))

"""One engine on its own loop, for scripts, threads and running loops."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from stream2llm_rag import ContextDelta, InvalidInputError, Stream2LLMEngine
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.engine.session import Session
from stream2llm_rag.errors import CapacityError, EngineDied, EngineStartError, LifecycleError, UnsupportedError
from stream2llm_rag.integrations import BackgroundEngine
from stream2llm_rag.integrations.crossing import Outlet
from stream2llm_rag.integrations.langchain import ChatStream2LLM, Stream2LLMRetriever, StreamingRAGRunnable
from stream2llm_rag.retrievers.base import InMemoryRetriever

from .conftest import documents


class Opened(FakeEngine):
    """An engine that has to be opened, as real ones have."""

    def __init__(self, tokenizer: Any, error: Exception | None = None) -> None:
        super().__init__(tokenizer)
        self.error = error
        self.history: list[str] = []

    async def __aenter__(self) -> Opened:
        self.history.append("open")
        if self.error is not None:
            raise self.error
        return self

    async def __aexit__(self, *_: object) -> None:
        self.history.append("close")


class Crawl:
    """A retriever that works on no loop but the one that opened it, and says whether it was closed."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_closed = False

    async def __aenter__(self) -> Crawl:
        self.loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_closed = True

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        assert asyncio.get_running_loop() is self.loop
        async for delta in InMemoryRetriever.from_documents(documents(2)).stream(query):
            yield delta


def test_it_is_opened_once_and_closed_as_often_as_one_likes(tokenizer: Any) -> None:
    engine = Opened(tokenizer)
    with BackgroundEngine(engine) as background:
        assert background.engine is engine
        with pytest.raises(LifecycleError, match="is open"):
            background.open()
    background.close()
    assert engine.history == ["open", "close"]
    for use in (lambda: background.engine, lambda: background.host(Crawl()), background.open):
        with pytest.raises(LifecycleError, match="closed"):
            use()


async def test_opening_does_not_block_a_loop(tokenizer: Any) -> None:
    class Slow(Opened):
        async def __aenter__(self) -> Opened:
            entered.set()
            await asyncio.to_thread(gate.wait)
            return await super().__aenter__()

    entered, gate = threading.Event(), threading.Event()
    engine = Slow(tokenizer)

    async def open_it() -> None:
        async with BackgroundEngine(engine) as background:
            assert background.engine is engine

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        await anyio.to_thread.run_sync(entered.wait)
        gate.set()
    assert engine.history == ["open", "close"]


async def test_one_that_is_cancelled_while_it_opens_is_closed(tokenizer: Any) -> None:
    engine = Opened(tokenizer)

    async def open_it() -> None:
        async with BackgroundEngine(engine):
            raise AssertionError("entered")

    task = asyncio.create_task(open_it())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.history in (["open", "close"], [])


def test_an_engine_that_does_not_open_leaves_no_thread(tokenizer: Any) -> None:
    before = set(threading.enumerate())
    with pytest.raises(EngineStartError, match="no GPU"):
        BackgroundEngine(Opened(tokenizer, EngineStartError("no GPU"))).open()
    assert set(threading.enumerate()) <= before


def test_what_is_no_engine_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="Stream2LLMEngine"):
        BackgroundEngine("Qwen/Qwen3-0.6B")  # type: ignore[arg-type]


def test_it_cannot_be_pickled_nor_what_holds_it(background: BackgroundEngine) -> None:
    retriever = InMemoryRetriever.from_documents(documents(1))
    for held in (background, ChatStream2LLM(engine=background), StreamingRAGRunnable(engine=background, retriever=retriever)):
        with pytest.raises(UnsupportedError, match="cannot be pickled"):
            pickle.dumps(held)


def test_calls_from_many_threads_share_it(background: BackgroundEngine, fake: FakeEngine) -> None:
    rag = StreamingRAGRunnable(engine=background, retriever=InMemoryRetriever.from_documents(documents(2)))
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda number: rag.invoke(f"Question {number}?").text, range(48)))
    assert len(set(answers)) == 48
    assert answers[7] == rag.invoke("Question 7?").text


async def test_calls_that_are_not_async_work_inside_a_running_loop(background: BackgroundEngine) -> None:
    rag = StreamingRAGRunnable(engine=background, retriever=InMemoryRetriever.from_documents(documents(2)))
    assert rag.invoke("How?").text == (await rag.ainvoke("How?")).text


async def test_calls_that_would_block_its_own_loop_are_refused(background: BackgroundEngine) -> None:
    chat = ChatStream2LLM(engine=background)

    async def produce(outlet: Outlet[str]) -> None:
        assert background.is_current
        with pytest.raises(LifecycleError, match="ainvoke"):
            chat.invoke("Hello")
        with pytest.raises(LifecycleError, match="own loop"):
            background.close()
        with pytest.raises(LifecycleError, match="own loop"):
            background.host(Crawl())
        outlet.emit((await chat.ainvoke("Hello")).text)

    async with background.aiterate(produce) as answers:
        assert await anext(answers) == (await chat.ainvoke("Hello")).text


def test_calls_nested_in_retrieval_do_not_wait_for_each_others_threads(background: BackgroundEngine) -> None:
    """Each of many retrievals blocks a thread while it asks the same engine."""
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    chat = ChatStream2LLM(engine=background)
    all_here = threading.Barrier(40, timeout=60)

    class Rewriting(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            all_here.wait()
            return [Document(chat.invoke(query).text or "nothing", metadata={"source": "rewritten"})]

    rag = StreamingRAGRunnable(engine=background, retriever=Rewriting())
    answers = rag.batch([f"Question {number}?" for number in range(40)], {"max_concurrency": 40})
    assert [answer.response_metadata["sources"] for answer in answers] == [["rewritten"]] * 40


class TestAHostedRetriever:
    def test_runs_on_the_engines_loop_whoever_asks(self, background: BackgroundEngine) -> None:
        crawl = Crawl()
        rag = StreamingRAGRunnable(engine=background, retriever=background.host(crawl))
        assert len(rag.invoke("How?").response_metadata["sources"]) == 2
        assert len(asyncio.run(rag.ainvoke("How?")).response_metadata["sources"]) == 2
        background.close()
        assert crawl.is_closed

    async def test_that_was_opened_here_runs_here(self, background: BackgroundEngine) -> None:
        async with Crawl() as crawl:
            rag = StreamingRAGRunnable(engine=background, retriever=crawl)
            assert len((await rag.ainvoke("How?")).response_metadata["sources"]) == 2

    def test_that_is_handed_in_while_the_engine_closes_is_closed_with_it(
        self, background: BackgroundEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closing, check = threading.Thread(target=background.close), background._check

        def check_and_close() -> None:
            check()
            monkeypatch.undo()
            closing.start()
            if not background._lock.locked():
                closing.join()

        monkeypatch.setattr(background, "_check", check_and_close)
        crawl = Crawl()
        background.host(crawl)
        closing.join()
        assert crawl.is_closed

    def test_has_to_be_one(self, background: BackgroundEngine, tokenizer: Any) -> None:
        with pytest.raises(InvalidInputError, match="stream"):
            background.host(Opened(tokenizer))

    def test_has_to_need_hosting(self, background: BackgroundEngine) -> None:
        with pytest.raises(InvalidInputError, match="InMemoryRetriever does not"):
            background.host(InMemoryRetriever.from_documents([]))  # type: ignore[arg-type]


class TestClosing:
    def test_ends_what_is_under_way(self, fake: FakeEngine) -> None:
        background = BackgroundEngine(fake).open()
        rag = StreamingRAGRunnable(engine=background, retriever=InMemoryRetriever.from_documents(documents(2), gap_s=600))
        chunks = rag.stream("How?")
        reading = threading.Thread(target=lambda: outcomes.append(_outcome(chunks)))
        outcomes: list[BaseException | None] = []
        reading.start()
        while not fake.sessions:
            threading.Event().wait(0.001)
        background.close()
        reading.join()
        assert isinstance(outcomes[0], LifecycleError)
        assert not fake.sessions

    async def test_ends_what_another_loop_reads(self, fake: FakeEngine) -> None:
        async with BackgroundEngine(fake) as background:
            rag = StreamingRAGRunnable(engine=background, retriever=InMemoryRetriever.from_documents(documents(2), gap_s=600))
            reading = asyncio.create_task(rag.ainvoke("How?"))
            while not fake.sessions:
                await anyio.lowlevel.checkpoint()
        with pytest.raises(LifecycleError):
            await reading

    async def test_from_a_loop_that_has_answers_under_way_does_not_wait_for_it_for_ever(
        self, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stream2llm_rag.integrations.crossing.CLOSE_TIMEOUT_S", 0.01)
        background = BackgroundEngine(fake).open()
        rag = StreamingRAGRunnable(engine=background, retriever=InMemoryRetriever.from_documents(documents(2), gap_s=600))
        reading = asyncio.create_task(rag.ainvoke("How?"))
        while not fake.sessions:
            await anyio.lowlevel.checkpoint()
        background.close()  # blocks this loop, on which the retriever runs
        with pytest.raises(LifecycleError):
            await reading

    def test_happens_by_itself_when_the_interpreter_exits(self) -> None:
        code = (
            "from stream2llm_rag.integrations import BackgroundEngine\n"
            "class Engine:\n"
            "    async def open(self): ...\n"
            "    async def __aenter__(self): return self\n"
            "    async def __aexit__(self, *_): print('closed')\n"
            "BackgroundEngine(Engine()).open()\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


class TestNeverWaitsForEver:
    def test_for_one_that_ends_the_program(self, background: BackgroundEngine) -> None:
        """asyncio lets SystemExit out of the loop, whoever's task raises it."""

        class Exiting(Crawl):
            async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                raise SystemExit(3)
                yield  # pragma: no cover - makes it a generator

        retriever = Stream2LLMRetriever(retriever=background.host(Exiting()))
        with ThreadPoolExecutor(1) as thread, pytest.raises(SystemExit, match="3"):
            thread.submit(retriever.invoke, "How?").result(60)
        assert ChatStream2LLM(engine=background).invoke("Hello").text  # the engine serves the others

    def test_for_a_hosted_retriever_when_the_engine_closes_meanwhile(self, fake: FakeEngine) -> None:
        class Hanging(Crawl):
            async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
                reading.set()
                await anyio.sleep_forever()
                yield  # pragma: no cover - makes it a generator

        reading = threading.Event()
        background = BackgroundEngine(fake).open()
        retriever = Stream2LLMRetriever(retriever=background.host(Hanging()))
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(retriever.invoke, "How?")
            assert reading.wait(30)
            background.close()
            with pytest.raises(LifecycleError, match="before its end"):
                found.result(30)
        with pytest.raises(LifecycleError, match="closed"):
            retriever.invoke("How?")
        with pytest.raises(LifecycleError, match="closed"):
            asyncio.run(retriever.ainvoke("How?"))

    def test_for_an_engine_whose_opening_is_cancelled_from_inside(self, tokenizer: Any) -> None:
        class Cancelled(Opened):
            async def __aenter__(self) -> Opened:
                raise asyncio.CancelledError

        with pytest.raises(LifecycleError, match="opening was cancelled"):
            BackgroundEngine(Cancelled(tokenizer)).open()

    def test_in_a_process_that_was_forked(self) -> None:
        code = (
            "import os, sys\n"
            "from stream2llm_rag.integrations import BackgroundEngine\n"
            "class Engine:\n"
            "    async def open(self): ...\n"
            "engine = BackgroundEngine(Engine()).open()\n"
            "child = os.fork()\n"
            "if child:\n"
            "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
            "try:\n"
            "    engine.engine\n"
            "except RuntimeError as error:\n"
            "    print(type(error).__name__, error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("LifecycleError this engine belongs to the process")


def _outcome(chunks: Any) -> BaseException | None:
    try:
        list(chunks)
    except LifecycleError as error:
        return error
    return None


async def test_the_death_of_the_engine_reaches_every_reader(background: BackgroundEngine, fake: FakeEngine) -> None:
    rag = StreamingRAGRunnable(engine=background, retriever=InMemoryRetriever.from_documents(documents(2), gap_s=600))
    reading = asyncio.create_task(rag.ainvoke("How?"))

    async def die(outlet: Outlet[None]) -> None:
        while not fake.sessions:
            await anyio.lowlevel.checkpoint()
        fake.lifeline.die()

    async with background.aiterate(die) as dying:
        async for _ in dying:
            pass
    with pytest.raises(EngineDied):
        await reading


class Full(FakeEngine):
    """Refuses the first calls."""

    num_refusals = 2

    async def open(self, *args: Any, **options: Any) -> Session:
        if self.num_refusals:
            self.num_refusals -= 1
            raise CapacityError("full")
        return await super().open(*args, **options)


class TestAPrompt:
    async def test_is_tried_again_while_the_engine_is_full(self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stream2llm_rag.integrations.answering._RETRY_AFTER_S", 0)
        async with BackgroundEngine(Full(tokenizer)) as background:
            with pytest.raises(CapacityError):
                await ChatStream2LLM(engine=background, max_retries=1).ainvoke("Hello")
            background.engine.num_refusals = 2  # type: ignore[attr-defined]
            assert (await ChatStream2LLM(engine=background, max_retries=2).ainvoke("Hello")).text

    async def test_that_takes_too_long_is_ended(self, tokenizer: Any) -> None:
        fake = FakeEngine(tokenizer, num_answer_tokens=10**9)
        async with BackgroundEngine(fake) as background:
            with pytest.raises(TimeoutError):
                await ChatStream2LLM(engine=background, timeout=0.05).ainvoke("Hello")
            assert not fake.sessions


def test_an_engine_in_a_script_without_a_guard_is_refused(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from stream2llm_rag import Stream2LLMEngine\nfrom stream2llm_rag.integrations import BackgroundEngine\n"
        "with BackgroundEngine(Stream2LLMEngine('nowhere')): pass\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert 'if __name__ == "__main__":' in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(("missing", "extra"), [("langchain_core", "langchain"), ("llama_index", "llama-index")])
def test_an_adapter_without_its_framework_names_the_extra(missing: str, extra: str) -> None:
    code = (
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name.split('.')[0] == {missing!r} else find(name, *a)\n"
        f"try:\n    import stream2llm_rag.integrations.{extra.replace('-', '_')}\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("MissingExtraError"), done.stderr
    assert f"stream2llm-rag[{extra}]" in done.stdout


def test_importing_the_shared_part_needs_no_framework() -> None:
    code = "import sys, stream2llm_rag.integrations; print({'langchain_core', 'llama_index', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "set()\n"


def test_a_model_that_does_not_exist_is_a_clear_error() -> None:
    with pytest.raises(EngineStartError, match="no model at"):
        BackgroundEngine(Stream2LLMEngine("./nowhere")).open()

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import psutil
import pytest

from stream2llm_rag.retrievers.crawler import pool as pool_module
from stream2llm_rag.retrievers.crawler import worker
from stream2llm_rag.retrievers.crawler.pages import Outline, Page, PageSkippedError
from stream2llm_rag.retrievers.crawler.pool import ExtractionPool
from stream2llm_rag.retrievers.crawler.wire import encode_page

from .misbehaving import PATH


@pytest.fixture
async def pool() -> AsyncIterator[ExtractionPool]:
    children = set(psutil.Process().children())
    pool = ExtractionPool(num_workers=1, timeout_s=60.0, extractor=PATH)
    pool.open()
    yield pool
    await pool.aclose()
    assert set(psutil.Process().children()) == children


def page(path: str, body: bytes = b"<title>T</title><p>hello</p>", content_type: str = "text/html") -> Page:
    return Page(f"http://h{path}", content_type, body)


async def text_of(pool: ExtractionPool, each: Page) -> str:
    return (await pool.extract(each, lambda outline: None)).text


async def test_the_outline_comes_before_the_text(pool):
    outlines: list[Outline] = []
    extracted = await pool.extract(page("/"), outlines.append)
    assert outlines == [extracted.outline] == [Outline(title="T")]
    assert extracted.text == "hello"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/crash", "was killed by SIGSEGV"),
        ("/exit", "ended with exit code 3"),
        ("/greedy", r"could not be extracted: MemoryError\(\)"),
        ("/raise", r"could not be extracted: RuntimeError\('boom'\)"),
    ],
)
async def test_a_page_that_breaks_its_process_costs_only_itself(pool, path, reason):
    with pytest.raises(PageSkippedError, match=reason):
        await text_of(pool, page(path))
    assert await text_of(pool, page("/")) == "hello"


async def test_a_page_that_hangs_ends_with_its_process(pool):
    before = int(await text_of(pool, page("/pid")))
    pool._workers[0]._timeout_s = 0.2
    with pytest.raises(PageSkippedError, match=r"not extracted within 0\.2 s"):
        await text_of(pool, page("/hang"))
    pool._workers[0]._timeout_s = 60.0
    async with asyncio.timeout(20):
        assert int(await text_of(pool, page("/pid"))) != before
    assert not psutil.pid_exists(before)


async def test_an_exception_does_not_cost_the_process(pool):
    before = await text_of(pool, page("/pid"))
    with pytest.raises(PageSkippedError):
        await text_of(pool, page("/raise"))
    assert await text_of(pool, page("/pid")) == before


async def test_what_an_extractor_prints_does_not_disturb(pool):
    assert await text_of(pool, page("/babble")) == "hello"


async def test_a_cancelled_page_frees_its_process(pool):
    reached = asyncio.Event()
    task = asyncio.create_task(pool.extract(page("/hang"), lambda outline: reached.set()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(20):
        assert await text_of(pool, page("/")) == "hello"


async def test_pages_that_wait_can_be_cancelled(pool):
    reached = asyncio.Event()
    running = asyncio.create_task(pool.extract(page("/hang"), lambda outline: reached.set()))
    await reached.wait()
    waiting = [asyncio.create_task(text_of(pool, page("/"))) for _ in range(3)]
    await asyncio.sleep(0)
    for task in (*waiting, running):
        task.cancel()
    await asyncio.wait([*waiting, running])
    assert await text_of(pool, page("/")) == "hello"


async def test_a_process_is_replaced_after_so_many_pages(pool, monkeypatch):
    monkeypatch.setattr(pool_module, "_MAX_PAGES_PER_WORKER", 2)
    pids = [await text_of(pool, page("/pid")) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_a_large_page_goes_through(pool):
    body = b"<p>" + b"word " * 600_000 + b"</p>"
    assert len(await text_of(pool, page("/", body))) == 2_999_999


async def test_the_process_has_nothing_of_the_program_that_started_it(pool):
    modules = set((await text_of(pool, page("/modules"))).split())
    assert "lxml" in modules
    assert modules.isdisjoint({"vllm", "torch", "transformers", "pytest"})


async def test_ctrl_c_in_a_terminal_does_not_reach_the_process(pool):
    assert os.getsid(int(await text_of(pool, page("/pid")))) != os.getsid(0)


async def test_a_process_that_hangs_ends_by_itself_should_the_crawler_be_gone():
    command = f"import sys; sys.path[:] = {sys.path!r}; from {worker.__name__} import main; main({PATH!r}, 0.5)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", command, stdin=PIPE, stdout=PIPE)
    process.stdin.write(encode_page(page("/hang")))
    async with asyncio.timeout(30):
        await process.stdout.read()  # with stdin still open
    assert await process.wait() == -signal.SIGALRM


@pytest.mark.parametrize("path", ["no_such_module:f", "os:no_such_function"])
async def test_an_extractor_that_does_not_exist_is_named_with_each_page(path):
    pool = ExtractionPool(num_workers=1, timeout_s=10.0, extractor=path)
    pool.open()
    for _ in range(2):
        with pytest.raises(PageSkippedError, match=f"no extractor '{path}'"):
            await text_of(pool, page("/"))
    await pool.aclose()


async def test_a_pool_can_be_closed_while_its_processes_start():
    children = set(psutil.Process().children())
    pool = ExtractionPool(num_workers=3, timeout_s=10.0, extractor=PATH)
    pool.open()
    await asyncio.sleep(0)
    await pool.aclose()
    assert set(psutil.Process().children()) == children

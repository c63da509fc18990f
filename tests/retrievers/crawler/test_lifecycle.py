from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import textwrap

import psutil
import pytest

from stream2llm_rag.errors import CrawlError, LifecycleError
from stream2llm_rag.retrievers.crawler import WebCrawler

from .conftest import read

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_use_before_open_and_after_close_is_an_error():
    crawler = WebCrawler(["http://h/"])
    with pytest.raises(LifecycleError, match="not open"):
        crawler.stream("why?")
    async with crawler:
        pass
    with pytest.raises(LifecycleError, match="closed"):
        crawler.stream("why?")
    with pytest.raises(LifecycleError, match="opened once"):
        await crawler.__aenter__()
    await crawler.aclose()


async def test_use_on_another_loop_than_the_one_that_opened_it_is_an_error():
    async def start():
        crawler.stream("why?")

    async with WebCrawler(["http://h/"]) as crawler:
        with pytest.raises(LifecycleError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, start())


async def test_leaving_a_stream_early_ends_its_requests(site, crawler_on):
    site.page("/", "a", "b")
    site.page("/a", gated=True)
    site.page("/b", gated=True)
    async with crawler_on("/") as crawler:
        stream = crawler.stream("why?")
        await anext(stream)
        await site.until(lambda: site.num_active == 2)
        await stream.aclose()
        await site.until_idle()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        site.gate.set()
        assert len((await read(crawler.stream("why?"))).documents) == 3


async def test_closing_the_crawler_ends_its_streams_with_an_error_that_keeps_what_came(site, crawler_on):
    site.page("/", "slow")
    site.page("/slow", gated=True)
    async with crawler_on("/") as crawler:
        stream = crawler.stream("why?")
        first = await anext(stream)
        reader = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
    with pytest.raises(CrawlError, match="closed before") as caught:
        await reader
    assert caught.value.documents == first.documents
    await site.until_idle()


async def test_an_error_inside_the_block_ends_everything_too(site, crawler_on):
    site.page("/", gated=True)

    async def fail_while_crawling():
        async with crawler_on("/") as crawler:
            crawler.stream("why?")
            await site.until(lambda: site.num_active == 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_while_crawling()
    await site.until_idle()


async def test_streams_cancelled_at_random_moments_leave_the_crawler_as_it_was(site, crawler_on):
    moments = random.Random(1)
    site.page("/", *(f"p{i}" for i in range(8)), "hang")
    site.page("/hang")
    for i in range(8):
        site.page(f"/p{i}")
    async with crawler_on("/", "/p1", "/p2") as crawler:
        for _ in range(60):
            streams = [crawler.stream("why?") for _ in range(moments.randrange(1, 4))]
            readers = [asyncio.create_task(read(stream)) for stream in streams]
            for _ in range(int(2 ** moments.uniform(0, 9))):
                await asyncio.sleep(0)
            for stream, reader in zip(streams, readers, strict=True):
                reader.cancel()
                await stream.aclose()
            await asyncio.wait(readers)
        await site.until_idle()
        assert len(crawler._streams) == 0
        assert crawler._pool._idle.qsize() == 1
        assert all(origin.num_active == 0 for origin in crawler._politeness._origins.values())
        del site.pages["/hang"]
        assert len((await read(crawler.stream("why?"))).documents) == 9


async def test_crawlers_given_up_at_random_moments_leave_no_task_process_or_connection(site, crawler_on):
    moments = random.Random(2)
    site.page("/", *(f"p{i}" for i in range(8)), "hang")
    site.page("/hang")
    for i in range(8):
        site.page(f"/p{i}")
    processes = psutil.Process()
    children = set(processes.children())

    async def use():
        async with crawler_on("/", "/p1") as crawler:
            await asyncio.gather(read(crawler.stream("why?")), read(crawler.stream("why not?")))

    for num_requests in (0, 1, 2, 3, 5, 8, 12):
        site.requests.clear()
        block = asyncio.create_task(use())
        await site.until(lambda: len(site.requests) >= num_requests)  # noqa: B023 - it is awaited here
        for _ in range(moments.randrange(40)):
            await asyncio.sleep(0)
        block.cancel()
        for _ in range(moments.randrange(10)):
            await asyncio.sleep(0)
        block.cancel()  # while it closes
        await asyncio.wait([block])
        assert block.cancelled()
        assert [task for task in asyncio.all_tasks() if "/stream2llm_rag/" in task.get_coro().cr_code.co_filename] == []
        assert set(processes.children()) == children
        assert [each for each in processes.net_connections() if each.raddr and each.raddr.port == site.port] == []


async def test_a_crash_and_a_hang_cost_their_own_pages(site, crawler_on):
    site.page("/", "crash", "hang", "fine")
    for path in ("/crash", "/hang", "/fine"):
        site.page(path)
    async with crawler_on("/", extract_timeout_s=2.0) as crawler:
        result = await read(crawler.stream("why?"))
    assert result.paths(site) == {"/", "/fine"}
    assert "SIGSEGV" in result.skipped[site.url("/crash")]
    assert "2 s" in result.skipped[site.url("/hang")]


async def test_a_script_without_a_main_guard_crawls_as_any_other(site, tmp_path):
    site.page("/", "a")
    site.page("/a")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import asyncio
        from stream2llm_rag.retrievers.crawler import WebCrawler

        async def main():
            async with WebCrawler([{site.url("/")!r}], allow_private_hosts=[{site.host!r}]) as crawler:
                return [delta.documents[0].source async for delta in crawler.stream("why?")]

        print("started")
        print(len(asyncio.run(main())))
        """)
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    out, err = await process.communicate()
    assert (out.decode().split(), err.decode()) == (["started", "2"], "")


async def test_no_process_outlives_a_program_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio
        from stream2llm_rag.retrievers.crawler import WebCrawler

        async def main():
            async with WebCrawler(["http://127.0.0.1:1/"], num_extractors=2) as crawler:
                for worker in crawler._pool._workers:
                    print((await worker._starting).pid, flush=True)
                await asyncio.Event().wait()

        asyncio.run(main())
        """)
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
    )
    workers = [psutil.Process(int(await process.stdout.readline())) for _ in range(2)]
    process.kill()
    await process.communicate()
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, timeout=20)
    assert alive == []

"""What the network adds, and what becomes of clients that vanish: ``python -m benchmarks.serve``.

Starts `stream2llm serve` on the tiny model as a process, and the same engine in this one, which also is all clients.
First, in turns, the TTFT of one stream on each. Then many streams at once on each, of which a third ends in the middle: the
local ones are aborted, the remote ones vanish, half of them by closing their sockets and half by falling silent. The rest must
answer as the engine here does for whole prompts, and no KV block may stay held. Exits with 1 if that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import anyio.to_thread
import numpy as np

from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.session import Session
from stream2llm_rag.serve import RemoteEngine
from stream2llm_rag.tiny_model import build_tiny_model

ENGINE_ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": 8192,
    "max_num_batched_tokens": 1024,
    "kv_cache_memory_bytes": 2**30,
}
GREEDY = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
HEARTBEAT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Scene:
    """Streams of one load: prompt ``i`` is cut into chunks that arrive ``gap_s`` apart, the first after ``delays_s[i]``."""

    prompts: list[list[int]]
    delays_s: list[float]
    num_chunks: int = 5
    gap_s: float = 2.0

    def chunks(self, number: int) -> list[list[int]]:
        return [part.tolist() for part in np.array_split(self.prompts[number], self.num_chunks + 1)]


@dataclass
class Outcome:
    ttfts_s: list[float]
    answers: dict[int, list[int]]


def random_prompt(dice: random.Random, num_tokens: int) -> list[int]:
    return [dice.randrange(5, 2000) for _ in range(num_tokens)]


async def finish(session: Session, suffix: list[int]) -> tuple[float, list[int]]:
    """TTFT in seconds, from the call of finish, and the answer."""
    started, first, tokens = time.monotonic(), 0.0, []
    async for output in await session.finish(suffix, GREEDY):
        first = first or time.monotonic() - started
        tokens += output.token_ids
    return first, tokens


async def alone(engine: Any, tokens: list[int]) -> float:
    """TTFT of a stream on the idle engine, all but its last 100 tokens computed before."""
    async with await engine.open(tokens[:-100]) as session:
        while session.stats.computed_tokens < len(tokens) - 101:  # noqa: ASYNC110 - as records come in
            await asyncio.sleep(0.005)
        return (await finish(session, tokens[-100:]))[0]


async def together(engine: Stream2LLMEngine | RemoteEngine, scene: Scene, vanishing: frozenset[int]) -> Outcome:
    """Run the scene; each of ``vanishing`` is gone after half of its chunks."""
    outcome = Outcome([], {})

    async def run(number: int) -> None:
        *chunks, suffix = scene.chunks(number)
        await asyncio.sleep(scene.delays_s[number])
        session = await engine.open()
        for position, chunk in enumerate(chunks):
            if number in vanishing and position == len(chunks) // 2:
                await leave(engine, session, silently=number % 2 == 0)
                return
            await session.append(chunk)
            await asyncio.sleep(scene.gap_s)
        async with session:
            ttft_s, outcome.answers[number] = await finish(session, suffix)
            outcome.ttfts_s.append(ttft_s)

    await asyncio.gather(*(run(number) for number in range(len(scene.prompts))))
    return outcome


async def leave(engine: Stream2LLMEngine | RemoteEngine, session: Session, *, silently: bool) -> None:
    if isinstance(engine, Stream2LLMEngine):
        await session.abort()
        return
    stream = engine._streams[session]
    for task in stream._tasks:
        task.cancel()
    if not silently:
        stream._connection.transport.abort()


def blocks_held(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics") as response:
        [value] = re.findall(r"^stream2llm:num_used_blocks{.*} (\S+)$", response.read().decode(), re.MULTILINE)
    return float(value)


async def seconds_until_free(url: str, engine: RemoteEngine) -> float:
    """How long it takes until the engine tells of a step after which no block is held."""
    started = time.monotonic()
    while time.monotonic() - started < 10 * HEARTBEAT_TIMEOUT_S:
        async for _ in engine.generate([5, 6, 7], {**GREEDY, "max_tokens": 2}):
            pass
        if await anyio.to_thread.run_sync(blocks_held, url) == 0:
            return time.monotonic() - started
        await asyncio.sleep(0.2)
    return float("inf")


@contextlib.contextmanager
def server(model: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    named = [f"--{name.replace('_', '-')}{'' if value is True else f'={value}'}" for name, value in ENGINE_ARGS.items()]
    own = [f"--port={port}", "--host=127.0.0.1", f"--stream-heartbeat-timeout-s={HEARTBEAT_TIMEOUT_S}"]
    command = [sys.executable, "-c", "from stream2llm_rag.cli import main; main()", "serve", model, *named, *own]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextlib.asynccontextmanager
async def remote(url: str) -> AsyncIterator[RemoteEngine]:
    while True:
        with contextlib.suppress(OSError):
            await anyio.to_thread.run_sync(lambda: urllib.request.urlopen(f"{url}/health").close())
            break
        await asyncio.sleep(0.5)
    async with RemoteEngine(url) as engine:
        yield engine


def percentiles(name: str, ttfts_s: list[float]) -> str:
    p50, p99 = np.percentile(ttfts_s, (50, 99))
    return f"{name:7} TTFT P50 {p50 * 1e3:8.1f} ms   P99 {p99 * 1e3:8.1f} ms   ({len(ttfts_s)} streams)"


async def main(num_streams: int, num_rounds: int, seed: int) -> bool:
    dice, model = random.Random(seed), str(build_tiny_model())
    scene = Scene(
        [random_prompt(dice, dice.randint(100, 500)) for _ in range(num_streams)],
        [dice.uniform(0, 10) for _ in range(num_streams)],
    )
    with server(model) as url:
        async with Stream2LLMEngine(model, **ENGINE_ARGS) as local, remote(url) as served:
            times: dict[str, list[float]] = {"local": [], "remote": []}
            for round_ in range(num_rounds + 2):
                tokens = random_prompt(dice, 1600)
                for name, engine in (("local", local), ("remote", served)):
                    ttft_s = await alone(engine, tokens)
                    if round_ >= 2:  # the first ones warm up
                        times[name].append(ttft_s)
            print(f"one stream at a time, {num_rounds} rounds, 1,500 tokens streamed, 100 at the end")
            for name, ttfts_s in times.items():
                print(percentiles(name, ttfts_s))
            differences = [there - here for here, there in zip(times["local"], times["remote"], strict=True)]
            print(f"remote minus local, median of the rounds: {median(differences) * 1e3:.1f} ms")

            vanishing = frozenset(range(0, num_streams, 3))
            print(f"{num_streams} streams over {10 + scene.gap_s * scene.num_chunks:.0f} s")
            print(percentiles("local", (await together(local, scene, vanishing)).ttfts_s))
            outcome = await together(served, scene, vanishing)
            print(percentiles("remote", outcome.ttfts_s), f"{len(vanishing)} vanished")
            free_s = await seconds_until_free(url, served)
            print(f"no block held {free_s:.1f} s after the last answer; the silent are dropped after {HEARTBEAT_TIMEOUT_S:g} s")
            wrong = []
            for number, answer in outcome.answers.items():
                whole = [token async for o in local.generate(scene.prompts[number], GREEDY) for token in o.token_ids]
                wrong += [number] if whole != answer else []
            print(f"{len(outcome.answers)} answers, {len(wrong)} wrong {wrong or ''}")
            return not wrong and len(outcome.answers) == num_streams - len(vanishing) and free_s < float("inf")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.exit(not asyncio.run(main(options.streams, options.rounds, options.seed)))

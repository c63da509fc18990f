"""One engine per configuration, shared by the session: a start takes about 20 seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.session import Session

COMMON: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "block_size": 32}
# 42 blocks of 32 tokens, of which one is vLLM's null block: 1,312 tokens of KV for everybody together.
TIGHT: dict[str, Any] = {"num_gpu_blocks_override": 42, "max_model_len": 1312, "max_num_seqs": 8, "max_num_batched_tokens": 512}
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}


class Reference:
    """Stock vLLM with its own Scheduler, in an engine of its own: what it says is right."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._num_requests = 0

    async def answer(self, token_ids: Sequence[int], sampling: dict[str, Any] | None = None) -> list[int]:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        self._num_requests += 1
        params = SamplingParams(**(sampling or GREEDY))
        async for output in self._llm.generate(tokens_input(list(token_ids)), params, f"reference-{self._num_requests}"):
            last = output
        return list(last.outputs[0].token_ids)


@pytest.fixture(scope="session")
async def reference(model_path: Path) -> AsyncIterator[Reference]:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(str(model_path), max_model_len=8192, disable_log_stats=True, **COMMON))
    reference = Reference(llm)
    yield reference
    if llm.output_handler is not None:
        llm.output_handler.cancel()
    llm.shutdown()
    del llm, reference._llm


@pytest.fixture(scope="session")
async def engine(model_path: Path) -> AsyncIterator[Stream2LLMEngine]:
    async with Stream2LLMEngine(model_path, max_model_len=8192, max_num_batched_tokens=1024, **COMMON) as engine:
        yield engine


@pytest.fixture(scope="session")
async def tight_engine(model_path: Path) -> AsyncIterator[Stream2LLMEngine]:
    async with Stream2LLMEngine(model_path, **TIGHT, **COMMON) as engine:
        yield engine


@pytest.fixture(scope="session")
async def chaotic_engine(model_path: Path) -> AsyncIterator[Stream2LLMEngine]:
    """A tight engine in which every fourth step evicts somebody at random first."""
    engine = Stream2LLMEngine(model_path, **TIGHT, **COMMON)
    engine._settings = replace(engine._settings, chaos=0.25)
    async with engine:
        yield engine


async def collect(outputs: AsyncIterator[Any]) -> list[int]:
    return [token for output in [o async for o in outputs] for token in output.token_ids]


async def quiet(engine: Stream2LLMEngine) -> None:
    """Wait until the core has told of a step after which nothing was left, by giving it one last request."""
    await collect(engine.generate([5, 6, 7], {**GREEDY, "max_tokens": 2}))


async def computed(session: Session, num_tokens: int) -> None:
    """Wait until the core has computed that many tokens of the session."""
    reached = anyio.Event()

    def check(record: object = None) -> None:
        if session.stats.computed_tokens >= num_tokens:
            reached.set()

    session._on_record = check
    check()
    with anyio.fail_after(120):
        await reached.wait()

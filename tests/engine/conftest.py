"""One engine per configuration, shared by the session: a start takes about 20 seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from stream2llm_rag.engine.calibrate import WORKER_EXTENSION
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.session import Session

from .cases import COMMON, GREEDY, TIGHT, Reference, chaotic_engine, collect, stock_reference


@pytest.fixture(scope="session")
async def reference(model_path: Path) -> AsyncIterator[Reference]:
    async with stock_reference(model_path) as reference:
        yield reference


@pytest.fixture(scope="session")
async def engine(model_path: Path) -> AsyncIterator[Stream2LLMEngine]:
    settings = {"max_model_len": 8192, "max_num_batched_tokens": 1024, "worker_extension_cls": WORKER_EXTENSION}
    async with Stream2LLMEngine(model_path, **settings, **COMMON) as engine:
        yield engine


@pytest.fixture(scope="session")
async def tight_engine(model_path: Path) -> AsyncIterator[Stream2LLMEngine]:
    async with Stream2LLMEngine(model_path, **TIGHT, **COMMON) as engine:
        yield engine


@pytest.fixture(scope="session", params=[True, False], ids=["prefix-caching", "no-prefix-caching"])
async def chaos(request: pytest.FixtureRequest, model_path: Path) -> AsyncIterator[Stream2LLMEngine]:
    async with chaotic_engine(model_path, prefix_caching=request.param) as engine:
        yield engine


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

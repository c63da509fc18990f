"""What no stranger, no dead process and no unsuitable model may do to an engine, or to whoever waits for it."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from stream2llm_rag import Append, ContextDelta, Document, StreamingRAG
from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.engine.protocol import Op, OpKind, encode
from stream2llm_rag.engine.session import Session
from stream2llm_rag.errors import (
    EngineDied,
    EngineStartError,
    InvalidInputError,
    LifecycleError,
    PromptTooLongError,
    UnsupportedError,
)

from .cases import COMMON, GREEDY, TIGHT, Reference, collect
from .conftest import computed, quiet

LONG: dict[str, Any] = {**GREEDY, "max_tokens": 900}


class Stalls:
    """A retriever that finds one document and then nothing, for ever."""

    async def stream(self, query: str) -> AsyncIterator[ContextDelta]:
        yield Append((Document("Cancel it.", "https://docs.example/1"),))
        await anyio.sleep_forever()


class TestAProcessOfTheEngineIsKilled:
    @pytest.mark.parametrize("victim", ["EngineCore", "Worker"])  # the second start shows that a new engine takes its place
    async def test_every_stream_is_told_at_once_and_the_engine_closes(self, model_path: Path, victim: str) -> None:
        before = vllm_processes()
        async with Stream2LLMEngine(model_path, max_model_len=1024, **COMMON) as engine:
            processes = vllm_processes() - before
            (doomed,) = (process for process in processes if victim in " ".join(process.cmdline()))
            ends: dict[str, Exception] = {}
            with anyio.fail_after(60):
                async with anyio.create_task_group() as streams:
                    partial = await engine.open([5] * 100)
                    finished, generating = await engine.open([6] * 100), await engine.open([7] * 100)
                    answer, unread = await generating.finish([8], LONG), await finished.finish([8], LONG)
                    await anext(answer)
                    await computed(partial, 99)
                    waits: dict[str, Callable[[], Awaitable[object]]] = {
                        "retrieving": lambda: StreamingRAG(engine, Stalls()).answer("How?"),
                        "retrieving the usual way": lambda: StreamingRAG(engine, Stalls()).answer("How?", streaming=False),
                        "partial": lambda: wait(partial),
                        "generating": lambda: collect(answer),
                        "plain": lambda: collect(engine.generate([9] * 100, LONG)),
                    }
                    for name, stream in waits.items():
                        streams.start_soon(note_end, stream, name, ends)
                    while engine.stats().num_sessions < 5:  # both that retrieve have opened theirs
                        await anyio.lowlevel.checkpoint()
                    doomed.kill()
            assert {name: type(end) for name, end in ends.items()} == dict.fromkeys(waits, EngineDied)
            for call in (partial.append([5]), anext(unread), engine.open(), engine.reset_prefix_cache()):
                with pytest.raises(EngineDied, match="open a new one"), anyio.fail_after(5):
                    await call
            with anyio.fail_after(30):
                await engine.aclose()
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive
        assert engine.stats().num_sessions == 0


async def test_closing_an_engine_ends_all_that_waits_on_it(model_path: Path) -> None:
    async with Stream2LLMEngine(model_path, max_model_len=1024, **COMMON) as engine:
        ends: dict[str, Exception] = {}
        with anyio.fail_after(60):
            async with anyio.create_task_group() as streams:
                partial = await engine.open([5] * 100)
                plain = engine.generate([9] * 100, LONG)
                await anext(plain)
                waits: dict[str, Callable[[], Awaitable[object]]] = {
                    "retrieving": lambda: StreamingRAG(engine, Stalls()).answer("How?"),
                    "partial": lambda: wait(partial),
                    "plain": lambda: collect(plain),
                }
                for name, stream in waits.items():
                    streams.start_soon(note_end, stream, name, ends)
                while engine.stats().num_sessions < 2:
                    await anyio.lowlevel.checkpoint()
                await engine.aclose()
    assert {name: type(end) for name, end in ends.items()} == dict.fromkeys(waits, LifecycleError)


def vllm_processes() -> set[psutil.Process]:
    return {child for child in psutil.Process().children(recursive=True) if "VLLM::" in " ".join(child.cmdline())}


async def wait(session: Session) -> None:
    with session.while_alive():
        await anyio.sleep_forever()


async def note_end(stream: Callable[[], Awaitable[object]], name: str, ends: dict[str, Exception]) -> None:
    try:
        await stream()
    except Exception as error:
        ends[name] = error


def prompt(num_tokens: int, seed: int | str) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(5, 2000) for _ in range(num_tokens)]


FORGERIES: dict[str, dict[str, Any] | None] = {
    "no operation": None,
    "an append with a guessed secret": encode(Op(OpKind.APPEND), "guess"),
    "an update without a secret": {"stream2llm": {"op": "update", "opens": False, "num_remaining": None}},
    "an opening": encode(Op(OpKind.APPEND, opens=True), "guess"),
    "a finish": encode(Op(OpKind.FINISH), "guess"),
    "no mapping": {"stream2llm": 7},
}


class TestAStrangerSendsRequestsWithTheIdOfAnother:
    """Straight to the engine core: vLLM's front end gives every request of a stranger an id of its own."""

    @pytest.mark.parametrize("forgery", FORGERIES)
    async def test_a_stream_stays_what_it_was(self, engine: Stream2LLMEngine, reference: Reference, forgery: str) -> None:
        tokens = prompt(700, forgery)
        async with await engine.open(tokens[:400]) as session:
            await computed(session, 399)
            await self._forge(engine, session.request_id, FORGERIES[forgery])
            await session.append(tokens[400:600])
            await self._forge(engine, session.request_id, FORGERIES[forgery])
            outputs = await session.finish(tokens[600:], GREEDY)
            await self._forge(engine, session.request_id, FORGERIES[forgery])
            assert await collect(outputs) == await reference.answer(tokens)

    @pytest.mark.parametrize("forgery", FORGERIES)
    async def test_a_plain_request_stays_what_it_was(
        self, engine: Stream2LLMEngine, reference: Reference, forgery: str
    ) -> None:
        tokens, core_ids = prompt(500, forgery), engine._running().output_processor.request_states
        outputs = engine.generate(tokens, GREEDY)
        first = await anext(outputs)
        (core_id,) = core_ids
        await self._forge(engine, core_id, FORGERIES[forgery])
        assert [*first.token_ids, *await collect(outputs)] == await reference.answer(tokens)

    async def _forge(self, engine: Stream2LLMEngine, request_id: str, extra_args: dict[str, Any] | None) -> None:
        """Send it, and wait until the core has told that it refused it, once."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        num_refused = engine.stats().cores[0].num_ops_refused
        llm = engine._running()
        request = llm.input_processor.process_inputs(
            request_id,
            tokens_input(prompt(50, 33)),
            SamplingParams(max_tokens=5, extra_args=extra_args),
            supported_tasks=await llm.get_supported_tasks(),
        )
        request.external_req_id = request.request_id = request_id
        await llm.engine_core.add_request_async(request)
        await quiet(engine)
        assert engine.stats().cores[0].num_ops_refused == num_refused + 1


class TestAPromptThatCanNeverFit:
    """The pool covers max_model_len, or vLLM does not start: so the one limit is the other, and nothing waits for ever."""

    async def test_is_refused_at_once(self, tight_engine: Stream2LLMEngine) -> None:
        too_long = prompt(TIGHT["max_model_len"], 40)
        with anyio.fail_after(10):
            with pytest.raises(PromptTooLongError):
                await tight_engine.open(too_long)
            async with await tight_engine.open(too_long[:1000]) as session:
                with pytest.raises(PromptTooLongError):
                    await session.finish(too_long[1000:], GREEDY)
            with pytest.raises(InvalidInputError, match="1312"):
                await collect(tight_engine.generate(too_long, GREEDY))

    async def test_the_longest_that_fits_is_answered_beside_idle_streams(
        self, tight_engine: Stream2LLMEngine, reference: Reference
    ) -> None:
        longest = prompt(TIGHT["max_model_len"] - 1, 41)
        async with await tight_engine.open(prompt(300, 42)) as idle:
            await computed(idle, 299)
            async with await tight_engine.open(longest[:1200]) as session:
                with anyio.fail_after(60):
                    answer = await collect(await session.finish(longest[1200:], {**GREEDY, "max_tokens": 1}))
        assert answer == await reference.answer(longest, {**GREEDY, "max_tokens": 1})

    async def test_a_pool_that_is_smaller_than_the_context_does_not_start(self, model_path: Path) -> None:
        with pytest.raises(EngineStartError, match="could not start"):
            async with Stream2LLMEngine(model_path, max_model_len=4096, num_gpu_blocks_override=42, **COMMON):
                pass


def remade(model_path: Path, directory: Path, **changes: Any) -> Path:
    """The tiny model with another config.json: its weights serve every architecture with the same names."""
    for file in model_path.iterdir():
        if file.name != "config.json":
            (directory / file.name).symlink_to(file)
    config = json.loads((model_path / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 2048}
BERT = SMALL | {"model_type": "bert", "architectures": ["BertModel"]}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64, "num_layers": 2, "vocab_size": 2048}
MAMBA = SMALL | {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "state_size": 16}


@pytest.mark.parametrize(
    ("changes", "engine_args", "advice"),
    [
        (BERT, {}, "runs as a pooling model.*Pass a generative model"),
        (T5, {}, "Pass a decoder-only model"),
        (MAMBA, {}, "Pass a model whose layers all use attention"),
        ({}, {"spec_method": "ngram", "spec_tokens": 2}, "Leave out speculative_config"),
        ({}, {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}}, "Pass role='prefill'"),
    ],
    ids=["pooling", "encoder-decoder", "state-space", "speculative", "connector"],
)
async def test_a_model_that_cannot_stream_is_refused_before_a_process_starts(
    model_path: Path, tmp_path: Path, changes: dict[str, Any], engine_args: dict[str, Any], advice: str
) -> None:
    before = vllm_processes()
    engine = Stream2LLMEngine(remade(model_path, tmp_path, **changes), **COMMON, **engine_args)
    with pytest.raises(UnsupportedError, match=advice):
        await engine.__aenter__()
    assert vllm_processes() == before


@pytest.mark.parametrize("layers", [["sliding_attention"] * 4, ["sliding_attention", "full_attention"] * 2])
async def test_updates_of_a_model_with_sliding_windows_answer_as_its_final_prompt_does(
    model_path: Path, tmp_path: Path, layers: list[str]
) -> None:
    """Blocks behind a window are gone: nothing can be computed from a point before it."""
    model = remade(model_path, tmp_path, layer_types=layers, sliding_window=64)
    async with Stream2LLMEngine(model, max_model_len=1024, enable_prefix_caching=False, **COMMON) as engine:
        for seed, num_common in enumerate([1, 33, 300, 448, 598]):
            first = prompt(600, 50 + seed)
            final = [*first[:num_common], *prompt(100, 60 + seed)]
            async with await engine.open(first) as session:
                await computed(session, 599)
                await session.update(final[:-3])
                answer = await collect(await session.finish(final[-3:], GREEDY))
                assert session.stats.invalidated_tokens >= 599 - num_common
                assert session.stats.invalidated_tokens == 599 or "full_attention" in layers
            assert answer == await collect(engine.generate(final, GREEDY)), f"common prefix of {num_common}"

from __future__ import annotations

import random

import anyio
import pytest

from stream2llm_rag.engine.engine import Stream2LLMEngine
from stream2llm_rag.errors import InvalidInputError, LifecycleError, PromptTooLongError, UnsupportedError

from .cases import CASES_AT_ONCE, GREEDY, Reference, collect, prompt, stream, wrong_seeds
from .conftest import computed, quiet


@pytest.mark.parametrize("batch", range(10))
async def test_streamed_appends_answer_as_stock_does(engine: Stream2LLMEngine, reference: Reference, batch: int) -> None:
    dice = random.Random(batch)
    prompts = [prompt(dice.randint(1, 3000), 100 * batch + i) for i in range(5)]
    answers = await gather([stream(engine, random.Random(1000 * batch + i), p, updates=False) for i, p in enumerate(prompts)])
    assert answers == [await reference.answer(p) for p in prompts], f"seed {batch}"


@pytest.mark.parametrize("batch", range(10))
async def test_updates_answer_as_stock_does_for_the_last_version(
    engine: Stream2LLMEngine, reference: Reference, batch: int
) -> None:
    dice = random.Random(batch)
    prompts = [prompt(dice.randint(1, 1500), 7000 + 100 * batch + i) for i in range(5)]
    answers = await gather([stream(engine, random.Random(2000 * batch + i), p, updates=True) for i, p in enumerate(prompts)])
    assert answers == [await reference.answer(p) for p in prompts], f"seed {batch}"


@pytest.mark.parametrize("first", range(0, 150, CASES_AT_ONCE))
async def test_under_any_policy_evicted_or_not_answers_are_those_of_stock(
    chaos: Stream2LLMEngine, reference: Reference, first: int
) -> None:
    assert await wrong_seeds(chaos, reference, range(first, first + CASES_AT_ONCE)) == []
    assert chaos.stats().cores[0].num_evictions > 0


async def test_the_reference_notices_a_block_that_differs(reference: Reference) -> None:
    tokens = prompt(1500, 1)
    others = [[*tokens[:i], *prompt(32, 2), *tokens[i + 32 :]] for i in (32, 256, 704, 1056, 1408)]
    answer = await reference.answer(tokens)
    assert all([await reference.answer(other) != answer for other in others])


async def test_a_seeded_sample_is_the_one_that_stock_draws(engine: Stream2LLMEngine, reference: Reference) -> None:
    tokens, sampling = prompt(500, 5), {"max_tokens": 12, "temperature": 1.0, "seed": 42, "ignore_eos": True}
    async with await engine.open(tokens[:300]) as session:
        await session.append(tokens[300:450])
        answer = await collect(await session.finish(tokens[450:], sampling))
    assert answer == await reference.answer(tokens, sampling)


async def test_a_structured_answer_keeps_to_its_grammar_and_is_the_one_of_stock(
    engine: Stream2LLMEngine, reference: Reference
) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    tokens, choices = prompt(400, 6), ["yes", "certainly not", "perhaps"]

    def sampling() -> dict[str, object]:  # vLLM writes the grammar into the parameters
        return {"max_tokens": 20, "temperature": 0, "structured_outputs": StructuredOutputsParams(choice=choices)}

    async with await engine.open(tokens[:350]) as session:
        outputs = [output async for output in await session.finish(tokens[350:], sampling())]
    assert "".join(output.text for output in outputs) in choices
    assert [token for output in outputs for token in output.token_ids] == await reference.answer(tokens, sampling())


async def test_what_was_streamed_is_not_computed_again(engine: Stream2LLMEngine) -> None:
    await engine.reset_prefix_cache()
    tokens = prompt(2000, 77)
    async with await engine.open(tokens[:500]) as session:
        await session.append(tokens[500:1900])
        await computed(session, 1899)
        await collect(await session.finish(tokens[1900:], GREEDY))
        assert session.stats.overlap_tokens == 1899
        assert session.stats.computed_tokens == 2000


async def test_prefix_cache_hits_do_not_count_as_overlap(engine: Stream2LLMEngine) -> None:
    await engine.reset_prefix_cache()
    tokens = prompt(1024, 78)
    await collect(engine.generate(tokens, GREEDY))
    async with await engine.open([*tokens, 9, 9]) as session:
        await computed(session, 1)
        await collect(await session.finish([7], GREEDY))
        assert session.stats.overlap_tokens <= 1


async def test_a_finish_whose_prompt_is_already_computed_is_answered(engine: Stream2LLMEngine, reference: Reference) -> None:
    tokens = prompt(333, 79)
    async with await engine.open(tokens) as session:
        await computed(session, 332)
        assert await collect(await session.finish(sampling=GREEDY)) == await reference.answer(tokens)


async def test_plain_requests_run_beside_streams(tight_engine: Stream2LLMEngine, reference: Reference) -> None:
    prompts = [prompt(400, 500 + i) for i in range(8)]

    async def plain(tokens: list[int]) -> list[int]:
        return await collect(tight_engine.generate(tokens, GREEDY))

    jobs = [stream(tight_engine, random.Random(i), p, updates=False) if i % 2 else plain(p) for i, p in enumerate(prompts)]
    assert await gather(jobs) == [await reference.answer(p) for p in prompts]


class TestScenesInWhichStockStreamingStalls:
    """Each of these stood still for good on vLLM's own streaming sessions, whose parked KV cannot be taken back."""

    async def test_a_plain_request_beside_idle_sessions_that_fill_the_pool(
        self, tight_engine: Stream2LLMEngine, reference: Reference
    ) -> None:
        contexts, plain = [prompt(400, 600 + i) for i in range(3)], prompt(300, 700)
        async with open_all(tight_engine, contexts):
            with anyio.fail_after(60):
                assert await collect(tight_engine.generate(plain, GREEDY)) == await reference.answer(plain)

    async def test_idle_sessions_that_fill_the_pool_all_get_more(
        self, tight_engine: Stream2LLMEngine, reference: Reference
    ) -> None:
        contexts, more = [prompt(400, 800 + i) for i in range(3)], [prompt(300, 900 + i) for i in range(3)]
        async with open_all(tight_engine, contexts) as sessions:
            for session, tokens in zip(sessions, more, strict=True):
                await session.append(tokens)
            with anyio.fail_after(60):
                answers = await gather([answer(session) for session in sessions])
        assert answers == [await reference.answer(c + m) for c, m in zip(contexts, more, strict=True)]

    async def test_as_many_idle_sessions_as_slots_and_a_plain_request(
        self, tight_engine: Stream2LLMEngine, reference: Reference
    ) -> None:
        contexts, plain = [prompt(40, 1000 + i) for i in range(8)], prompt(60, 1100)
        async with open_all(tight_engine, contexts):
            with anyio.fail_after(60):
                assert await collect(tight_engine.generate(plain, GREEDY)) == await reference.answer(plain)


async def test_a_session_left_early_frees_everything(tight_engine: Stream2LLMEngine) -> None:
    for num_tokens in (1, 40, 900):
        async with await tight_engine.open(prompt(num_tokens, num_tokens)):
            pass
    await quiet(tight_engine)
    stats = tight_engine.stats()
    assert stats.num_sessions == 0
    assert (stats.cores[0].num_partial, stats.cores[0].num_idle, stats.cores[0].num_idle_blocks) == (0, 0, 0)


class TestBadInput:
    """Each is refused with an error of ours, and the engine answers afterwards."""

    @pytest.fixture(autouse=True)
    async def engine_lives_afterwards(self, engine: Stream2LLMEngine, reference: Reference) -> object:
        yield
        tokens = prompt(50, 4242)
        assert await collect(engine.generate(tokens, GREEDY)) == await reference.answer(tokens)

    async def test_a_prompt_longer_than_the_context(self, engine: Stream2LLMEngine) -> None:
        async with await engine.open(prompt(8000, 1)) as session:
            with pytest.raises(PromptTooLongError, match="8200 tokens, but the model's context of 8192"):
                await session.append(prompt(200, 2))
            assert session.num_tokens == 8000
            assert len(await collect(await session.finish([5], GREEDY))) == GREEDY["max_tokens"]

    async def test_append_after_finish(self, engine: Stream2LLMEngine) -> None:
        async with await engine.open([5, 6]) as session:
            await session.finish([7], GREEDY)
            with pytest.raises(LifecycleError, match="finished"):
                await session.append([8])

    async def test_two_finishes(self, engine: Stream2LLMEngine) -> None:
        async with await engine.open([5, 6]) as session:
            await session.finish([7], GREEDY)
            with pytest.raises(LifecycleError, match="finished"):
                await session.finish([7], GREEDY)

    async def test_finish_with_nothing(self, engine: Stream2LLMEngine) -> None:
        async with await engine.open() as session:
            with pytest.raises(InvalidInputError, match="before any token"):
                await session.finish()

    async def test_an_update_with_nothing(self, engine: Stream2LLMEngine) -> None:
        async with await engine.open([5]) as session:
            with pytest.raises(InvalidInputError, match="at least one token"):
                await session.update([])

    async def test_use_after_the_session_was_left(self, engine: Stream2LLMEngine) -> None:
        async with await engine.open([5]) as session:
            pass
        with pytest.raises(LifecycleError, match="aborted"):
            await session.append([6])

    @pytest.mark.parametrize("tokens", [[-1], [2048], [5, 10**9], ["a"], [1.5], [[5], [6]], [None], [True, 5.5]])
    async def test_tokens_that_are_none(self, engine: Stream2LLMEngine, tokens: list[object]) -> None:
        async with await engine.open([5]) as session:
            with pytest.raises(InvalidInputError):
                await session.append(tokens)  # type: ignore[arg-type]
            assert len(await collect(await session.finish([6], GREEDY))) == GREEDY["max_tokens"]

    @pytest.mark.parametrize(
        ("sampling", "error"),
        [
            ({"temprature": 0}, InvalidInputError),
            ({"max_tokens": 0}, InvalidInputError),
            ({"n": 2}, UnsupportedError),
            ({"prompt_logprobs": 1}, UnsupportedError),
            ({"extra_args": {"stream2llm": {}}}, InvalidInputError),
        ],
    )
    async def test_sampling_that_is_not_valid(
        self, engine: Stream2LLMEngine, sampling: dict[str, object], error: type[Exception]
    ) -> None:
        async with await engine.open([5]) as session:
            with pytest.raises(error):
                await session.finish([6], sampling)
            assert len(await collect(await session.finish([6], GREEDY))) == GREEDY["max_tokens"]

    @pytest.mark.parametrize("fields", [{}, {"op": "append"}, {"op": "finish", "opens": True, "secret": "guess"}, 7, None])
    async def test_a_stranger_cannot_forge_an_operation(self, engine: Stream2LLMEngine, fields: object) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        before = engine.stats().cores[0].num_ops_refused
        params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, extra_args={"stream2llm": fields})
        llm = engine._running()
        outputs = [o async for o in llm.generate(tokens_input([5, 6, 7]), params, "stranger")]
        assert len(outputs[-1].outputs[0].token_ids) == 2  # an ordinary request; the operation was dropped
        assert engine.stats().cores[0].num_ops_refused == before + 1


async def answer(session: object) -> list[int]:
    return await collect(await session.finish(sampling=GREEDY))  # type: ignore[attr-defined]


async def gather(jobs: list[object]) -> list[list[int]]:
    import asyncio

    return list(await asyncio.gather(*jobs))  # type: ignore[call-overload]


class open_all:  # noqa: N801 - reads as a function
    """Open a session for each context and wait until each has been computed or at least seen."""

    def __init__(self, engine: Stream2LLMEngine, contexts: list[list[int]]) -> None:
        self._engine, self._contexts = engine, contexts

    async def __aenter__(self) -> list[object]:
        self._sessions = [await self._engine.open(context) for context in self._contexts]
        for session, context in zip(self._sessions, self._contexts, strict=True):
            await computed(session, len(context) - 1)
        return list(self._sessions)

    async def __aexit__(self, *exc: object) -> None:
        for session in self._sessions:
            await session.abort()

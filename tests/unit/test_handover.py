"""A session between two engines: what each of them is told, and what becomes of it when one fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import pytest

from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.handover import PREFILL_ONLY, HandoverWire
from stream2llm_rag.engine.session import OutputDelta, Session, Submission
from stream2llm_rag.errors import EngineDied, InvalidInputError, LifecycleError

OFFER = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]]}
ASKED = {"do_remote_decode": True, "do_remote_prefill": False}


class Tokenizer:
    def __len__(self) -> int:
        return 1000

    def decode(self, token_ids: list[int]) -> str:
        return str(token_ids)


class Prefill(FakeEngine):
    """Offers KV with its last token, if it was asked to; waits for ``gate`` before that."""

    def __init__(self) -> None:
        super().__init__(Tokenizer(), num_answer_tokens=1, max_model_len=100)
        self.offer: Mapping[str, Any] | None = OFFER
        self.gate = anyio.Event()
        self.gate.set()
        self.sampling: list[Any] = []
        self.dropped: list[bool] = []

    async def submit(self, session: Session, submission: Submission) -> AsyncIterator[OutputDelta]:
        self.lifeline.check()
        self.sampling.append(submission.sampling)
        return self._offering(await super().submit(session, submission))

    async def send(self, *args: Any) -> None:
        self.lifeline.check()
        await super().send(*args)

    async def drop(self, session: Session, submitted: bool) -> None:
        self.dropped.append(submitted)
        self.gate.set()

    async def _offering(self, outputs: AsyncIterator[OutputDelta]) -> AsyncIterator[OutputDelta]:
        with self.lifeline.held():
            await self.gate.wait()
        async for output in outputs:
            yield output if self.dropped else replace(output, kv_transfer_params=self.offer)


class Decode(FakeEngine):
    """Refuses what asks for no tokens, as vLLM does."""

    def __init__(self) -> None:
        super().__init__(Tokenizer(), max_model_len=200)
        self.sampling: list[Any] = []
        self.opens: list[bool] = []
        self.dropped: list[bool] = []

    async def check(self, session: Session, submission: Submission) -> None:
        if isinstance(submission.sampling, Mapping) and submission.sampling.get("max_tokens") == 0:
            raise InvalidInputError("max_tokens must be at least 1, got 0.")

    async def submit(self, session: Session, submission: Submission) -> AsyncIterator[OutputDelta]:
        self.sampling.append(submission.sampling)
        self.opens.append(submission.opens)
        return await super().submit(session, submission)

    async def drop(self, session: Session, submitted: bool) -> None:
        self.dropped.append(submitted)


@dataclass
class Pair:
    prefill: Prefill = field(default_factory=Prefill)
    decode: Decode = field(default_factory=Decode)

    def session(self) -> Session:
        return Session(HandoverWire(self.prefill, self.decode), on_close=lambda session: None)


@pytest.fixture
def pair() -> Pair:
    return Pair()


async def collect(outputs: AsyncIterator[OutputDelta]) -> list[int]:
    return [token for output in [o async for o in outputs] for token in output.token_ids]


async def answer_of_one_engine(token_ids: list[int]) -> list[int]:
    async with await FakeEngine(Tokenizer()).open(token_ids) as session:
        return await collect(await session.finish())


async def test_the_prefill_engine_computes_and_the_decode_engine_answers(pair: Pair) -> None:
    async with pair.session() as session:
        await session.append([5, 6, 7])
        await session.update([5, 6, 8])
        answer = await collect(await session.finish([9], {"temperature": 0, "extra_args": {"mine": 1}}))
    assert pair.prefill.prompts == pair.decode.prompts == [[5, 6, 8, 9]]
    assert pair.prefill.sampling[0]["extra_args"] == {"kv_transfer_params": ASKED}
    assert pair.prefill.sampling[0]["max_tokens"] == 1
    assert pair.decode.sampling == [{"temperature": 0, "extra_args": {"mine": 1, "kv_transfer_params": OFFER}}]
    assert pair.decode.opens == [True]
    assert answer == await answer_of_one_engine([5, 6, 8, 9])
    assert session.stats.handover_error is None


def test_a_prefill_ends_by_its_length_whatever_its_token_is() -> None:
    """For any other end there are connectors of vLLM's that offer nothing."""
    from vllm.v1.core.sched.utils import check_stop
    from vllm.v1.request import Request, RequestStatus

    from stream2llm_rag.engine.wire import sampling_params

    params = sampling_params(PREFILL_ONLY)
    params.update_from_generation_config({"eos_token_id": [7, 8]}, 7)  # as vLLM's input processor does
    for end_of_sequence in (7, 8):
        request = Request("s", [5, 6], params, None)
        request.append_output_token_ids(end_of_sequence)
        assert check_stop(request, max_model_len=100)
        assert request.status == RequestStatus.FINISHED_LENGTH_CAPPED


async def test_sampling_parameters_of_the_caller_are_copied_not_changed(pair: Pair) -> None:
    @dataclass
    class Params:
        extra_args: dict[str, Any] | None = None

        def clone(self) -> Params:
            return replace(self)

    given = Params()
    async with pair.session() as session:
        await collect(await session.finish([5], given))  # type: ignore[arg-type]  # stands for vLLM's SamplingParams
    assert given == Params()
    assert pair.decode.sampling == [Params({"kv_transfer_params": OFFER})]


async def test_the_shorter_context_of_the_two_counts(pair: Pair) -> None:
    assert HandoverWire(pair.prefill, pair.decode).max_model_len == 100


async def finished_before_its_death(pair: Pair, session: Session) -> AsyncIterator[OutputDelta]:
    pair.prefill.gate = anyio.Event()
    outputs = await session.finish([9])
    pair.prefill.lifeline.die()
    return outputs


async def finished_after_its_death(pair: Pair, session: Session) -> AsyncIterator[OutputDelta]:
    pair.prefill.lifeline.die()
    return await session.finish([9])


async def fed_after_its_death(pair: Pair, session: Session) -> AsyncIterator[OutputDelta]:
    pair.prefill.lifeline.die()
    await session.append([9])
    return await session.finish()


async def finished_after_its_end(pair: Pair, session: Session) -> AsyncIterator[OutputDelta]:
    pair.prefill.lifeline.close()
    return await session.finish([9])


async def offered_nothing(pair: Pair, session: Session) -> AsyncIterator[OutputDelta]:
    pair.prefill.offer = None
    return await session.finish([9])


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (finished_before_its_death, "a process of the engine is gone"),
        (finished_after_its_death, "a process of the engine is gone"),
        (fed_after_its_death, "a process of the engine is gone"),
        (finished_after_its_end, "this engine is closed"),
        (offered_nothing, "the prefill engine offered no KV"),
    ],
)
async def test_without_the_prefill_engine_the_decode_engine_computes_the_whole_prompt_and_says_so(
    pair: Pair, finish: Callable[[Pair, Session], Any], reason: str
) -> None:
    async with pair.session() as session:
        await session.append([5, 6, 7])
        answer = await collect(await finish(pair, session))
    assert answer == await answer_of_one_engine([5, 6, 7, 9])
    assert pair.decode.sampling == [{}]
    assert pair.decode.opens == [True]
    assert reason in str(session.stats.handover_error)


async def test_kv_that_did_not_come_is_told(pair: Pair) -> None:
    async with pair.session() as session:
        session.take_record(StepRecord(session.request_id, StepKind.RECEIVED, 1.0, 1.0, 0))
        assert session.stats.handover_error == "the decode engine could not load the KV"


async def test_what_the_decode_engine_would_refuse_is_refused_at_the_finish(pair: Pair) -> None:
    async with pair.session() as session:
        await session.append([5])
        with pytest.raises(InvalidInputError, match="max_tokens"):
            await session.finish([6], {"max_tokens": 0})
    assert pair.prefill.sampling == []


@pytest.mark.parametrize("end", ["die", "close"])
async def test_the_end_of_the_decode_engine_ends_every_call(pair: Pair, end: str) -> None:
    error = {"die": EngineDied, "close": LifecycleError}[end]
    async with pair.session() as session, pair.session() as partial:
        await partial.append([5])
        pair.prefill.gate = anyio.Event()
        outputs = await session.finish([5])
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with pytest.raises(error):
                    await anext(outputs)

            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            getattr(pair.decode.lifeline, end)()
        with pytest.raises(error):
            await partial.append([6])
        with pytest.raises(error):
            await partial.finish([6])


async def test_an_abort_between_the_engines_reaches_both_and_ends_the_answer(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    session = pair.session()
    await session.append([5])
    pair.prefill.gate = anyio.Event()
    outputs = await session.finish([6])
    read: list[OutputDelta] = []
    async with anyio.create_task_group() as tasks:

        async def collect_all() -> None:
            read.extend([output async for output in outputs])

        tasks.start_soon(collect_all)
        await anyio.wait_all_tasks_blocked()
        await session.abort()
    assert [output.finish_reason for output in read] == ["abort"]
    assert pair.prefill.dropped == [True]
    assert pair.decode.sampling == []
    assert pair.decode.dropped == [False]
    assert session.stats.handover_error is None  # nothing failed, and nothing is computed again
    assert not caplog.records


async def test_an_abort_while_it_answers_reaches_both(pair: Pair) -> None:
    async with pair.session() as session:
        outputs = await session.finish([5, 6])
        await anext(outputs)
    assert pair.prefill.dropped == pair.decode.dropped == [True]

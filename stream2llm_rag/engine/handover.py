"""A session's way to two engines: its context goes into the prefill engine, its answer comes from the decode engine.

At the finish the prefill engine computes the last piece and one token, which nobody sees, and says where the KV lies (vLLM's
``kv_transfer_params``); the decode engine loads it and generates. Whatever goes wrong with that costs time and not the answer:
the decode engine then computes the whole prompt itself, and ``SessionStats.handover_error`` says why.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from stream2llm_rag.engine.protocol import Op
from stream2llm_rag.engine.session import OutputDelta, Session, Submission, Wire
from stream2llm_rag.errors import EngineDied, LifecycleError

if TYPE_CHECKING:
    from vllm import SamplingParams

logger = logging.getLogger(__name__)

PARAMS_KEY = "kv_transfer_params"
_OFFER = {"do_remote_decode": True, "do_remote_prefill": False}
PREFILL_ONLY: Mapping[str, Any] = {
    "max_tokens": 1,
    "temperature": 0,
    "ignore_eos": True,  # some connectors offer the KV of what ended by its length alone (MooncakeConnector.request_finished)
    "detokenize": False,
    "extra_args": {PARAMS_KEY: _OFFER},
}
"""Sampling of a request that is to be generated elsewhere."""


class DecodeWire(Wire, Protocol):
    """The way to an engine that can tell beforehand whether it would take a request."""

    async def check(self, session: Session, submission: Submission) -> None:
        """Raise what ``submit`` would raise, and send nothing."""
        ...


@dataclass(slots=True)
class _Passage:
    """A finished session between the engines. ``turn`` is held while the decode engine is told of it."""

    turn: anyio.Lock = field(default_factory=anyio.Lock)
    is_dropped: bool = False
    is_taken: bool = False


class HandoverWire:
    """Joins the wires of two engines. The lifeline is that of the decode engine: without the other there are still answers."""

    def __init__(self, prefill: Wire, decode: DecodeWire) -> None:
        self.lifeline = decode.lifeline
        self.max_model_len = min(prefill.max_model_len, decode.max_model_len)
        self.vocab_size = decode.vocab_size
        self._prefill = prefill
        self._decode = decode
        self._passages: dict[str, _Passage] = {}

    async def send(self, session: Session, op: Op, token_ids: list[int], arrival_time: float) -> None:
        """Send an append or an update to the prefill engine."""
        with self.lifeline.held(), _noting_its_end(session):
            await self._prefill.send(session, op, token_ids, arrival_time)

    async def submit(self, session: Session, submission: Submission) -> AsyncIterator[OutputDelta]:
        """Send the finish to the prefill engine. The decode engine is told when the outputs are first asked for."""
        with self.lifeline.held():
            await self._decode.check(session, submission)
        passage = self._passages[session.request_id] = _Passage()
        prefilled: AsyncIterator[OutputDelta] | None = None
        with self.lifeline.held(), _noting_its_end(session):
            prefilled = await self._prefill.submit(session, replace(submission, sampling=PREFILL_ONLY))
        return self._answer(session, passage, prefilled, submission)

    async def drop(self, session: Session, submitted: bool) -> None:
        """Free everything of the session in both engines.

        KV that the prefill engine has offered and nobody fetched stays there until vLLM's lease on it ends.
        """
        passage = self._passages.pop(session.request_id, None) or _Passage()
        passage.is_dropped = True
        await self._prefill.drop(session, submitted)
        async with passage.turn:
            await self._decode.drop(session, passage.is_taken)

    async def _answer(
        self, session: Session, passage: _Passage, prefilled: AsyncIterator[OutputDelta] | None, submission: Submission
    ) -> AsyncIterator[OutputDelta]:
        offer = await self._offer(session, passage, prefilled) if prefilled is not None else None
        async with passage.turn:
            outputs = None
            if not passage.is_dropped:
                passage.is_taken = True
                sampling = _receiving(submission.sampling, offer) if offer is not None else submission.sampling
                outputs = await self._decode.submit(session, replace(submission, sampling=sampling, opens=True))
        if outputs is None:
            yield OutputDelta("", (), "abort")
            return
        async for output in outputs:
            yield output

    async def _offer(
        self, session: Session, passage: _Passage, prefilled: AsyncIterator[OutputDelta]
    ) -> Mapping[str, Any] | None:
        """Wait for the end of prefill; return where the KV lies. None where there is none, or nobody wants it any more."""
        offer: Mapping[str, Any] | None = None
        with self.lifeline.held(), _noting_its_end(session):
            async for output in prefilled:
                offer = output.kv_transfer_params
            if not offer and not passage.is_dropped:
                session.stats.handover_error = "the prefill engine offered no KV"
        if not offer and not passage.is_dropped:
            logger.warning("%s has to be computed again: %s", session.request_id, session.stats.handover_error)
        return offer or None


@contextmanager
def _noting_its_end(session: Session) -> Iterator[None]:
    """Go on without the prefill engine when it is gone: all that comes later finds it gone too."""
    try:
        yield
    except (EngineDied, LifecycleError) as error:
        session.stats.handover_error = f"the prefill engine does not serve: {error}"


def _receiving(sampling: Mapping[str, Any] | SamplingParams, offer: Mapping[str, Any]) -> Mapping[str, Any] | SamplingParams:
    """``sampling`` for a request whose KV comes from elsewhere."""
    if isinstance(sampling, Mapping):
        return {**sampling, "extra_args": {**(sampling.get("extra_args") or {}), PARAMS_KEY: offer}}
    params = sampling.clone()
    params.extra_args = {**(params.extra_args or {}), PARAMS_KEY: offer}
    return params

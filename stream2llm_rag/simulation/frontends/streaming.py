"""Our front end: sessions that stream, on our schedulers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stream2llm_rag.engine import protocol
from stream2llm_rag.engine.cost_model import Preemption
from stream2llm_rag.engine.policy import DEFAULT_POLICY
from stream2llm_rag.engine.protocol import Op, OpKind
from stream2llm_rag.engine.scheduler import AsyncStreamingScheduler, StreamingScheduler
from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.simulation.books import RequestBook
from stream2llm_rag.simulation.frontends.base import SECRET, Door, Frontend, prompt, send_plain, token_id
from stream2llm_rag.simulation.trace import Query

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler

HINTS = "hints"


@dataclass(frozen=True, slots=True)
class Streaming(Frontend):
    """Ours, with the scheduling policy called ``policy``.

    With ``hints`` each chunk says how many are still to come, as a retriever may. ``preempt`` says what becomes of victims' KV.
    """

    policy: str = DEFAULT_POLICY
    hints: bool = False
    preempt: Preemption = Preemption.RECOMPUTE

    @property
    def name(self) -> str:
        """The policy's, and how it differs from the plain one, such as ``density+hints+auto``."""
        return "+".join([self.policy, *([HINTS] if self.hints else []), *([self.preempt] if self.swaps else [])])

    @property
    def swaps(self) -> bool:
        """Whether victims' KV may be copied to host memory."""
        return self.preempt is not Preemption.RECOMPUTE

    @property
    def settings(self) -> CoreSettings:
        """The policy, and what becomes of victims' KV."""
        return CoreSettings(SECRET, self.policy, preempt=str(self.preempt))

    def scheduler_class(self, asynchronous: bool) -> type[Scheduler]:
        """Ours."""
        return AsyncStreamingScheduler if asynchronous else StreamingScheduler

    def send(self, door: Door, book: RequestBook, index: int) -> None:
        """Send one operation, as a session does."""
        query, chunk = book.query, book.query.chunks[index]
        if len(query.chunks) == 1:
            book.is_reported = False  # the scheduler reports of streams only
            send_plain(door, book)
            return
        num_remaining = len(query.chunks) - 1 - index if self.hints else None
        op = Op(self._kind(query, index), opens=query.query_id not in door.books, num_remaining=num_remaining)
        is_append = op.kind is OpKind.APPEND and not op.opens
        token_ids = [token_id(book.number, index)] * chunk.num_tokens if is_append else prompt(book, index)
        num_output_tokens = query.num_output_tokens if op.kind is OpKind.FINISH else 1
        extra_args = protocol.encode(op, SECRET)
        door.add(book, query.query_id, token_ids, num_output_tokens=num_output_tokens, extra_args=extra_args)
        book.sent(index)

    def _kind(self, query: Query, index: int) -> OpKind:
        if index == len(query.chunks) - 1:
            return OpKind.FINISH
        return OpKind.APPEND if query.chunks[index].num_kept is None else OpKind.UPDATE

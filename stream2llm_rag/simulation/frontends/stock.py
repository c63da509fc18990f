"""Front ends on vLLM's own schedulers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from stream2llm_rag.simulation.books import RequestBook
from stream2llm_rag.simulation.frontends.base import Door, Frontend, prompt, send_plain, token_id
from stream2llm_rag.simulation.trace import Query


@dataclass(frozen=True, slots=True)
class NonStreaming(Frontend):
    """The usual way: the whole prompt, when retrieval has ended, to vLLM's own scheduler."""

    name = "ns"

    def scheduler_class(self, asynchronous: bool) -> type[Scheduler]:
        """vLLM's."""
        return AsyncScheduler if asynchronous else Scheduler

    def sends(self, query: Query) -> Iterable[int]:
        """Only at the last chunk."""
        return (len(query.chunks) - 1,)

    def send(self, door: Door, book: RequestBook, index: int) -> None:
        """Send one plain request."""
        send_plain(door, book)


@dataclass(slots=True)
class _NativeBook(RequestBook):
    """A session of vLLM's own streaming takes its chunks in turns, each of which samples a token and drops it.

    ``turns`` are the chunks sent so far; ``attempt`` is the request that stands for the query where each change is a new one.
    """

    turns: list[int] = field(default_factory=list)
    num_turns_ended: int = 0
    attempt: str | None = None

    def answered(self, num_tokens: int, finished: bool, now: float) -> None:
        if self.is_final:
            RequestBook.answered(self, num_tokens, finished, now)
            return
        self.num_discarded += num_tokens
        if finished and self.attempt is None:
            self.num_turns_ended += 1
            self.begin_turn()

    def begin_turn(self) -> None:
        """Go on with the next chunk, if it has been sent and the one before has ended."""
        if self.num_turns_ended < len(self.turns):
            self.num_sampled = 0
            self.sent(self.turns[self.num_turns_ended])


@dataclass(frozen=True, slots=True)
class NativeStreaming(Frontend):
    """vLLM's own streaming input, on its own scheduler.

    One resumable request for each chunk, the last with the length of the answer, then one that closes the session. It only
    appends: a query that updates is aborted and sent anew, each time as a request that samples one token, until the last.
    """

    name = "native"
    holds_back = False

    def scheduler_class(self, asynchronous: bool) -> type[Scheduler]:
        """vLLM's."""
        return AsyncScheduler if asynchronous else Scheduler

    def book(self, query: Query, number: int) -> RequestBook:
        """One that knows of turns."""
        return _NativeBook(query, number)

    def send(self, door: Door, book: RequestBook, index: int) -> None:
        """Send the chunk, or the whole prompt in place of the last one."""
        assert isinstance(book, _NativeBook)
        if len(book.query.chunks) == 1:
            send_plain(door, book)
        elif book.query.is_update:
            self._resubmit(door, book, index)
        else:
            self._continue(door, book, index)

    def _continue(self, door: Door, book: _NativeBook, index: int) -> None:
        query = book.query
        is_last = index == len(query.chunks) - 1
        token_ids = [token_id(book.number, index)] * query.chunks[index].num_tokens
        door.add(book, query.query_id, token_ids, num_output_tokens=query.num_output_tokens if is_last else 1, resumable=True)
        if is_last:
            door.add(book, query.query_id, [0])
        book.turns.append(index)
        if book.num_turns_ended == len(book.turns) - 1:
            book.begin_turn()

    def _resubmit(self, door: Door, book: _NativeBook, index: int) -> None:
        query = book.query
        if book.attempt is not None:
            door.abort(book.attempt)
            book.restarted()
        book.attempt = f"{query.query_id}#{index}"  # a new id: output of the last one may still be in flight
        num_output_tokens = query.num_output_tokens if index == len(query.chunks) - 1 else 1
        door.add(book, book.attempt, prompt(book, index), num_output_tokens=num_output_tokens)
        book.sent(index)

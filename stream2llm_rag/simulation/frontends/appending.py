"""The paper's vLLM-S: vLLM's default scheduling, with prompts that grow where they are.

The paper says of it only that it is the default scheduler, streamed. Here that means: vLLM's ``schedule`` decides.
Requests run in the order of their admission. One that streams stays in ``running`` with nothing to compute, keeps its blocks
and its slot, and is the first to be preempted if it was the last to be admitted. A waiting request never preempts anybody, so
it waits for as long as streams hold the pool. A partial request is computed up to its last token but one and never samples; an
update cuts its KV back to the longest common prefix. As in the artifact there is no prefix cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.books import RequestBook
from stream2llm_rag.simulation.frontends.base import Door, Frontend, prompt, sampling_params, send_plain, token_id

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request


class _AppendingMixin(Scheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.cache_config.enable_prefix_caching:
            raise InvalidInputError("vLLM-S has no prefix cache. Write prefix_caching=False.")
        self._partial: set[str] = set()

    def open(self, request: Request) -> None:
        """Take a request whose prompt will grow."""
        self._partial.add(request.request_id)
        self.add_request(request)

    def update(self, request_id: str, token_ids: list[int], num_kept: int) -> int:
        """Keep the first ``num_kept`` tokens of the prompt, and put ``token_ids`` behind. Returns how many lost their KV."""
        request = self.requests[request_id]
        num_lost = self._truncate(request, num_kept)
        request._all_token_ids[num_kept:] = token_ids
        request.prompt_token_ids = [*request.prompt_token_ids[:num_kept], *token_ids]
        request.num_prompt_tokens = len(request.prompt_token_ids)
        return num_lost

    def finish(self, request_id: str, params: SamplingParams) -> None:
        """The prompt is whole: answer it."""
        self._partial.remove(request_id)
        request = self.requests[request_id]
        request.sampling_params, request.max_tokens = params, params.max_tokens

    def _truncate(self, request: Request, num_kept: int) -> int:
        num_lost = max(0, request.num_computed_tokens - num_kept)
        if num_lost:
            manager = self.kv_cache_manager.coordinator.single_type_managers[0]
            blocks = manager.req_to_blocks[request.request_id]
            num_blocks = -(-num_kept // self.block_size)
            manager.block_pool.free_blocks(reversed(blocks[num_blocks:]))
            del blocks[num_blocks:]
            request.num_computed_tokens = num_kept
        return num_lost

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Hold back the last token of a partial request; vLLM passes over a running one that has nothing else to compute."""
        num_tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if request.request_id in self._partial:
            num_tokens = min(num_tokens, request.num_tokens - 1 - num_computed_tokens)
        return max(num_tokens, 0)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM does, which would stop at a waiting request of one token: where that is held back, it is not shown."""
        idle = [request for request in self.waiting if self._is_idle(request)]
        if not idle:
            return super().schedule(*args, **kwargs)
        self.waiting.remove_requests(idle)
        output = super().schedule(*args, **kwargs)
        self.waiting.prepend_requests(reversed(idle))
        return output

    def get_num_unfinished_requests(self) -> int:
        """Requests that a step could advance: while all others stream and have nothing to compute, the engine core sleeps."""
        return super().get_num_unfinished_requests() - sum(map(self._is_idle, (*self.running, *self.waiting)))

    def _is_idle(self, request: Request) -> bool:
        return request.request_id in self._partial and request.num_computed_tokens >= request.num_tokens - 1


class AppendingScheduler(_AppendingMixin):
    """For synchronous scheduling."""


class AsyncAppendingScheduler(_AppendingMixin, AsyncScheduler):
    """For asynchronous scheduling."""


@dataclass(frozen=True, slots=True)
class PaperStreaming(Frontend):
    """The paper's vLLM-S: prompts that grow where they are, on vLLM's default scheduling."""

    name = "vllm-s"

    def scheduler_class(self, asynchronous: bool) -> type[Scheduler]:
        """vLLM's, with prompts that grow."""
        return AsyncAppendingScheduler if asynchronous else AppendingScheduler

    def send(self, door: Door, book: RequestBook, index: int) -> None:
        """Open the request, or change its prompt."""
        query, chunk = book.query, book.query.chunks[index]
        if len(query.chunks) == 1:
            send_plain(door, book)
            return
        if query.query_id not in door.books:
            door.books[query.query_id] = book
            door.scheduler.open(door.request(query.query_id, prompt(book, index)))
        else:
            num_kept = book.num_sent if chunk.num_kept is None else chunk.num_kept
            token_ids = [token_id(book.number, index)] * chunk.num_tokens
            book.invalidated(door.scheduler.update(query.query_id, token_ids, num_kept))
        if index == len(query.chunks) - 1:
            door.scheduler.finish(query.query_id, sampling_params(query.num_output_tokens))
        book.sent(index)

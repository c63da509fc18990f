"""What a front end is, and what it has of the engine core."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request, RequestStatus

from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.simulation.books import RequestBook
from stream2llm_rag.simulation.trace import Query

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler

SECRET = "simulated"  # noqa: S105 - proves to the scheduler that operations are ours, and there is nobody else here
_MAX_CHUNKS = 1 << 20


@dataclass(slots=True)
class Door:
    """The engine core's input: makes requests and hands them to the scheduler, as of time ``now_s``."""

    scheduler: Any
    block_hasher: Callable[[Request], list[Any]] | None
    books: dict[str, RequestBook] = field(default_factory=dict)
    """By request id."""
    now_s: float = 0.0

    def add(self, book: RequestBook, request_id: str, token_ids: list[int], **params: Any) -> None:
        """Send a request, or an operation of one."""
        self.books[request_id] = book
        self.scheduler.add_request(self.request(request_id, token_ids, **params))

    def request(
        self,
        request_id: str,
        token_ids: list[int],
        num_output_tokens: int = 1,
        extra_args: dict[str, Any] | None = None,
        resumable: bool = False,
    ) -> Request:
        """Make vLLM's request of ``token_ids``."""
        params = sampling_params(num_output_tokens, extra_args)
        return Request(
            request_id, token_ids, params, None, arrival_time=self.now_s, block_hasher=self.block_hasher, resumable=resumable
        )

    def abort(self, request_id: str) -> None:
        """Take a request back."""
        self.scheduler.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)


class Frontend(ABC):
    """A front end, with the scheduler classes that it needs. It keeps no state of its own."""

    holds_back: ClassVar[bool] = True
    """Whether a request samples nothing before its final context."""

    @property
    def swaps(self) -> bool:
        """Whether its engine core has host memory for KV."""
        return False

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @abstractmethod
    def scheduler_class(self, asynchronous: bool) -> type[Scheduler]:
        """The scheduler that serves it."""

    @property
    def settings(self) -> CoreSettings:
        """What a scheduler of ours is told at its start."""
        return CoreSettings(SECRET)

    def book(self, query: Query, number: int) -> RequestBook:
        """An empty book for the query, which is the ``number``-th of its trace."""
        return RequestBook(query, number)

    def sends(self, query: Query) -> Iterable[int]:
        """The chunks that something is sent for: those that change the prompt and leave it with tokens, and the last."""
        last, before = len(query.chunks) - 1, 0
        for index, (chunk, length) in enumerate(zip(query.chunks, query.prompt_lengths, strict=True)):
            changes = chunk.num_tokens > 0 or length != before
            if index == last or (changes and length > 0):
                yield index
            before = length

    @abstractmethod
    def send(self, door: Door, book: RequestBook, index: int) -> None:
        """Send what chunk ``index`` changes, and enter it into the book."""


def sampling_params(num_output_tokens: int, extra_args: dict[str, Any] | None = None) -> SamplingParams:
    """For an answer of just so many tokens."""
    return SamplingParams(max_tokens=num_output_tokens, ignore_eos=True, extra_args=extra_args)


def block_hasher(block_size: int) -> Callable[[Request], list[Any]]:
    """A request block hasher for vLLM: of each full block's tokens and of all before.

    Faster than vLLM's own, which withstand collisions made on purpose.
    """

    def new_hashes(request: Request) -> list[bytes]:
        token_ids = request._all_token_ids
        start = len(request.block_hashes) * block_size
        digest = int.from_bytes(request.block_hashes[-1], "little", signed=True) if start else 0
        hashes = []
        for end in range(start + block_size, len(token_ids) + 1, block_size):
            digest = hash((digest, *token_ids[end - block_size : end]))
            hashes.append(digest.to_bytes(8, "little", signed=True))
        return hashes

    return new_hashes


def send_plain(door: Door, book: RequestBook) -> None:
    """Send the query's final prompt as one plain request."""
    query, last = book.query, len(book.query.chunks) - 1
    door.add(book, query.query_id, prompt(book, last), num_output_tokens=query.num_output_tokens)
    book.sent(last)


def prompt(book: RequestBook, index: int) -> list[int]:
    """The prompt after chunk ``index``: other queries share no token of it, other chunks of this one none of what is new."""
    return [token for number, count in book.query.pieces(index) for token in [token_id(book.number, number)] * count]


def token_id(query_number: int, chunk_index: int) -> int:
    """The token that stands for all of a chunk's."""
    return query_number * _MAX_CHUNKS + chunk_index

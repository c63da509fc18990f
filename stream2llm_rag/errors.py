"""The errors of the library, one tree::

    Stream2LLMError
    ├── InvalidInputError (ValueError)      what the caller passed cannot be used
    │   └── PromptTooLongError              more tokens than the model's context holds
    ├── LifecycleError (RuntimeError)       used before it was opened, after it was closed, or twice
    ├── MissingExtraError (ImportError)     an optional dependency is not installed; names the extra
    ├── RetrievalError                      a retriever failed; keeps the documents it had found
    │   ├── CrawlError                      a crawl could not start or go on
    │   ├── IndexBuildError                 a vector index could not be built
    │   └── IndexFormatError                the files of a vector index are missing, damaged, or of another kind
    ├── EngineError                         the engine could not do what was asked
    │   ├── EngineStartError                it did not start
    │   ├── UnsupportedError                vLLM, or we on it, do not support this
    │   ├── CapacityError                   a limit on open streams is reached: try again later
    │   ├── EngineDied                      a process of the engine is gone; open a new engine
    │   └── EngineUnreachable               a served engine cannot be reached, or dropped the stream
    └── ConservationError                   a simulated scheduler lost or made up requests, tokens or blocks

Errors of libraries underneath are translated where they enter and stay reachable as ``__cause__``. A message says what came,
what was needed, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream2llm_rag.documents import Document


class Stream2LLMError(Exception):
    """Base of every error that this library raises on purpose."""


class InvalidInputError(Stream2LLMError, ValueError):
    """What the caller passed cannot be used."""


class PromptTooLongError(InvalidInputError):
    """The prompt has more tokens than the model's context holds."""


class LifecycleError(Stream2LLMError, RuntimeError):
    """Used before it was opened, after it was closed, or a second time."""


class MissingExtraError(Stream2LLMError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, needed: str, extra: str) -> None:
        super().__init__(f"{needed} is not installed. Write: pip install 'stream2llm-rag[{extra}]'")
        self.extra = extra


class RetrievalError(Stream2LLMError):
    """A retriever failed. ``documents`` are those it had found before, in order."""

    def __init__(self, message: str, documents: Sequence[Document] = ()) -> None:
        super().__init__(message)
        self.documents: tuple[Document, ...] = tuple(documents)


class CrawlError(RetrievalError):
    """A crawl could not start or go on."""


class IndexBuildError(RetrievalError):
    """A vector index could not be built."""


class IndexFormatError(RetrievalError):
    """The files of a vector index are missing, damaged, or of another kind."""


class EngineError(Stream2LLMError):
    """The engine could not do what was asked."""


class EngineStartError(EngineError):
    """The engine did not start."""


class UnsupportedError(EngineError):
    """vLLM, or this library on it, does not support what was asked."""


class CapacityError(EngineError):
    """A limit on open streams is reached. Trying again later can succeed."""


class EngineDied(EngineError):  # noqa: N818 - says what happened, which no *Error says as well
    """A process of the engine is gone. Every open stream ends with this; open a new engine."""


class EngineUnreachable(EngineError):  # noqa: N818 - as above
    """A served engine cannot be reached, or a connection to it has ended. Its stream is gone; others may go on."""


class ConservationError(Stream2LLMError):
    """A simulated scheduler lost or made up requests, tokens or blocks: a bug of it, or of the simulation."""

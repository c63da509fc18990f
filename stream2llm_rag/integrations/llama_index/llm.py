"""An LLM on an engine in the background."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM, default_completion_to_prompt
from pydantic import ConfigDict, Field, PrivateAttr

from stream2llm_rag.errors import UnsupportedError
from stream2llm_rag.integrations.answering import Prompt, start_generation
from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.integrations.crossing import closing, forward
from stream2llm_rag.integrations.keeping import Kept, kept_encoder
from stream2llm_rag.integrations.llama_index.nodes import to_openai
from stream2llm_rag.pipeline import DEFAULT_MAX_TOKENS
from stream2llm_rag.prompt.chat import ChatEncoder


@dataclass(frozen=True, slots=True)
class _Progress:
    """The answer so far, and what was added last."""

    text: str
    delta: str
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: str | None

    @property
    def usage(self) -> dict[str, Any]:
        """Under the names that LlamaIndex's token counter reads."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_tokens,
            "finish_reason": self.finish_reason,
        }

    def as_completion(self) -> CompletionResponse:
        return CompletionResponse(text=self.text, delta=self.delta, additional_kwargs=self.usage)

    def as_chat(self) -> ChatResponse:
        message = ChatMessage(role=MessageRole.ASSISTANT, content=self.text)
        return ChatResponse(message=message, delta=self.delta, additional_kwargs=self.usage)


class Stream2LLM(LLM):
    """An LLM over ``engine``: ``Stream2LLM(engine=engine, temperature=0)``.

    ``sampling`` holds any further field of vLLM's ``SamplingParams``; keywords of a call come before it.
    ``timeout`` bounds an answer in seconds (``TimeoutError``), ``max_retries`` the attempts when as many sessions are open as
    the engine takes. A prompt to complete becomes one user message, unless it is ``formatted``. Calls that are not async block
    their thread, never the engine's loop; async ones block no loop.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    engine: BackgroundEngine = Field(exclude=True, repr=False)
    model: str | None = None
    temperature: float | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    timeout: float | None = Field(default=None, gt=0)
    max_retries: int = Field(default=2, ge=0)
    sampling: dict[str, Any] = Field(default_factory=dict)
    chat_template: str | None = None

    _encoder: Kept[ChatEncoder] | None = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serialises it."""
        return "Stream2LLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What the engine's model can take."""
        return LLMMetadata(
            context_window=self.engine.engine.max_model_len,
            num_output=self.max_tokens,
            is_chat_model=True,
            model_name=self.model or str(getattr(self.engine.engine.tokenizer, "name_or_path", "") or "stream2llm"),
        )

    def __getstate__(self) -> NoReturn:
        raise UnsupportedError(
            "an LLM on a running engine cannot be pickled. Keep to_dict(), and make it anew: from_dict(data, engine=engine)."
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat."""
        return self._last(self._chat_prompt(messages, kwargs)).as_chat()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt."""
        return self._last(self._completion_prompt(prompt, formatted, kwargs)).as_completion()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat, piece by piece."""
        answer = self._chat_prompt(messages, kwargs)

        def pieces() -> ChatResponseGen:
            with self.engine.iterate(forward(lambda: self._progress(answer))) as progress:
                yield from (step.as_chat() for step in progress)

        return pieces()

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt, piece by piece."""
        answer = self._completion_prompt(prompt, formatted, kwargs)

        def pieces() -> CompletionResponseGen:
            with self.engine.iterate(forward(lambda: self._progress(answer))) as progress:
                yield from (step.as_completion() for step in progress)

        return pieces()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat."""
        return (await self._alast(self._chat_prompt(messages, kwargs))).as_chat()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt."""
        return (await self._alast(self._completion_prompt(prompt, formatted, kwargs))).as_completion()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Answer a chat, piece by piece."""
        answer = self._chat_prompt(messages, kwargs)

        async def pieces() -> ChatResponseAsyncGen:
            async with closing(self._progress(answer)) as progress:
                async for step in progress:
                    yield step.as_chat()

        return pieces()

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Answer a prompt, piece by piece."""
        answer = self._completion_prompt(prompt, formatted, kwargs)

        async def pieces() -> CompletionResponseAsyncGen:
            async with closing(self._progress(answer)) as progress:
                async for step in progress:
                    yield step.as_completion()

        return pieces()

    def _last(self, prompt: Prompt) -> _Progress:
        async def only() -> AsyncIterator[_Progress]:
            yield await self._alast(prompt)

        with self.engine.iterate(forward(only)) as answers:
            return next(answers)

    async def _alast(self, prompt: Prompt) -> _Progress:
        last = _Progress("", "", len(prompt.token_ids), 0, None)
        async for step in self._progress(prompt):
            last = step
        return last

    async def _progress(self, prompt: Prompt) -> AsyncIterator[_Progress]:
        """The answer, on whichever loop runs now."""
        texts: list[str] = []
        num_tokens = 0
        async with start_generation(self.engine, prompt) as deltas:
            async for delta in deltas:
                texts.append(delta.text)
                num_tokens += len(delta.token_ids)
                yield _Progress("".join(texts), delta.text, len(prompt.token_ids), num_tokens, delta.finish_reason)

    def _chat_prompt(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> Prompt:
        return self._prompt(self._chat_encoder().encode(to_openai(messages)), options)

    def _completion_prompt(self, prompt: str, formatted: bool, options: dict[str, Any]) -> Prompt:
        if not formatted:
            shaped = (self.completion_to_prompt or default_completion_to_prompt)(prompt)
            if shaped == prompt:
                return self._chat_prompt([ChatMessage(role=MessageRole.USER, content=prompt)], options)
            prompt = shaped
        return self._prompt(self._chat_encoder().encode_formatted(prompt), options)

    def _prompt(self, token_ids: list[int], options: dict[str, Any]) -> Prompt:
        own = {"max_tokens": self.max_tokens, **self.sampling}
        if self.temperature is not None:
            own["temperature"] = self.temperature
        return Prompt(token_ids, {**own, **options}, self.timeout, self.max_retries)

    def _chat_encoder(self) -> ChatEncoder:
        self._encoder = kept_encoder(self._encoder, self.engine, self.chat_template)
        return self._encoder.value

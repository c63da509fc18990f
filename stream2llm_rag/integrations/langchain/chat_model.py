"""A chat model on an engine in the background."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.integrations.answering import Prompt, start_generation
from stream2llm_rag.integrations.background import BackgroundEngine
from stream2llm_rag.integrations.crossing import closing, forward
from stream2llm_rag.integrations.keeping import Kept, kept_encoder
from stream2llm_rag.integrations.langchain.messages import to_openai, usage
from stream2llm_rag.integrations.langchain.tools import Shape, read_tool_choice, shape_answer
from stream2llm_rag.pipeline import DEFAULT_MAX_TOKENS
from stream2llm_rag.prompt.chat import ChatEncoder

_SAMPLING_FIELDS = ("temperature", "top_p", "max_tokens", "seed")


class ChatStream2LLM(BaseChatModel):
    """A chat model over ``engine``: ``ChatStream2LLM(engine=engine, temperature=0)``.

    ``sampling`` holds any further field of vLLM's ``SamplingParams``; keywords of a call come before it. ``timeout`` bounds
    an answer in seconds (``TimeoutError``), ``max_retries`` the attempts when as many sessions are open as the engine
    takes. Tools need a ``chat_template`` that shows them to the model, and unless a call is forced the name of vLLM's
    ``tool_parser`` for it. A ``model`` names itself in metadata; it cannot choose another than the engine's. ``streaming``
    lets ``invoke`` stream to callbacks; ``api_key`` is taken because code for any model passes one, and has no use here.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, extra="forbid", protected_namespaces=())

    engine: BackgroundEngine = Field(exclude=True, repr=False)
    model_name: str | None = Field(default=None, alias="model")
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    seed: int | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    timeout: float | None = Field(default=None, gt=0)
    max_retries: int = Field(default=2, ge=0)
    sampling: dict[str, Any] = Field(default_factory=dict)
    chat_template: str | None = None
    tool_parser: str | None = None
    streaming: bool = False
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)

    _encoder: Kept[ChatEncoder] | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "stream2llm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self._name(), "stop": self.stop, **self._own_sampling()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_model_name"] = kwargs.get("model") or self._name()
        return params

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self.engine.iterate(forward(lambda: self._chunks(messages, stop, **kwargs))) as chunks:
            yield from chunks

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with closing(self._chunks(messages, stop, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _merged(list(self._stream(messages, stop, **kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _merged([chunk async for chunk in self._chunks(messages, stop, **kwargs)])

    async def _chunks(
        self, messages: list[BaseMessage], stop: list[str] | None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        """The answer, on whichever loop runs now; the last chunk has the usage and the metadata."""
        prompt, shape = self._prepare(messages, stop, kwargs)
        num_output_tokens = 0
        finish_reason: str | None = None
        async with start_generation(self.engine, prompt) as deltas:
            async for delta in deltas:
                num_output_tokens += len(delta.token_ids)
                finish_reason = delta.finish_reason
                piece = shape.reader.feed(delta)
                if piece.text or piece.tool_call_chunks:
                    yield _chunk(piece.text, tool_call_chunks=list(piece.tool_call_chunks))
        rest = shape.reader.end()
        yield _chunk(
            rest.text,
            tool_call_chunks=list(rest.tool_call_chunks),
            usage_metadata=usage(len(prompt.token_ids), num_output_tokens),
            response_metadata={"model_name": self._name(), "finish_reason": finish_reason},
            chunk_position="last",
        )

    def _prepare(self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> tuple[Prompt, Shape]:
        self._refuse_another_model(options.pop("model", None))
        shape = shape_answer(
            tools=options.pop("tools", ()),
            tool_choice=read_tool_choice(options.pop("tool_choice", None)),
            parallel_tool_calls=options.pop("parallel_tool_calls", True),
            response_format=options.pop("response_format", None),
            tool_parser=self.tool_parser,
            tokenizer=self.engine.engine.tokenizer,
        )
        timeout_s = options.pop("timeout", self.timeout)
        max_retries = options.pop("max_retries", self.max_retries)
        stops: Any = self.stop if stop is None else stop
        if isinstance(stops, str):  # as others take it; not its characters
            stops = [stops]
        sampling = {**self._own_sampling(), **shape.sampling, **options, **({"stop": list(stops)} if stops else {})}
        token_ids = self._chat_encoder().encode(to_openai(messages), shape.tools)
        return Prompt(token_ids, sampling, timeout_s, max_retries), shape

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text by its engine's tokenizer, without what a chat puts round it; no special token comes out of it."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._chat_encoder().encode_data(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None
    ) -> int:
        """Length of the prompt that ``messages`` make, up to where the answer begins, in tokens."""
        declared = [convert_to_openai_tool(tool) for tool in tools or ()]
        return len(self._chat_encoder().encode(to_openai(messages), declared))

    def _own_sampling(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in _SAMPLING_FIELDS}
        return {**self.sampling, **{name: value for name, value in fields.items() if value is not None}}

    def _chat_encoder(self) -> ChatEncoder:
        self._encoder = kept_encoder(self._encoder, self.engine, self.chat_template)
        return self._encoder.value

    def _name(self) -> str:
        return self.model_name or str(getattr(self.engine.engine.tokenizer, "name_or_path", "") or "stream2llm")

    def _refuse_another_model(self, model: str | None) -> None:
        if model is not None and model != self._name():
            raise InvalidInputError(
                f"an engine has one model, {self._name()!r}, but model={model!r} came. Leave it out, or use another engine."
            )

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call ``tools``. ``tool_choice`` is ``"auto"``, ``"none"``, or, to force a call, ``"any"`` or a name."""
        declared = [convert_to_openai_tool(tool) for tool in tools]
        choice = read_tool_choice(tool_choice)
        if choice not in ("auto", "none", "any") and choice not in {tool["function"]["name"] for tool in declared}:
            raise InvalidInputError(f"tool_choice={tool_choice!r} is not the name of a tool that is bound.")
        return super().bind(tools=declared, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers that follow ``schema``, which vLLM's structured outputs enforce (``json_schema``, ``json_mode``).

        ``function_calling`` makes it a forced tool call; ``json_mode`` without a schema asks for some JSON object. An answer
        that ``max_tokens`` cuts short cannot be parsed.
        """
        if schema is None and method != "json_mode":
            raise InvalidInputError("a schema is needed for structured output, but none came. Only 'json_mode' works without.")
        if schema is not None and method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        if method not in ("json_schema", "json_mode"):
            raise InvalidInputError(f"method is {method!r}; write 'json_schema', 'function_calling' or 'json_mode'.")
        kwargs.pop("strict", None)  # it always is
        wanted: dict[str, Any] = {"type": "json_object"}
        if schema is not None:
            wanted = {"type": "json_schema", "json_schema": {"schema": convert_to_json_schema(schema)}}
        model = super().bind(
            response_format=wanted,
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
            **kwargs,
        )
        parser: OutputParserLike[Any] = JsonOutputParser()
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            parser = PydanticOutputParser(pydantic_object=schema)
        return _with_raw(model, parser) if include_raw else model | parser


def _with_raw(model: Runnable[LanguageModelInput, AIMessage], parser: OutputParserLike[Any]) -> Runnable[Any, Any]:
    parse = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    give_up = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parse.with_fallbacks([give_up], exception_key="parsing_error")


def _chunk(text: str, **fields: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text, **fields))


def _merged(chunks: list[ChatGenerationChunk]) -> ChatResult:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    message = whole.message
    assert isinstance(message, AIMessageChunk)
    fields: Mapping[str, Any] = message.model_dump(exclude={"type", "tool_call_chunks", "chunk_position"})
    return ChatResult(generations=[ChatGeneration(message=AIMessage(**fields), generation_info=whole.generation_info)])

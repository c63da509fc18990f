"""What a client and a server of streams say to each other: JSON texts over a WebSocket, one stream per connection. Pure.

The structs are the schema (docs/stream-v1.schema.json is made of them). A field that is not listed is refused, so that a
misspelt one is never dropped in silence; anything else than a new optional field is a new version.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec

from stream2llm_rag.engine.session import OutputDelta
from stream2llm_rag.errors import InvalidInputError

PATH = "/v1/stream"
SUBPROTOCOL = "stream2llm.v1"

_MAX = 2**31 - 1  # vLLM's V2 model runner keeps lengths and ids in 32 bits: more would end a worker, not a request
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_MAX)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_MAX)]
StopText: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
BadWord: TypeAlias = Annotated[str, msgspec.Meta(max_length=16)]


class Sampling(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """How an answer is drawn: the fields of vLLM's ``SamplingParams`` that a client may set. Null means vLLM's default."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=_MAX)] | None = None
    min_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=_MAX)] | None = None
    min_p: float | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[list[StopText], msgspec.Meta(max_length=64)] | StopText | None = None
    # What that runner has room for, with the ends of sequences that a model has of its own: 128 ids, 1,024 tokens of words.
    stop_token_ids: Annotated[list[TokenId], msgspec.Meta(max_length=96)] | None = None
    bad_words: Annotated[list[BadWord], msgspec.Meta(max_length=16)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    detokenize: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], msgspec.Meta(max_length=1024)] | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    structured_outputs: dict[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were set."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}


class _ClientMessage(msgspec.Struct, tag_field="type", forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    pass


class _Piece(_ClientMessage):
    """Context: ``tokens`` of the model's tokenizer, or ``text`` for the server to encode; at most one of them.

    No special token comes out of a text, whatever it holds, unless it is ``formatted``: by you, for the model.
    """

    tokens: list[TokenId] | None = None
    text: str | None = None
    formatted: bool = False


class Describe(_ClientMessage, tag="describe"):
    """Ask which model is served; answered by ``model``. May come before ``open``."""


class Open(_Piece, tag="open"):
    """Open the stream of this connection, with the beginning of its prompt; answered by ``opened``.

    ``cache_salt`` keeps its KV apart from that of other salts in the prefix cache.
    """

    cache_salt: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None


class Append(_Piece, tag="append"):
    """Put a piece behind the prompt. ``num_remaining``: how many more are expected, a hint. Not answered."""

    num_remaining: Count | None = None


class Update(_Piece, tag="update"):
    """Replace the prompt; KV of the longest common prefix stays. Not answered."""

    num_remaining: Count | None = None


class Finish(_Piece, tag="finish"):
    """Add the last piece and answer: ``accepted``, then ``output`` until one has a ``finish_reason``."""

    sampling: Sampling = msgspec.field(default_factory=Sampling)


class Cancel(_ClientMessage, tag="cancel"):
    """Drop the stream; answered by ``cancelled``, and the connection ends. So does closing it."""


class Ping(_ClientMessage, tag="ping"):
    """A sign of life, for times without another; answered by ``pong``. ``sent_s`` is any number of the client's."""

    sent_s: float = 0.0


class _ServerMessage(msgspec.Struct, tag_field="type", omit_defaults=True, kw_only=True):
    pass


class Model(_ServerMessage, tag="model"):
    """What is served. ``tokenizer``: the files of a fast Hugging Face tokenizer, in base64; null where it is of another kind.

    ``max_model_len`` is what a prompt and its answer may have together, in tokens; a prompt has fewer.
    """

    name: str
    max_model_len: int
    vocab_size: int
    tokenizer: dict[str, bytes] | None = None


class Opened(_ServerMessage, tag="opened"):
    """The stream is open.

    Send something every ``heartbeat_timeout_s`` (a ``ping`` will do) and context every ``idle_timeout_s``, or it is dropped;
    no message longer than ``max_message_bytes``. ``server_time_s`` is the clock of ``records``.
    """

    stream_id: str
    heartbeat_timeout_s: float
    idle_timeout_s: float
    max_message_bytes: int
    server_time_s: float


class Record(msgspec.Struct):
    """One thing that the engine did for the stream, as ``StepRecord`` in engine/feedback.py has it."""

    kind: str
    started_s: float
    ended_s: float
    num_tokens: int


class Records(_ServerMessage, tag="records"):
    """What the engine did for the stream since the last ones."""

    records: list[Record]


class Accepted(_ServerMessage, tag="accepted"):
    """The finish was accepted; the answer follows."""


class LogprobOf(msgspec.Struct, omit_defaults=True):
    """One token's log-probability; minus infinity is -9999."""

    token_id: int
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class Output(_ServerMessage, tag="output"):
    """Tokens of the answer that came together; ``finish_reason`` is set in the last. ``logprobs`` has a list for each token."""

    text: str
    tokens: list[int]
    finish_reason: str | None = None
    logprobs: list[list[LogprobOf]] | None = None


class Cancelled(_ServerMessage, tag="cancelled"):
    """The stream was dropped as asked."""


class Pong(_ServerMessage, tag="pong"):
    """Answers ``ping`` with its ``sent_s``."""

    sent_s: float
    server_time_s: float


class Error(_ServerMessage, tag="error"):
    """Why the stream is dropped: every error ends it, and the connection. ``code`` is one of ``codes.py``."""

    code: str
    message: str


ClientMessage: TypeAlias = Describe | Open | Append | Update | Finish | Cancel | Ping
ServerMessage: TypeAlias = Model | Opened | Records | Accepted | Output | Cancelled | Pong | Error

_encoder = msgspec.json.Encoder()
_client_messages = msgspec.json.Decoder(ClientMessage)
_server_messages = msgspec.json.Decoder(ServerMessage)


def encode(message: ClientMessage | ServerMessage) -> str:
    """The text of a message."""
    return _encoder.encode(message).decode()


def decode_client(data: str | bytes) -> ClientMessage:
    """What a client sent. InvalidInputError says what is wrong with it and where."""
    message: ClientMessage = _decoded(_client_messages, data)
    return message


def decode_server(data: str | bytes) -> ServerMessage:
    """What a server sent. InvalidInputError says what is wrong with it and where."""
    message: ServerMessage = _decoded(_server_messages, data)
    return message


def _decoded(decoder: msgspec.json.Decoder[Any], data: str | bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidInputError(f"no message of {SUBPROTOCOL}: {error}") from error


def to_output(delta: OutputDelta) -> Output:
    """What the engine answered, as a message."""
    logprobs = None
    if delta.logprobs is not None:
        logprobs = [
            [LogprobOf(token, max(value.logprob, -9999.0), value.rank, value.decoded_token) for token, value in one.items()]
            for one in delta.logprobs
        ]
    return Output(text=delta.text, tokens=list(delta.token_ids), finish_reason=delta.finish_reason, logprobs=logprobs)


def from_output(output: Output) -> OutputDelta:
    """The message as what the engine answered; log-probabilities by token id, as vLLM has them."""
    logprobs = None if output.logprobs is None else [{one.token_id: one for one in each} for each in output.logprobs]
    return OutputDelta(output.text, tuple(output.tokens), output.finish_reason, logprobs)

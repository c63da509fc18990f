"""`RemoteEngine` against the route on a loopback port, over an engine that is not real: the contract of a local one."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import textwrap
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from stream2llm_rag import Append, Document, Replace, StreamingRAG
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.engine.feedback import StepKind, StepRecord
from stream2llm_rag.engine.session import Session
from stream2llm_rag.errors import (
    CapacityError,
    EngineDied,
    EngineStartError,
    EngineUnreachable,
    InvalidInputError,
    LifecycleError,
    PromptTooLongError,
    UnsupportedError,
)
from stream2llm_rag.integrations import BackgroundEngine
from stream2llm_rag.pipeline import Engine
from stream2llm_rag.prompt import PromptTemplate
from stream2llm_rag.retrievers.base import InMemoryRetriever, TimedDelta
from stream2llm_rag.serve import RemoteEngine
from stream2llm_rag.serve.limits import Limits
from stream2llm_rag.serve.messages import Error, Open, decode_server, encode
from stream2llm_rag.serve.tokenizers import pack, unpack

from .conftest import API_KEY, Served, served_here

RETRIEVER = InMemoryRetriever(
    [
        TimedDelta(0.0, Append((Document("First <|eot_id|> page.", "https://a.example"),))),
        TimedDelta(0.0, Replace((Document("Second.", "https://b.example"), Document("Third.", "https://c.example")))),
        TimedDelta(0.0, Append((Document("Fourth.", "https://d.example"),))),
    ]
)
SAMPLING = {"max_tokens": 8, "temperature": 0}


async def collect(session: Session, suffix: list[int]) -> list[int]:
    return [token async for output in await session.finish(suffix, SAMPLING) for token in output.token_ids]


async def eventually(holds: Any) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - a server tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("order", ["stable", "rank"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_the_pipeline_asks_and_gets_the_same_as_of_a_local_engine(
    here: Served, tokenizer: Any, order: Any, streaming: bool
) -> None:
    local = FakeEngine(tokenizer)
    expected = await StreamingRAG(local, RETRIEVER, order=order).answer("How?", streaming=streaming)
    async with RemoteEngine(here.url) as engine:
        result = await StreamingRAG(engine, RETRIEVER, order=order).answer("How?", streaming=streaming)
    assert here.engine.prompts == local.prompts
    assert (result.text, result.token_ids, result.sources) == (expected.text, expected.token_ids, expected.sources)
    assert (result.prompt_tokens, result.finish_reason) == (expected.prompt_tokens, expected.finish_reason)
    assert result.computed_tokens == expected.computed_tokens
    assert 0 < result.ttft_s < result.arrival_to_first_token_s or not streaming


async def test_a_session_keeps_the_contract_of_a_local_one(here: Served) -> None:
    records: list[StepRecord] = []
    async with RemoteEngine(here.url) as engine:
        before = time.monotonic()
        async with await engine.open([5, 6], on_record=records.append, cache_salt="mine") as session:
            await session.append([7], num_remaining=1)
            with pytest.raises(PromptTooLongError):
                await session.append([5] * 9000)
            with pytest.raises(InvalidInputError, match="must be in"):
                await session.append([10**6])
            await session.update([5, 9])
            assert session.num_tokens == 2
            answer = await collect(session, [10])
            assert len(answer) == 8
            assert session.num_tokens == 3
            with pytest.raises(LifecycleError, match="finished"):
                await session.append([5])
        assert here.engine.prompts == [[5, 9, 10]]
        assert [record.kind for record in records] == [*[StepKind.COMPUTED] * 3, StepKind.FINAL]
        assert session.stats.overlap_tokens == 1
        assert all(before - 1 < record.started_s <= record.ended_s < time.monotonic() + 1 for record in records)
        with pytest.raises(LifecycleError, match="aborted"):
            await session.append([5])
        assert engine.num_sessions == 0


@pytest.mark.parametrize(("prefix", "piece"), [([], []), ([5, 6], []), ([5, 6], [8, 9])])
async def test_a_piece_whose_sending_was_cancelled_is_not_in_the_prompt(
    here: Served, monkeypatch: pytest.MonkeyPatch, prefix: list[int], piece: list[int]
) -> None:
    """It may have got to the server: on a slow network most of the time passes while a long message is on its way."""
    async with RemoteEngine(here.url) as engine, await engine.open(prefix) as session:
        connection: Any = session._wire._connection  # type: ignore[attr-defined]
        sent = asyncio.Event()

        async def send(message: str) -> None:
            await type(connection).send(connection, message)
            sent.set()
            await anyio.sleep_forever()

        with monkeypatch.context() as patched:
            patched.setattr(connection, "send", send)
            sending = asyncio.create_task(session.append([7]))
            await sent.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        await session.append(piece)
        await collect(session, [10])
        assert here.engine.prompts == [[*prefix, *piece, 10]]


async def test_a_plain_prompt_is_answered_too(here: Served) -> None:
    async with RemoteEngine(here.url) as engine:
        tokens = [token async for output in engine.generate([5, 6], SAMPLING) for token in output.token_ids]
        assert len(tokens) == 8
        assert here.engine.prompts == [[5, 6]]
        text = "a prompt"
        async for _ in engine.generate(text):
            pass
        assert here.engine.prompts[1] == engine.tokenizer.encode(text)


async def test_leaving_early_frees_the_stream_on_the_server(here: Served) -> None:
    async with RemoteEngine(here.url) as engine:
        async with await engine.open([5, 6]):
            assert len(here.engine.sessions) == 1
        await eventually(lambda: not here.engine.sessions)
        async with await engine.open([5, 6]) as session:
            async for _ in await session.finish([7], SAMPLING):
                break
        await eventually(lambda: not here.engine.sessions)


async def test_a_client_that_vanishes_without_a_goodbye_frees_its_stream(here: Served) -> None:
    connection = await connect(here.url.replace("http", "ws") + "/v1/stream")
    await connection.send(encode(Open(tokens=[5])))
    await connection.recv()
    assert len(here.engine.sessions) == 1
    connection.transport.abort()
    await eventually(lambda: not here.engine.sessions)


async def test_closing_the_engine_ends_its_sessions(here: Served) -> None:
    async with RemoteEngine(here.url) as engine:
        session = await engine.open([5])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self_ending, session)
            await anyio.wait_all_tasks_blocked()
            await engine.aclose()
        with pytest.raises(LifecycleError, match="closed"):
            await engine.open()
        await engine.aclose()


async def test_a_session_that_is_opened_while_the_engine_closes_is_not_left(here: Served, monkeypatch: Any) -> None:
    async with RemoteEngine(here.url) as engine:
        connect_ = engine._connect

        async def connect_and_close() -> Any:
            connection = await connect_()
            await engine.aclose()
            return connection

        monkeypatch.setattr(engine, "_connect", connect_and_close)
        with pytest.raises(LifecycleError, match="closed"):
            await engine.open([5])
        assert engine.num_sessions == 0


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("http_proxy", "nonsense://user:s3cret@host", "a proxy whose address is none: .+ Look at http_proxy"),
        ("http_proxy", "http://user:s3cret@host:port", "a proxy whose address is none. Look at http_proxy"),
        ("http_proxy", "http://user:s3cret@[host", "a proxy whose address is none. Look at http_proxy"),
        ("socks_proxy", "socks5://user:s3cret@127.0.0.1:9", "cannot be reached"),
    ],
)
async def test_a_proxy_that_cannot_be_used_is_told_of(variable: str, value: str, said: str, monkeypatch: Any) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv(variable, value)
    with pytest.raises(EngineStartError, match=said) as raised:
        await RemoteEngine("http://host.example").__aenter__()
    assert "s3cret" not in "".join(traceback.format_exception(raised.value))


async def self_ending(session: Session) -> None:
    with pytest.raises(LifecycleError, match="closed"), session.while_alive():
        await anyio.sleep_forever()


async def test_the_death_of_the_engine_behind_it_reaches_whoever_waits(here: Served) -> None:
    async with RemoteEngine(here.url) as engine, await engine.open([5]) as session:
        here.engine.lifeline.die()
        with pytest.raises(EngineDied), session.while_alive():
            await anyio.sleep_forever()
        with pytest.raises(EngineDied):
            await session.append([6])


async def test_a_connection_that_breaks_ends_its_stream_and_no_other(here: Served) -> None:
    async with RemoteEngine(here.url) as engine, await engine.open([5]) as first, await engine.open([5]) as second:
        engine._streams[first]._connection.transport.abort()
        with pytest.raises(EngineUnreachable, match="the connection to the server has ended"), first.while_alive():
            await anyio.sleep_forever()
        with pytest.raises(EngineUnreachable):
            await first.finish([6])
        assert len(await collect(second, [6])) == 8


async def test_a_server_that_falls_silent_is_given_up(tokenizer: Any, packed: dict[str, bytes], monkeypatch: Any) -> None:
    from stream2llm_rag.serve.connection import Connection

    async def say_nothing(self: Connection, message: object) -> None: ...

    async with (
        served_here(FakeEngine(tokenizer), packed, Limits(heartbeat_timeout_s=0.3)) as served,
        RemoteEngine(served.url) as engine,
        await engine.open([5]) as session,
    ):
        monkeypatch.setattr(Connection, "_send", say_nothing)
        with pytest.raises(EngineUnreachable, match=r"said nothing for 0\.3 s"), session.while_alive():
            await anyio.sleep_forever()


async def test_limits_of_the_server_and_of_the_engine_here(tokenizer: Any, packed: dict[str, bytes]) -> None:
    async with served_here(FakeEngine(tokenizer), packed, Limits(max_streams_per_client=2)) as served:
        async with RemoteEngine(served.url) as engine, await engine.open([5]), await engine.open([5]):
            with pytest.raises(CapacityError, match="this client has 2 streams"):
                await engine.open([5])
            with pytest.raises(CapacityError):
                async with RemoteEngine(served.url):
                    pass
        async with RemoteEngine(served.url, max_sessions=1) as engine, await engine.open([5]):
            with pytest.raises(CapacityError, match="max_sessions=1"):
                await engine.open([5])
    async with (
        served_here(FakeEngine(tokenizer, max_sessions=1), packed) as served,
        RemoteEngine(served.url) as engine,
        await engine.open([5]),
    ):
        with pytest.raises(CapacityError, match="max_sessions=1"):
            await engine.open([5])
        assert engine.num_sessions == 1


async def test_a_key_is_asked_for_as_vllm_asks(tokenizer: Any, packed: dict[str, bytes]) -> None:
    async with served_here(FakeEngine(tokenizer), packed, keys=(API_KEY, "other")) as served:
        for wrong in (None, "wrong"):
            with pytest.raises(EngineStartError, match="wants another API key"):
                async with RemoteEngine(served.url, api_key=wrong):
                    pass
        for right in (API_KEY, "other"):
            async with RemoteEngine(served.url, api_key=right) as engine, await engine.open([5]) as session:
                assert len(await collect(session, [6])) == 8


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by itself; key and certificate in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path


async def test_over_tls_a_certificate_is_checked(tokenizer: Any, packed: dict[str, bytes], certificate: Path) -> None:
    async with served_here(FakeEngine(tokenizer), packed, certificate=certificate) as served:
        with pytest.raises(EngineStartError, match="certificate verify failed"):
            async with RemoteEngine(served.url):
                pass
        trusting = ssl.create_default_context(cafile=certificate)
        async with RemoteEngine(served.url, ssl=trusting) as engine, await engine.open([5]) as session:
            assert len(await collect(session, [6])) == 8


async def test_a_page_of_another_origin_and_another_version_are_turned_away(here: Served) -> None:
    url = here.url.replace("http", "ws") + "/v1/stream"
    for options in ({"origin": "https://evil.example"}, {"subprotocols": ["stream2llm.v9"]}):
        with pytest.raises(InvalidStatus, match="403"):
            await connect(url, **options)
    async with connect(url, origin="https://app.example", subprotocols=["stream2llm.v9", "stream2llm.v1"]) as found:  # type: ignore[arg-type, list-item]
        assert found.subprotocol == "stream2llm.v1"
    async with connect(url) as found:
        assert found.subprotocol is None


@pytest.mark.parametrize(
    ("url", "said"), [("http://127.0.0.1:9", "cannot be reached"), ("http://[::1]:9", "cannot be reached")]
)
async def test_a_server_that_is_not_there(url: str, said: str) -> None:
    with pytest.raises(EngineStartError, match=said):
        async with RemoteEngine(url):
            pass


async def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    async def say_nothing(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with serve(say_nothing, "127.0.0.1", 0, subprotocols=[Subprotocol("stream2llm.v1")]) as mute:
        port = mute.sockets[0].getsockname()[1]
        with pytest.raises(EngineStartError, match="does not answer"):
            async with RemoteEngine(f"http://127.0.0.1:{port}", connect_timeout_s=0.2):
                pass


async def test_a_server_without_streams_is_named_as_such(here: Served) -> None:
    with pytest.raises(EngineStartError, match="refuses the connection"):
        async with RemoteEngine(here.url + "/elsewhere"):
            pass


async def test_an_engine_is_used_between_open_and_close_and_once(here: Served) -> None:
    engine = RemoteEngine(here.url)
    for use in (lambda: engine.tokenizer, lambda: engine.max_model_len):
        with pytest.raises(LifecycleError, match="not opened yet"):
            use()
    async with engine:
        with pytest.raises(LifecycleError, match="opened once"):
            await engine.__aenter__()
    with pytest.raises(InvalidInputError, match="max_sessions"):
        RemoteEngine(here.url, max_sessions=0)
    with pytest.raises(InvalidInputError, match="ssl= is for https"):
        RemoteEngine(here.url, ssl=ssl.create_default_context())


@pytest.mark.parametrize(
    ("sampling", "said"),
    [({"temprature": 1}, "temprature"), ({"temperature": "hot"}, "temperature"), ({"extra_args": {"a": 1}}, "extra_args")],
)
async def test_sampling_that_cannot_be_sent_is_refused_here(here: Served, sampling: Any, said: str) -> None:
    async with RemoteEngine(here.url) as engine, await engine.open([5]) as session:
        with pytest.raises(InvalidInputError, match=said):
            await session.finish([6], sampling)


def test_sampling_may_be_vllms_own() -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from stream2llm_rag.serve.stream import to_sampling

    params = SamplingParams(temperature=0, max_tokens=5, stop=["x"], structured_outputs=StructuredOutputsParams(choice=["a"]))
    given = to_sampling(params).given()
    assert (given["temperature"], given["max_tokens"], given["stop"]) == (0, 5, ["x"])
    assert given["structured_outputs"]["choice"] == ["a"]
    again = SamplingParams(**{**given, "structured_outputs": StructuredOutputsParams(**given["structured_outputs"])})
    assert again.temperature == params.temperature
    with pytest.raises(InvalidInputError, match="cannot be sent"):
        to_sampling(SamplingParams(n=2))


class TestTheTokenizer:
    def test_encodes_prompts_as_that_of_the_server(self, tokenizer: Any, packed: dict[str, bytes]) -> None:
        there, here = PromptTemplate(tokenizer), PromptTemplate(unpack(packed, "tiny"))
        for template in (there, here):
            assert template is not None
        prompts = [t.open("How <|eot_id|>?", max_prompt_tokens=4000) for t in (there, here)]
        for prompt in prompts:
            prompt.apply(Append((Document("A page.\n" * 50, "https://a.example", title="A <|eot_id|>"),)))
        assert prompts[0].context_ids == prompts[1].context_ids
        assert prompts[0].suffix_ids == prompts[1].suffix_ids

    def test_has_the_name_of_the_model_and_the_template_of_the_server(self, tokenizer: Any) -> None:
        template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        found = unpack(pack(tokenizer, template), "tiny")
        assert (found.name_or_path, found.chat_template) == ("tiny", template)
        assert tokenizer.chat_template != template

    def test_of_another_kind_is_not_sent_and_has_to_be_passed(self) -> None:
        assert pack(object()) is None
        with pytest.raises(UnsupportedError, match="tokenizer="):
            unpack(None, "tiny")

    def test_cannot_write_elsewhere_nor_name_code_to_run(self, packed: dict[str, bytes], tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        found = unpack({**packed, f"../../../../../../{outside}": b"x", str(outside): b"x"}, "tiny")
        assert not outside.exists()
        assert found.encode("a")
        assert b"auto_map" not in packed["tokenizer_config.json"]

    async def test_of_the_caller_is_used_instead(self, here: Served, tokenizer: Any) -> None:
        async with RemoteEngine(here.url, tokenizer=tokenizer) as engine:
            assert engine.tokenizer is tokenizer


def test_an_engine_is_what_the_pipeline_asks_for() -> None:
    engine: Engine = RemoteEngine("http://127.0.0.1:8000")  # mypy compares the two
    assert engine is not None


async def test_both_frameworks_answer_over_a_served_engine_as_over_a_local_one(here: Served, tokenizer: Any) -> None:
    from langchain_core.messages import HumanMessage

    from stream2llm_rag.integrations.langchain import ChatStream2LLM, StreamingRAGRunnable
    from stream2llm_rag.integrations.llama_index import StreamingRAGQueryEngine

    async def ask(engine: Any) -> list[str]:
        async with BackgroundEngine(engine) as background:
            chat = await ChatStream2LLM(engine=background, temperature=0).ainvoke([HumanMessage("Hello")])
            fused = await StreamingRAGRunnable(engine=background, retriever=RETRIEVER).ainvoke("How?")
            queried = await StreamingRAGQueryEngine(background, RETRIEVER).aquery("How?")
            return [chat.text, fused.text, str(queried)]

    assert await ask(RemoteEngine(here.url)) == await ask(FakeEngine(tokenizer))


async def test_a_client_needs_neither_vllm_nor_torch(here: Served) -> None:
    code = f"""
        import asyncio, sys
        sys.modules["vllm"] = sys.modules["torch"] = None
        from stream2llm_rag import StreamingRAG
        from stream2llm_rag.retrievers.base import InMemoryRetriever
        from stream2llm_rag.documents import Document
        from stream2llm_rag.serve import RemoteEngine
        async def main():
            async with RemoteEngine({here.url!r}) as engine:
                retriever = InMemoryRetriever.from_documents([Document("A page.", "https://a.example")])
                print(len((await StreamingRAG(engine, retriever).answer("How?")).token_ids))
        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(code), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert out.decode().strip() == "8", err.decode()


async def test_a_message_beyond_any_limit_ends_its_connection_alone(here: Served) -> None:
    url = here.url.replace("http", "ws") + "/v1/stream"
    async with RemoteEngine(here.url) as engine, await engine.open([5]) as session:
        async with connect(url, compression=None) as connection:
            await connection.send('{"type": "open", "text": "' + "a" * 5 * 2**20 + '"}')
            reply = decode_server(await connection.recv())
            assert isinstance(reply, Error)
            assert reply.code == "message_too_large"
        async with connect(url, compression=None) as connection:
            with suppress(ConnectionClosed):
                await connection.send("a" * 17 * 2**20)
            with pytest.raises(ConnectionClosed, match="1009"):
                await connection.recv()
        assert len(await collect(session, [6])) == 8


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.text(max_size=50) | st.binary(max_size=50), min_size=1, max_size=5))
async def test_a_server_that_was_sent_noise_serves_the_next(here: Served, frames: list[str | bytes]) -> None:
    async with connect(here.url.replace("http", "ws") + "/v1/stream") as connection:
        for frame in frames:
            with suppress(ConnectionClosed):
                await connection.send(frame)
        reply = decode_server(await connection.recv())
        assert isinstance(reply, Error)
        assert reply.code == "bad_message"
    async with RemoteEngine(here.url, tokenizer=here.engine.tokenizer) as engine, await engine.open([5]) as session:
        assert len(await collect(session, [6])) == 8

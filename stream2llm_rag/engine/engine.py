"""The engine: stock vLLM with a scheduler of ours, under ``async with``."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stream2llm_rag.engine.cost_model import Preemption
from stream2llm_rag.engine.feedback import EngineCounters, FeedbackHub, StepRecord
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.engine.policy import DEFAULT_POLICY, make_policy
from stream2llm_rag.engine.roles import Role, connector_fields, side_by_side, side_channel
from stream2llm_rag.engine.session import OutputDelta, Session, TokenIds
from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.engine.starter import Starter
from stream2llm_rag.engine.swap.choice import check_mode
from stream2llm_rag.errors import (
    CapacityError,
    EngineStartError,
    InvalidInputError,
    LifecycleError,
    MissingExtraError,
    Stream2LLMError,
)
from stream2llm_rag.main_guard import refuse_unguarded_start
from stream2llm_rag.shielding import run_shielded

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from stream2llm_rag.engine.wire import VllmWire

# One KV group, also for models that mix sliding windows with full attention: several would draw on one pool, each with a
# table of its own, and truncation is safe in full attention alone.
_DEFAULT_ENGINE_ARGS = {"disable_log_stats": True, "disable_hybrid_kv_cache_manager": True}

# vLLM kills its core after five seconds by default, while that still waits for its workers; their shared memory then leaks.
_SHUTDOWN_TIMEOUT_S = 30.0

_SCHEDULERS = {
    False: "stream2llm_rag.engine.scheduler.StreamingScheduler",
    True: "stream2llm_rag.engine.scheduler.AsyncStreamingScheduler",
}


@dataclass(frozen=True, slots=True)
class EngineStats:
    """``num_sessions`` are open in this process; ``cores`` has the counters of each engine core, just one as a rule."""

    num_sessions: int
    cores: tuple[EngineCounters, ...]


class Stream2LLMEngine:
    """A vLLM engine whose requests can stream their context in.

    ``model`` and any further keyword are vLLM's engine arguments (``AsyncEngineArgs``): ``tensor_parallel_size``,
    ``max_model_len``, ``dtype`` and so on. ``policy`` names the scheduling policy, ``max_sessions`` bounds the sessions open
    at once. ``host_kv_gib`` GiB of host memory (for each engine core) hold KV that others took the place of, until its request
    runs again. ``preempt`` says when: ``"auto"`` where that is cheaper than to compute it again, ``"swap"`` always,
    ``"recompute"`` never. ``role``, ``"prefill"`` or ``"decode"``, makes it one half of a :class:`DisaggregatedEngine`, with
    vLLM's ``kv_transfer_config`` where that is not to be NIXL's.

    Used as ``async with Stream2LLMEngine(model) as engine``. Starting takes from 20 seconds to minutes and does not block the
    event loop. Leaving the block aborts what is open and ends vLLM's processes; so does Ctrl-C, and the death of this process.
    Raises :class:`EngineStartError` when the engine cannot start, :class:`UnsupportedError` when vLLM's version or the model
    cannot stream.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        policy: str = DEFAULT_POLICY,
        max_sessions: int = 1024,
        host_kv_gib: float = 0.0,
        preempt: str = Preemption.AUTO,
        role: str | None = None,
        **engine_args: Any,
    ) -> None:
        make_policy(policy)
        check_mode(preempt)
        if not 0 <= host_kv_gib < math.inf:
            raise InvalidInputError(
                f"host_kv_gib must be 0 or more, got {host_kv_gib}. Write how many GiB of host memory to use."
            )
        if max_sessions < 1:
            raise InvalidInputError(f"max_sessions must be at least 1, got {max_sessions}.")
        _refuse_what_is_taken(engine_args, has_connector=role is None and host_kv_gib > 0)
        self.role = None if role is None else Role.named(role)
        if self.role is not None:
            engine_args["kv_transfer_config"] = connector_fields(self.role, engine_args.get("kv_transfer_config"))
        self._model = str(model)
        self._engine_args = engine_args
        self._host_kv_gib = host_kv_gib
        self._settings = CoreSettings(secrets.token_hex(32), policy, preempt=str(preempt))
        self._max_sessions = max_sessions
        self._hub = FeedbackHub()
        self._lifeline = Lifeline()
        self._sessions: set[Session] = set()
        self._state = "not opened yet"
        self._starter = Starter()
        self._exports = ExitStack()
        self._llm: AsyncLLM | None = None
        self._wire: VllmWire | None = None

    async def __aenter__(self) -> Self:
        if self._state != "not opened yet":
            raise LifecycleError(f"this engine is {self._state}. Make a new one: an engine is opened once.")
        refuse_unguarded_start()
        self._refuse_missing_model()
        self._state = "starting"
        try:
            await self._starter.run(self._start)
            self._connect()
        except BaseException as error:
            self._state = "closed"
            await run_shielded(self._stop())
            if isinstance(error, Exception) and not isinstance(error, Stream2LLMError):
                raise EngineStartError(f"vLLM could not start {self._model!r}: {error}") from error
            raise
        self._state = "open"
        return self

    def _connect(self) -> None:
        """Join front end and core: records and outputs flow from here on."""
        from stream2llm_rag.engine.metrics import exported
        from stream2llm_rag.engine.wire import VllmWire

        assert self._llm is not None
        self._exports.enter_context(exported(self._llm.model_config.served_model_name, self._hub))
        self._wire = VllmWire(self._llm, self._settings.secret, self._hub, self._lifeline)
        self._llm._run_output_handler()  # records must flow before the first finish
        self._llm.output_handler.add_done_callback(self._output_ended)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Abort open sessions and end vLLM's processes, also when cancelled meanwhile. Calling it again does nothing."""
        if self._state != "open":
            return
        self._state = "closed"
        await run_shielded(self._close())

    async def _close(self) -> None:
        try:
            for session in list(self._sessions):
                await session.abort()
        finally:
            self._lifeline.close()
            await self._stop()

    @property
    def llm(self) -> AsyncLLM:
        """vLLM's own engine underneath, for what vLLM builds on one, such as its OpenAI server."""
        return self._running()

    @property
    def wire(self) -> VllmWire:
        """The way of sessions to the engine core."""
        self._running()
        assert self._wire is not None
        return self._wire

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, as vLLM loaded it."""
        return self._running().get_tokenizer()

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return int(self._running().model_config.max_model_len)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return int(self._running().model_config.get_vocab_size())

    async def open(
        self,
        prefix: TokenIds = (),
        *,
        on_record: Callable[[StepRecord], None] | None = None,
        cache_salt: str | None = None,
        lora_request: Any = None,
    ) -> Session:
        """Open a streaming request that starts with ``prefix``; use it under ``async with``.

        ``on_record`` is called with each thing the engine core did for it, soon after the step. ``cache_salt`` keeps its KV
        apart from that of other salts in the prefix cache; ``lora_request`` is vLLM's. Raises :class:`CapacityError` when
        ``max_sessions`` are open.
        """
        self._running()
        assert self._wire is not None
        if len(self._sessions) >= self._max_sessions:
            raise CapacityError(
                f"{len(self._sessions)} sessions are open, the limit is max_sessions={self._max_sessions}. "
                "Try again when some have ended."
            )
        session = Session(
            self._wire, on_close=self._sessions.discard, on_record=on_record, cache_salt=cache_salt, lora_request=lora_request
        )
        self._sessions.add(session)
        self.listen(session)
        return await session.start(prefix)

    def listen(self, session: Session) -> None:
        """Hand the session what the engine core does for it, until it is dropped."""
        self._hub.listen(session.request_id, session.take_record)

    def generate(
        self, prompt: str | TokenIds, sampling: Mapping[str, Any] | SamplingParams | None = None
    ) -> AsyncIterator[OutputDelta]:
        """Answer a prompt that is complete: an ordinary vLLM request, beside the streaming ones."""
        return self.wire.generate(prompt, sampling or {})

    async def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes. Returns False when requests still hold KV and nothing was forgotten."""
        llm = self._running()
        with self._lifeline.held():
            return bool(await llm.reset_prefix_cache())

    async def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of each worker, by its name, as of vLLM's ``worker_extension_cls``. Returns what each of them did."""
        llm = self._running()
        with self._lifeline.held():
            return list(await llm.collective_rpc(method, args=args))

    def stats(self) -> EngineStats:
        """Counters as of the last step of each engine core."""
        return EngineStats(len(self._sessions), tuple(self._hub.counters[index] for index in sorted(self._hub.counters)))

    def _running(self) -> AsyncLLM:
        if self._state != "open" or self._llm is None:
            raise LifecycleError(f"this engine is {self._state}. Use it inside: async with Stream2LLMEngine(...) as engine.")
        if self._llm.errored:  # its monitor thread can know before its output handler does
            self._lifeline.die()
        self._lifeline.check()
        return self._llm

    def _output_ended(self, output_handler: asyncio.Task[None]) -> None:
        """Without vLLM's output handler, which ends when a process of the engine does, nothing comes any more."""
        if self._state == "open":
            self._lifeline.die(None if output_handler.cancelled() else output_handler.exception())

    def _start(self) -> None:
        """Build vLLM's engine. Runs in the starter's thread, to its end even when the caller is cancelled."""
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise MissingExtraError("vLLM", "vllm") from error
        from stream2llm_rag.engine.metrics import feedback_logger
        from stream2llm_rag.engine.support import check_supported
        from stream2llm_rag.engine.surface import check_surface

        check_surface()
        args = AsyncEngineArgs(model=self._model, **{**_DEFAULT_ENGINE_ARGS, **self._engine_args})
        if self.role is not None or self._host_kv_gib:
            args.kv_transfer_config = self._connector()
        with self._settings.in_environment(), self._side_channel(args):
            config = self._configure(args)
            check_supported(config, has_known_connector=self.role is not None or bool(self._host_kv_gib))
            config.scheduler_config.scheduler_cls = _SCHEDULERS[bool(config.scheduler_config.async_scheduling)]
            self._llm = AsyncLLM.from_vllm_config(
                config,
                stat_loggers=[feedback_logger(self._hub)],
                enable_log_requests=args.enable_log_requests,
                aggregate_engine_logging=args.aggregate_engine_logging,
                disable_log_stats=args.disable_log_stats,
            )

    def _configure(self, args: AsyncEngineArgs) -> VllmConfig:
        return args.create_engine_config()

    def _connector(self) -> KVTransferConfig:
        """What carries KV away: to the other engine, to host memory, or to both."""
        from vllm.config import KVTransferConfig

        from stream2llm_rag.engine.swap.connector import swap_config

        if self.role is None:
            return swap_config(host_kv_gib=self._host_kv_gib)
        fields = self._engine_args["kv_transfer_config"]
        if self._host_kv_gib:
            fields = side_by_side(fields, asdict(swap_config(host_kv_gib=self._host_kv_gib)))
        return KVTransferConfig(**fields)

    def _side_channel(self, args: AsyncEngineArgs) -> AbstractContextManager[None]:
        return nullcontext() if self.role is None else side_channel(args.data_parallel_size)

    async def _stop(self) -> None:
        self._exports.close()
        llm, self._llm, self._wire = self._llm, None, None
        try:
            if llm is not None and llm.output_handler is not None:  # else it logs the core's orderly end as a crash
                llm.output_handler.cancel()
                await asyncio.wait([llm.output_handler])
        finally:  # also where the event loop itself ends, and cancels every task
            if llm is not None:
                await self._starter.run(partial(llm.shutdown, timeout=_SHUTDOWN_TIMEOUT_S))
            self._starter.close()

    def _refuse_missing_model(self) -> None:
        path = Path(self._model)
        if (path.is_absolute() or self._model.startswith(".")) and not path.exists():
            raise EngineStartError(
                f"there is no model at {self._model!r}. Pass a directory with a config.json, or a model's name."
            )


def _refuse_what_is_taken(engine_args: Mapping[str, Any], *, has_connector: bool) -> None:
    """Raise :class:`InvalidInputError` for engine arguments whose place is ours, or that would take such a place."""
    for taken in ("scheduler_cls", "speculative_config", "runner"):
        if engine_args.get(taken) is not None:
            raise InvalidInputError(f"{taken}={engine_args[taken]!r} cannot be combined with streaming. Leave it out.")
    if engine_args.get("kv_offloading_size") is not None:  # vLLM would replace any other connector by its own
        raise InvalidInputError(
            "kv_offloading_size= brings a KV connector that cannot stream. Leave it out; "
            "host_kv_gib= keeps KV in so many GiB of host memory."
        )
    if has_connector and engine_args.get("kv_transfer_config") is not None:
        raise InvalidInputError("host_kv_gib= brings a KV connector of its own. Leave out kv_transfer_config=.")

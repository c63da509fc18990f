"""What an engine tells its own processes, through their environment.

The environment, not ``VllmConfig.additional_config``: that is hashed into the key of vLLM's compile cache, and the secret
differs at every start.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from stream2llm_rag.engine.policy import DEFAULT_POLICY

ENGINE_VARIABLE = "STREAM2LLM_ENGINE"
_one_start_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """``secret`` proves that an operation comes from this engine's front end; ``policy`` names the scheduling policy.

    ``preempt`` says what becomes of a victim's KV where there is host memory for it (:mod:`stream2llm_rag.engine.swap.choice`).
    ``chaos`` is the probability that a step evicts somebody at random first: tests use it to reach every state.
    """

    secret: str = ""
    policy: str = DEFAULT_POLICY
    chaos: float = 0.0
    preempt: str = "auto"

    @classmethod
    def from_environment(cls) -> CoreSettings:
        """As the engine set them; without an engine of ours the defaults, under which every operation is refused."""
        text = os.environ.get(ENGINE_VARIABLE)
        return cls(**json.loads(text)) if text else cls()

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Children started inside inherit the settings. One engine of a process starts at a time."""
        with _one_start_at_a_time:
            before = os.environ.get(ENGINE_VARIABLE)
            os.environ[ENGINE_VARIABLE] = json.dumps(asdict(self))
            try:
                yield
            finally:
                if before is None:
                    del os.environ[ENGINE_VARIABLE]
                else:
                    os.environ[ENGINE_VARIABLE] = before

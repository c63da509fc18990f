"""The model that the demo runs, and what it needs of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stream2llm_rag.demo.settings import Settings
from stream2llm_rag.tiny_model import build_tiny_model

_TINY_ENGINE_ARGS = {
    "dtype": "float32",  # in which both ways give the same tokens for sure
    "enforce_eager": True,  # compiling would take longer than the demo
    "max_model_len": 16384,
    "kv_cache_memory_bytes": 2**30,  # 4 KiB a token: 21 prompts of 12,000 tokens
}


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """``name`` is a path or a name that vLLM knows, ``label`` what to call it. ``is_noise``: its weights are random."""

    name: str
    label: str
    settings: Settings
    is_noise: bool = False
    engine_args: Mapping[str, Any] = field(default_factory=dict)


def choose_model(name: str | None, settings: Settings) -> ChosenModel:
    """The model called ``name``; without a name a tiny random Llama, which is built at first use, in a few seconds.

    The tiny one is made to go on when it happens to end its answer, so that there is always as much to compare.
    """
    if name is not None:
        return ChosenModel(name, name, settings)
    sampling = {**settings.sampling, "ignore_eos": True}
    return ChosenModel(
        str(build_tiny_model()), "tiny random Llama", replace(settings, sampling=sampling), True, _TINY_ENGINE_ARGS
    )

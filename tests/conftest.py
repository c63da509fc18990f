from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Shared machines are slow at times, which is no property of the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

# Before vLLM is imported: small and quiet, and never a look at a model hub.
os.environ.update(
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)


@pytest.fixture(scope="session")
def model_path() -> Path:
    from stream2llm_rag.tiny_model import build_tiny_model

    return build_tiny_model()

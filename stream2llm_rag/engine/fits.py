"""Fitted costs on disk: what was measured once is there at the next start, for the same model on the same machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stream2llm_rag.cache_dir import default_cache_dir
from stream2llm_rag.engine.costs import Costs
from stream2llm_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FitKey:
    """All that the costs depend on. With another of any of these they have to be measured anew."""

    device: str
    model: str
    dtype: str
    kv_cache_dtype: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    enforce_eager: bool
    block_size: int
    attention_backend: str
    vllm: str

    @classmethod
    def of(cls, config: VllmConfig) -> Self:
        """The key of a running engine: in its core or a worker, where block size and device have been settled."""
        import vllm

        model, cache = config.model_config, config.cache_config
        return cls(
            device=_device_name(),
            model=str(model.model),
            dtype=str(model.dtype).removeprefix("torch."),
            kv_cache_dtype=str(cache.cache_dtype),
            tensor_parallel_size=int(config.parallel_config.tensor_parallel_size),
            pipeline_parallel_size=int(config.parallel_config.pipeline_parallel_size),
            enforce_eager=bool(model.enforce_eager),
            block_size=int(cache.block_size),
            attention_backend=_attention_backend(config),
            vllm=str(vllm.__version__),
        )

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Raises :class:`InvalidInputError` for anything but the fields and their values."""
        if not isinstance(stored, Mapping) or stored.keys() != {field.name for field in fields(cls)}:
            raise InvalidInputError(f"the key of a fit is {stored!r}. Write what calibrate writes.")
        return cls(**stored)

    @property
    def path(self) -> Path:
        """Where its fit is stored: below ``$STREAM2LLM_CACHE``, or else in the user's cache directory."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        words = re.sub(r"[^a-z0-9.]+", "-", f"{Path(self.model).name} {self.device}".lower()).strip("-")
        return default_cache_dir() / "calibration" / f"{words[:80]}-{digest[:16]}.json"


@dataclass(frozen=True, slots=True)
class StoredFit:
    """``errors`` are the median relative errors by what was measured, ``step``, ``swap_out`` and ``swap_in``."""

    key: FitKey
    costs: Costs
    errors: Mapping[str, float]
    measured_at: str

    def save(self) -> Path:
        """Store it, in the place of an earlier one. Raises :class:`InvalidInputError` where that cannot be done."""
        path = self.key.path
        stored = {
            "key": asdict(self.key),
            "costs": self.costs.to_dict(),
            "errors": dict(self.errors),
            "measured_at": self.measured_at,
        }
        scratch = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(stored, indent=2) + "\n", "utf-8")
            scratch.replace(path)
        except OSError as error:
            raise InvalidInputError(
                f"the fit cannot be stored in {path}: {error.strerror}. Name a folder that can be written in STREAM2LLM_CACHE."
            ) from error
        return path


def load_fit(key: FitKey) -> StoredFit | None:
    """What is stored for ``key``; None where nothing is. Raises :class:`InvalidInputError` for a file that is damaged."""
    path = key.path
    try:
        stored = json.loads(path.read_text("utf-8"))
        if FitKey.from_dict(stored["key"]) != key:
            raise InvalidInputError("it is of another model or machine.")
        return StoredFit(key, Costs.from_dict(stored["costs"]), stored["errors"], stored["measured_at"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"the stored fit {path} cannot be read: {error}. Delete it, and run calibrate again."
        ) from error


def load_costs(config: VllmConfig) -> Costs | None:
    """The stored costs of a running engine, None without. Never raises: an engine core can do without them."""
    try:
        fit = load_fit(FitKey.of(config))
    except Exception:
        logger.warning("No stored costs of swapping and recomputing: starting on a guess.", exc_info=True)
        return None
    return None if fit is None else fit.costs


def _device_name() -> str:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    return f"{os.cpu_count()} x {_processor()}"  # not those that this process is bound to: core and workers differ


def _processor() -> str:
    """As Linux calls it; ``platform.processor()`` is empty on most systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, "") or platform.processor() or platform.machine()


def _attention_backend(config: VllmConfig) -> str:
    """The one that vLLM selects for the model's layers, as in vllm/model_executor/layers/attention/attention.py."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.selector import get_attn_backend

    model = config.model_config
    with set_current_vllm_config(config):
        backend = get_attn_backend(
            model.get_head_size(), model.dtype, config.cache_config.cache_dtype, use_mla=bool(model.use_mla)
        )
    return str(backend.get_name())

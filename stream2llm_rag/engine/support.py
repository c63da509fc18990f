"""Which of vLLM's configurations can stream, decided before any process starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream2llm_rag.errors import UnsupportedError

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_supported(config: VllmConfig, *, has_known_connector: bool = False) -> None:
    """Raise :class:`UnsupportedError` for a configuration under which a growing prompt cannot be computed piece by piece.

    ``has_known_connector``: its KV connector is the engine's own, or belongs to the engine's role.
    """
    reason = _reason_against(config)
    if reason is None and config.kv_transfer_config is not None and not has_known_connector:
        reason = (
            "a KV connector needs to know its engine's part. Pass role='prefill' or role='decode', or no kv_transfer_config=."
        )
    if reason is not None:
        raise UnsupportedError(f"{config.model_config.model!r} cannot stream: {reason}")


def _reason_against(config: VllmConfig) -> str | None:
    model = config.model_config
    if model.runner_type != "generate":
        return f"it runs as a {model.runner_type} model and generates no text. Pass a generative model; leave runner= out."
    if model.is_encoder_decoder:
        return "its encoder reads a prompt as a whole. Pass a decoder-only model."
    if model.is_attention_free or model.is_hybrid:
        return (
            "its layers keep one running state instead of KV for each token, and a change of context cannot take a part of it "
            "back. Pass a model whose layers all use attention."
        )
    if config.speculative_config is not None:
        return "speculative decoding is not supported. Leave out speculative_config= and the spec_... arguments."
    if config.parallel_config.data_parallel_backend == "ray":
        return "its engine cores would not get the settings of this process. Leave out data_parallel_backend=, or pass 'mp'."
    return None

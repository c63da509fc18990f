"""Models of a given shape without weights or a network: vLLM makes the weights up (``load_format="dummy"``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
"""Llama-3.1-8B, as its ``config.json`` has it."""
WEIGHT_BYTES = 2 * 8_030_261_248
"""Its parameters, two bytes each."""
KV_BYTES_PER_TOKEN = 2 * 2 * 32 * 8 * 128
"""Keys and values, two bytes each, of 32 layers with 8 heads of 128."""

SMALL: dict[str, Any] = {
    **LLAMA_8B,
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "bos_token_id": 0,
    "eos_token_id": 3,
    "torch_dtype": "float32",
}
"""The same architecture, small enough for a CPU."""


def write_model(directory: Path, shape: dict[str, Any]) -> Path:
    """Write what vLLM needs to start with a model of ``shape``: a configuration, no tokenizer and no weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape, indent=2) + "\n", "utf-8")
    return directory

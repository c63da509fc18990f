"""Models of a given shape without weights or a network: vLLM makes the weights up (``load_format="dummy"``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stream2llm_rag.simulation.model import LLAMA_8B

WEIGHT_BYTES = 2 * 8_030_261_248
"""Llama-3.1-8B's parameters, two bytes each."""

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

"""A tokenizer as files that travel, and from them again. What is loaded runs no code of theirs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream2llm_rag.errors import UnsupportedError

_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_FILES = ("tokenizer.json", _CONFIG, "special_tokens_map.json", "added_tokens.json", _TEMPLATE)


def pack(tokenizer: Any, chat_template: str | None = None) -> dict[str, bytes] | None:
    """The files of a fast Hugging Face tokenizer, with ``chat_template`` in place of its own; None for another kind."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {name: path.read_bytes() for name in _FILES if (path := Path(folder, name)).exists()}
    config = json.loads(files[_CONFIG])
    # vLLM serves a subclass of its own; and no file may name code for a client to load.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("auto_map", None)
    if chat_template is not None:
        config.pop("chat_template", None)
        files[_TEMPLATE] = chat_template.encode()
    return {**files, _CONFIG: json.dumps(config).encode()}


def unpack(files: Mapping[str, bytes] | None, name: str) -> Any:
    """The tokenizer of ``files``. UnsupportedError where they hold none."""
    if not files or "tokenizer.json" not in files:
        raise UnsupportedError(
            f"the server sends no tokenizer for {name!r}, as it is no fast Hugging Face one. "
            "Pass RemoteEngine(..., tokenizer=) the model's own."
        )
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        for file in _FILES:
            if file in files:
                Path(folder, file).write_bytes(files[file])
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.name_or_path = name
    return tokenizer

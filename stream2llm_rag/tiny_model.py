"""A tiny random Llama with its own tokenizer, for demos and tests on machines without a GPU or a model hub.

Its answers are noise. Its prefill time, its memory and the equality of its tokens are real.
"""

from __future__ import annotations

import argparse
import asyncio.tasks
import collections
import email.message
import hashlib
import inspect
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import typing
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from stream2llm_rag.cache_dir import default_cache_dir

# Llama-3's chat format: its special tokens are what a hostile document would try to smuggle in.
_SPECIAL_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>")
_CHAT_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_CONFIG: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
# With the usual initialisation nearly every one-token change of the context leaves the greedy answer as it was, and a wrong
# KV block would go unnoticed. Wider weights and a louder attention make five in six such changes show within six tokens.
_INITIALIZER_RANGE = 0.12
_ATTENTION_GAIN = 4.0
_SEED = 20260421


def build_tiny_model(directory: Path | None = None) -> Path:
    """Build the model, or find it built, and return its directory, to be passed as a model name. Takes a few seconds at first.

    It is written to a temporary directory and renamed when whole, so that two processes may build it at once.
    """
    recipe = json.dumps(
        [sys.version_info[:3], _CONFIG, _SPECIAL_TOKENS, _CHAT_TEMPLATE, _INITIALIZER_RANGE, _ATTENTION_GAIN, _SEED],
        sort_keys=True,
    )
    name = f"tiny-llama-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    target = (directory or default_cache_dir() / "models") / name
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        whole = Path(scratch) / name
        _save_tokenizer(whole)
        _save_weights(whole)
        try:
            whole.rename(target)
        except OSError:
            if not (target / "config.json").exists():
                raise
    return target


def _save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_CONFIG["vocab_size"],
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_english(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_SPECIAL_TOKENS[0], eos_token=_SPECIAL_TOKENS[3], pad_token=_SPECIAL_TOKENS[4]
    )
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(directory)


def _english() -> Iterator[str]:
    """Text to train the tokenizer on that every Python carries: sources and docstrings of its standard library."""
    for module in (argparse, asyncio.tasks, collections, email.message, logging, pathlib, subprocess, typing):
        lines = (line for line in inspect.getsource(module).splitlines() if line.strip())
        yield from islice(lines, 400)


def _save_weights(directory: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **_CONFIG, initializer_range=_INITIALIZER_RANGE, bos_token_id=0, eos_token_id=3, pad_token_id=4, dtype="float32"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(_ATTENTION_GAIN)
            layer.self_attn.o_proj.weight.mul_(_ATTENTION_GAIN)
    model.save_pretrained(directory)

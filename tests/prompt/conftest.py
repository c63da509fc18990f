"""A small byte-level BPE tokenizer and chat templates of the kinds that models come with."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pydoc_data.topics import topics

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"),
]
RESERVED_TOKEN = "<|reserved_special_token_7|>"  # special, but none of those that a tokenizer gives a name
WORD_TOKEN = "ENDTURN"  # special and without a name as well, and nothing in its look says so
TOOL_TOKEN = "<think>"  # added, steers the model, and yet not flagged special

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM_ROLE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SYSTEM_IN_LAST_USER_MESSAGE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}"
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}"
    "{{ m['content'] }}[/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
PLAIN_TEXT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% else %}{{ m['role'] | capitalize }}: "
    "{{ m['content'] | trim }}{% endif %}{{ '\n\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
ONE_LINE = (
    "A chat between a curious person and a helpful assistant who gives detailed and polite answers. "
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {{ m['content'] }} {% endif %}{% endfor %}"
    "ASSISTANT:"
)
ESCAPING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | e }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
CONTENT_IN_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant{{ '\n' }}"
)
CHAT_TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "no_system_role": NO_SYSTEM_ROLE,
    "system_in_last_user_message": SYSTEM_IN_LAST_USER_MESSAGE,
    "plain_text": PLAIN_TEXT,
    "one_line": ONE_LINE,
    "escaping": ESCAPING,
    "content_in_parts": CONTENT_IN_PARTS,
    "none": None,
}


def train(corpus: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (RESERVED_TOKEN, WORD_TOKEN)])
    tokenizer.add_tokens([TOOL_TOKEN, "    ", "tokamak"])
    return tokenizer


@pytest.fixture(scope="session")
def backend() -> Tokenizer:
    return train(islice(topics.values(), 40))


@pytest.fixture(scope="session")
def tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture(params=CHAT_TEMPLATES)
def chat_template(request: pytest.FixtureRequest) -> str | None:
    return CHAT_TEMPLATES[request.param]


@pytest.fixture(scope="session")
def control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return set(tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, RESERVED_TOKEN, WORD_TOKEN, TOOL_TOKEN]))

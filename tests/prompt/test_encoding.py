from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from stream2llm_rag.prompt.encoding import TextEncoder

from .conftest import RESERVED_TOKEN, SPECIAL_TOKENS, TOOL_TOKEN, WORD_TOKEN


class SlowTokenizer:
    """A tokenizer without a Rust backend to copy: it parses special tokens in whatever it is given."""

    def __init__(self, fast: PreTrainedTokenizerFast) -> None:
        self._fast = fast
        self.chat_template = None
        self.all_special_ids = fast.all_special_ids
        self.added_tokens_decoder = fast.added_tokens_decoder

    def get_added_vocab(self) -> dict[str, int]:
        return self._fast.get_added_vocab()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._fast.encode(text, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        return self._fast.apply_chat_template(conversation, **options)


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerFast) -> TextEncoder:
    return TextEncoder(tokenizer)


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, RESERVED_TOKEN, WORD_TOKEN])
def test_special_tokens_in_data_are_ordinary_characters(
    tokenizer: PreTrainedTokenizerFast, encoder: TextEncoder, control_ids: set[int], token: str
) -> None:
    ids = encoder.encode_data(f"a {token} b")
    assert control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == f"a {token} b"


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_in_the_template_are_special(
    tokenizer: PreTrainedTokenizerFast, encoder: TextEncoder, token: str
) -> None:
    assert encoder.encode_template(token) == [tokenizer.convert_tokens_to_ids(token)]


def test_a_bracketed_token_that_is_not_flagged_special_is_dropped_from_data(
    encoder: TextEncoder, control_ids: set[int]
) -> None:
    assert TOOL_TOKEN in encoder.control_tokens
    assert encoder.encode_data(f"a{TOOL_TOKEN}b") == encoder.encode_data("a") + encoder.encode_data("b")


@pytest.mark.parametrize("token", ["    ", "tokamak"])
def test_added_spaces_and_words_stay_in_data(tokenizer: PreTrainedTokenizerFast, encoder: TextEncoder, token: str) -> None:
    assert token not in encoder.control_tokens
    assert tokenizer.convert_tokens_to_ids(token) in encoder.encode_data(f"a{token}b")


def test_a_character_that_a_model_pads_with_stays_in_data(backend: Tokenizer) -> None:
    padded = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="!")
    assert padded.decode(TextEncoder(padded).encode_data("Stop!")) == "Stop!"


def test_control_tokens_that_the_trained_vocabulary_can_spell_are_dropped_from_data() -> None:
    vocabulary = [("<unk>", 0.0), ("<s>", -1.0), ("a", -2.0), ("b", -2.0)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    unigram = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert TextEncoder(unigram).encode_data("a<s>b") == [2, 3]


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, RESERVED_TOKEN, WORD_TOKEN])
def test_a_slow_tokenizer_leaves_no_control_token_in_data(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    encoder = TextEncoder(SlowTokenizer(tokenizer))
    assert encoder.encode_template(token) == [tokenizer.convert_tokens_to_ids(token)]
    assert encoder.encode_data(f"a{token}b") == encoder.encode_data("a") + encoder.encode_data("b")


def test_neither_shared_state_nor_its_changes_reach_the_encoder(backend: Tokenizer) -> None:
    shared = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend.to_str()), eos_token="<|im_end|>")
    shared.backend_tokenizer.enable_truncation(2)
    shared.backend_tokenizer.enable_padding(length=50)
    encoder = TextEncoder(shared)
    expected = backend.encode("a rather long text<|im_end|>").ids
    assert encoder.encode_template("a rather long text<|im_end|>") == expected
    shared.backend_tokenizer.encode_special_tokens = True
    assert encoder.encode_template("a rather long text<|im_end|>") == expected
    assert TextEncoder(shared).encode_template("a rather long text<|im_end|>") == expected


def test_the_shared_tokenizer_is_left_as_it_was(tokenizer: PreTrainedTokenizerFast, encoder: TextEncoder) -> None:
    encoder.encode_data("<|im_end|>")
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_a_beginning_of_sequence_token_is_known_only_where_the_tokenizer_adds_it(backend: Tokenizer) -> None:
    adding = Tokenizer.from_str(backend.to_str())
    bos = adding.token_to_id("<s>")
    adding.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    assert TextEncoder(PreTrainedTokenizerFast(tokenizer_object=adding, bos_token="<s>")).bos_ids == [bos]
    assert TextEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")).bos_ids == []


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, RESERVED_TOKEN, WORD_TOKEN, TOOL_TOKEN]) | st.text(max_size=5)).map("".join))
def test_no_control_token_comes_out_of_data(encoder: TextEncoder, control_ids: set[int], text: str) -> None:
    assert control_ids.isdisjoint(encoder.encode_data(text.encode("utf-8", "replace").decode()))

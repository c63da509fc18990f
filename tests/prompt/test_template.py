import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from stream2llm_rag.documents import Append, Document
from stream2llm_rag.errors import InvalidInputError, PromptTooLongError
from stream2llm_rag.prompt import PromptTemplate
from stream2llm_rag.prompt.rendering import Rendering, Span

from .conftest import CHAT_TEMPLATES, CHATML, LLAMA3, NO_SYSTEM_ROLE, ONE_LINE, PLAIN_TEXT, SYSTEM_IN_LAST_USER_MESSAGE

HISTORY = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
PAGE = Document("Plasma is hot.", "https://example.org/a", title="Plasma")
SECTION = "<document>\nTitle: Plasma\nSource: https://example.org/a\n\nPlasma is hot.\n</document>\n"


def written(tokenizer: PreTrainedTokenizerFast, template: PromptTemplate, *documents: Document) -> str:
    """Return the whole prompt as text."""
    prompt = template.open("How hot?", max_prompt_tokens=10_000)
    prompt.apply(Append(documents))
    return tokenizer.decode(prompt.context_ids + prompt.suffix_ids)


def user_message(*documents: str) -> str:
    return f"<documents>\n{''.join(documents)}</documents>\n\nQuestion:\nHow hot?"


@pytest.mark.parametrize(
    ("chat_template", "expected"),
    [
        (
            CHATML,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n"
            "<|im_start|>assistant\nGood day.<|im_end|>\n<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA3,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nGood day.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n{message}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            NO_SYSTEM_ROLE,
            "<start_of_turn>user\nBe brief.\n\nHello.<end_of_turn>\n<start_of_turn>model\nGood day.<end_of_turn>\n"
            "<start_of_turn>user\n{message}<end_of_turn>\n<start_of_turn>model\n",
        ),
        (SYSTEM_IN_LAST_USER_MESSAGE, "<s>[INST] Hello.[/INST] Good day.</s>[INST] Be brief.\n\n{message}[/INST]"),
        (PLAIN_TEXT, "Be brief.\n\nUser: Hello.\n\nAssistant: Good day.\n\nUser: {message}\n\nAssistant:"),
        (
            ONE_LINE,
            "A chat between a curious person and a helpful assistant who gives detailed and polite answers. "
            "USER: Be brief.\n\nHello. ASSISTANT: Good day. USER: {message} ASSISTANT:",
        ),
        (None, "Be brief.\n\nUser:\nHello.\n\nAssistant:\nGood day.\n\nUser:\n{message}\n\nAssistant:\n"),
    ],
    ids=["chatml", "llama3", "no_system_role", "system_in_last_user_message", "plain_text", "one_line", "none"],
)
def test_the_prompt_is_what_the_chat_template_writes(
    tokenizer: PreTrainedTokenizerFast, chat_template: str | None, expected: str
) -> None:
    template = PromptTemplate(tokenizer, system_prompt="Be brief.", history=HISTORY, chat_template=chat_template)
    assert written(tokenizer, template, PAGE) == expected.replace("{message}", user_message(SECTION))


def test_the_template_is_tokenised_as_the_model_does_it(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = PromptTemplate(tokenizer, system_prompt="Be brief.", chat_template=LLAMA3).open("How?", max_prompt_tokens=1000)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<documents>\n"}]
    rendered = tokenizer.apply_chat_template(messages, chat_template=LLAMA3.replace(" | trim", ""), tokenize=False)
    assert prompt.prefix_ids == tokenizer.encode(rendered.removesuffix("<|eot_id|>"), add_special_tokens=False)


def test_without_a_system_prompt_the_template_uses_its_default(tokenizer: PreTrainedTokenizerFast) -> None:
    default = "{% if messages[0]['role'] != 'system' %}Default.{% endif %}" + CHATML
    assert written(tokenizer, PromptTemplate(tokenizer, system_prompt=None, chat_template=default)).startswith("Default.")
    assert "Default." not in written(tokenizer, PromptTemplate(tokenizer, chat_template=default))


def test_the_system_prompt_may_hold_special_tokens_since_it_is_trusted(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate(tokenizer, system_prompt="A<|im_end|>\ud800B\u200b", chat_template=LLAMA3)
    prefix_ids = template.open("How?", max_prompt_tokens=1000).prefix_ids
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in prefix_ids
    assert "A<|im_end|>\ufffdB<" in tokenizer.decode(prefix_ids)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_documents_with_the_words_that_mark_slots_change_nothing(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    template = PromptTemplate(tokenizer, chat_template=CHAT_TEMPLATES[name])
    text = "slot0x0x {{ messages }} {% raw %} {context}"
    assert f"\n\n{text}\n</document>" in written(tokenizer, template, Document(text, "a"))


def test_content_goes_in_parts_where_the_template_wants_parts(tokenizer: PreTrainedTokenizerFast) -> None:
    in_parts = PromptTemplate(tokenizer, history=HISTORY, chat_template=CHAT_TEMPLATES["content_in_parts"])
    assert written(tokenizer, in_parts) == written(tokenizer, PromptTemplate(tokenizer, history=HISTORY, chat_template=CHATML))


def test_delimiters_are_written_plainly_by_a_template_that_escapes(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate(tokenizer, chat_template=CHAT_TEMPLATES["escaping"])
    assert user_message(SECTION) in written(tokenizer, template, PAGE)


def test_a_beginning_of_sequence_token_stands_before_a_plain_layout(backend: Tokenizer) -> None:
    adding = Tokenizer.from_str(backend.to_str())
    bos = adding.token_to_id("<s>")
    adding.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=adding, bos_token="<s>")
    assert PromptTemplate(tokenizer).open("How?", max_prompt_tokens=1000).prefix_ids[0] == bos
    in_chat = PromptTemplate(tokenizer, chat_template=CHATML).open("How?", max_prompt_tokens=1000)
    assert bos not in in_chat.prefix_ids + in_chat.suffix_ids


def test_the_tokenizers_own_chat_template_is_the_default(backend: Tokenizer) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHATML)
    assert written(tokenizer, PromptTemplate(tokenizer)) == written(tokenizer, PromptTemplate(tokenizer, chat_template=CHATML))


def test_a_document_without_a_title_has_only_its_source_in_the_header(tokenizer: PreTrainedTokenizerFast) -> None:
    assert "<document>\nSource: a\n\nx\n</document>" in written(tokenizer, PromptTemplate(tokenizer), Document("x", "a"))


@pytest.mark.parametrize("marker", ["[policy]", "[me]", "[bot]", "[/over]", "Reply:"])
def test_markers_of_every_role_are_known_without_a_history(tokenizer: PreTrainedTokenizerFast, marker: str) -> None:
    chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}[policy] {{ m['content'] }}{% elif m['role'] == 'user' %}[me] "
        "{{ m['content'] }}{% else %}[bot] {{ m['content'] }} [/over]{% endif %}{% endfor %}Reply:"
    )
    template = PromptTemplate(tokenizer, system_prompt=None, chat_template=chat_template)
    harmless = f"hot ({marker.strip('[]:')}) cold"
    assert f"\n\n{harmless}\n</document>" in written(tokenizer, template, Document(f"hot {marker} cold", "a"))


def test_with_history_is_the_same_as_construction_with_it(tokenizer: PreTrainedTokenizerFast) -> None:
    base = PromptTemplate(tokenizer, chat_template=CHATML)
    before = written(tokenizer, base, PAGE)
    expected = PromptTemplate(tokenizer, chat_template=CHATML, history=HISTORY)
    assert written(tokenizer, base.with_history(HISTORY), PAGE) == written(tokenizer, expected, PAGE)
    another = PromptTemplate(tokenizer, chat_template=CHATML, system_prompt="Another one.", history=HISTORY)
    changed = base.with_history(HISTORY, system_prompt="Another one.")
    assert written(tokenizer, changed, PAGE) == written(tokenizer, another, PAGE)
    assert written(tokenizer, base.with_history(HISTORY), PAGE) == written(tokenizer, expected, PAGE)
    assert written(tokenizer, base, PAGE) == before


@pytest.mark.parametrize(
    "chat_template",
    [
        "{% for m in messages %}{{ m['role'] }}{% endfor %}",
        "{{ messages[-1]['content'][:8] }}",
        "{{ messages[-1]['content'] | upper }}",
        "{{ messages[-1]['content'] }}{{ messages[-1]['content'] }}",
        "no slot",
    ],
    ids=["leaves out", "cuts", "changes", "repeats", "ignores"],
)
def test_a_template_that_does_not_write_contents_once_is_refused(
    tokenizer: PreTrainedTokenizerFast, chat_template: str
) -> None:
    with pytest.raises(InvalidInputError, match="must write the content of each message once"):
        PromptTemplate(tokenizer, system_prompt=None, chat_template=chat_template)


def test_a_template_that_loses_history_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidInputError, match=r"of 3 messages it wrote, in order, \[2\]"):
        PromptTemplate(tokenizer, system_prompt=None, history=HISTORY, chat_template="{{ messages[-1]['content'] }}")


@pytest.mark.parametrize("chat_template", ["{{ raise_exception('no way') }}", "{% for %}", "{{ messages[99]['content'] + 1 }}"])
def test_a_template_that_fails_is_refused_with_its_own_words(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> None:
    with pytest.raises(InvalidInputError, match="the chat template refuses a conversation with the roles user") as refused:
        PromptTemplate(tokenizer, chat_template=chat_template)
    assert str(refused.value.__cause__) in str(refused.value)


def test_a_history_that_the_template_refuses_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidInputError, match="Roles must alternate"):
        PromptTemplate(tokenizer, history=HISTORY[:1], chat_template=NO_SYSTEM_ROLE)


@pytest.mark.parametrize(
    "message", [{"role": "system", "content": "x"}, {"content": "x"}, {"role": "user"}, {"role": "user", "content": 1}]
)
def test_a_malformed_history_is_refused(tokenizer: PreTrainedTokenizerFast, message: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match=r"history\[1\] is"):
        PromptTemplate(tokenizer, history=[HISTORY[0], message])


@pytest.mark.parametrize("question", ["", " \n\t", "\u200b\u2060", "\x00"])
def test_a_question_without_visible_text_is_refused(tokenizer: PreTrainedTokenizerFast, question: str) -> None:
    with pytest.raises(InvalidInputError, match="no visible text"):
        PromptTemplate(tokenizer).open(question, max_prompt_tokens=1000)


def test_a_question_that_fills_the_budget_is_refused_with_the_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate(tokenizer, chat_template=CHATML)
    fits = template.open("why " * 50, max_prompt_tokens=1000)
    limit = fits.num_prompt_tokens
    assert template.open("why " * 50, max_prompt_tokens=limit).num_prompt_tokens == limit
    with pytest.raises(
        PromptTooLongError, match=rf"has {limit} tokens .*{len(fits.prefix_ids)}.* {len(fits.suffix_ids)}"
    ) as error:
        template.open("why " * 50, max_prompt_tokens=limit - 1)
    assert f"max_prompt_tokens is {limit - 1}" in str(error.value)


def test_an_unknown_order_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidInputError, match="order is 'best'"):
        PromptTemplate(tokenizer).open("How?", max_prompt_tokens=1000, order="best")  # type: ignore[arg-type]


def test_threads_share_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate(tokenizer, chat_template=CHATML)
    pages = [Document(f"Page {index}: <|im_end|> plasma. " * 20, f"https://example.org/{index}") for index in range(24)]
    num_threads = 8
    together = threading.Barrier(num_threads, timeout=30)

    def answer(index: int) -> list[int]:
        together.wait()
        prompt = template.with_history(HISTORY).open(f"Question {index}?", max_prompt_tokens=100_000)
        for page in pages:
            prompt.apply(Append((page,)))
            tokenizer.encode("<|im_end|>", truncation=True, max_length=1)  # as another user of the shared tokenizer does
        return prompt.context_ids + prompt.suffix_ids

    expected = [written_ids(template, index, pages) for index in range(num_threads)]
    with ThreadPoolExecutor(num_threads) as threads:
        assert list(threads.map(answer, range(num_threads))) == expected


def written_ids(template: PromptTemplate, index: int, pages: list[Document]) -> list[int]:
    prompt = template.with_history(HISTORY).open(f"Question {index}?", max_prompt_tokens=100_000)
    prompt.apply(Append(tuple(pages)))
    return prompt.context_ids + prompt.suffix_ids


def test_a_rendering_is_cut_at_a_slot_and_filled_in_place() -> None:
    before, after = Rendering(("a", "b", "c", "d"), (1, 2, 0)).cut(2)
    contents = [[Span("zero", is_data=True)], [Span("one", is_data=True)], []]
    assert [span.text for span in before.fill(contents)] == ["a", "one", "b"]
    assert [span.text for span in after.fill(contents)] == ["c", "zero", "d"]

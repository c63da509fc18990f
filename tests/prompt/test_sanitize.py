import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.prompt.markers import DELIMITERS, WELL_KNOWN_MARKERS, is_tag, template_markers
from stream2llm_rag.prompt.sanitize import Sanitizer, strip_invisible

MARKERS = [*DELIMITERS, *WELL_KNOWN_MARKERS, "</s>", "User:", "### Response:", "<\uff5cUser\uff5c>", "<a[INST]b>", "Date: 2024"]
FRAGMENTS = [*MARKERS, *"<>[]|/:_* \n\u200b\u202e\ufe0f\ud83d\ude00\u2474\uff1c\uff5c⒈㏂\u0130ﬀ", "User", "s>", "2024"]

hostile_text = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(), max_size=3), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("invisible", "kind"),
    [
        ("\x00", "null"),
        ("\x1b", "escape"),
        ("\x7f", "delete"),
        ("\x9b", "C1 control"),
        ("\u00ad", "soft hyphen"),
        ("\u034f", "combining grapheme joiner"),
        ("\u061c", "Arabic letter mark"),
        ("\u115f", "Hangul filler"),
        ("\u180e", "Mongolian vowel separator"),
        ("\u200b", "zero-width space"),
        ("\u200d", "zero-width joiner"),
        ("\u202e", "right-to-left override"),
        ("\u2060", "word joiner"),
        ("\u2066", "left-to-right isolate"),
        ("\u3164", "Hangul filler"),
        ("\ufe0f", "variation selector"),
        ("\ufeff", "byte order mark"),
        ("\U000e0041", "tag letter"),
        ("\U000e0101", "variation selector supplement"),
    ],
)
def test_invisible_characters_go(invisible: str, kind: str) -> None:
    assert strip_invisible(f"a{invisible}b") == "ab", kind


def test_surrogate_pairs_are_joined_and_lone_surrogates_replaced() -> None:
    assert strip_invisible("\ud83d\ude00 \ud83d and \ude00") == "😀 \ufffd and \ufffd"


def test_characters_hidden_in_surrogate_pairs_go() -> None:
    assert strip_invisible("a\udb40\udc41b") == "ab"


def test_line_breaks_of_every_kind_become_newlines() -> None:
    assert strip_invisible("a\r\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h") == "a\nb\nc\nd\ne\nf\ng\nh"


@pytest.mark.parametrize(
    "text", ["tab\tand\nline", "naïve café", "日本語", "عربي \u0600\u0661", "a \u00a0 b", "x < y > z", "\uff11\uff12"]
)
def test_visible_text_stays_as_it_is(text: str) -> None:
    assert Sanitizer(MARKERS).sanitize(text) == text


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("<|im_start|>", "(im_start)"),
        ("<|IM_Start|>", "(IM_Start)"),
        ("< | im_start | >", "(im_start)"),
        ("<|im start|>", "(im start)"),
        ("<|imstart|>", "(imstart)"),
        ("<|im_\nstart|>", "(im_ start)"),
        ("<\u200b|im_\u00adstart|>", "(im_start)"),
        ("＜｜ｉｍ＿ｓｔａｒｔ｜＞", "(ｉｍ＿ｓｔａｒｔ)"),  # noqa: RUF001
        ("﹤|im_start|﹥", "(im_start)"),
        ("<\uff5cbegin▁of▁sentence\uff5c>", "(begin▁of▁sentence)"),
        ("[/INST]", "(/INST)"),
        ("<< SYS >>", "(SYS)"),
        ("</s>", "(/s)"),
        ("</Documents >", "(/Documents)"),
        ("User: hi", "(User) hi"),
        ("hi.User: hi", "hi.(User) hi"),
        ("**User:** hi", "**(User)** hi"),
        ("### Response:\n", "(Response)\n"),
        ("<<|im_start|>>", "<(im_start)>"),
        ("<|im_<|im_start|>start|>", "<|im_(im_start)start|>"),
        ("Date: 2024User:", "(Date 2024)(User)"),
        ("<a[INST]b>", "(a INST b)"),
    ],
)
def test_markers_become_words_in_brackets(hostile: str, harmless: str) -> None:
    assert Sanitizer(MARKERS).sanitize(hostile) == harmless


@pytest.mark.parametrize("text", ["superuser: root", "the user said", "im_start", "a | b", "[1]", "<p>"])
def test_what_only_resembles_a_marker_stays(text: str) -> None:
    assert Sanitizer(MARKERS).sanitize(text) == text


def test_words_and_single_punctuation_marks_are_never_markers() -> None:
    text = "unk! a/b - done: 1"
    assert Sanitizer(["unk", "!", "a/b", "-", ":"]).sanitize(text) == text


def test_brackets_that_a_marker_has_do_not_replace_others() -> None:
    assert Sanitizer(["(user)", "<s>"]).sanitize("(User) <s>") == "“User” “s”"


def test_markers_that_use_up_all_brackets_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no bracket is left"):
        Sanitizer(["(a)", "“a”", "«a»", "⟨a⟩"])


def test_of_markers_that_begin_alike_the_longest_counts() -> None:
    assert Sanitizer(["<a>", "<a>b>"]).sanitize("<a>b> <a>b") == "(a b) (a)b"


def test_without_markers_only_the_invisible_goes() -> None:
    assert Sanitizer([]).sanitize("<s>\u200b") == "<s>"


def test_a_sanitized_line_is_one_line() -> None:
    assert Sanitizer(MARKERS).sanitize_line(" a\nSource:\u2028 <s>\t</s> ") == "a Source: <s> (/s)"


@given(hostile_text)
def test_sanitizing_is_idempotent(text: str) -> None:
    sanitizer = Sanitizer(MARKERS)
    once = sanitizer.sanitize(text)
    assert sanitizer.sanitize(once) == once


@given(hostile_text)
def test_no_marker_survives(text: str) -> None:
    def folded(string: str) -> str:
        compatible = unicodedata.normalize("NFKC", string).casefold()
        return "".join(char for char in compatible if not char.isspace() and char not in "_*▁")

    sanitized = folded(Sanitizer(MARKERS).sanitize(text))
    # Those that begin with a letter are markers only where a word begins.
    assert not [marker for marker in MARKERS if not marker[0].isalpha() and folded(marker) in sanitized]


@given(st.text())
def test_what_stays_is_visible_and_encodable(text: str) -> None:
    kept = strip_invisible(text)
    kept.encode()
    assert strip_invisible(kept) == kept
    assert {unicodedata.category(char) for char in kept if char not in "\n\t"}.isdisjoint({"Cc", "Cs"})


@given(st.text(st.characters(categories=["L", "N", "Zs"], exclude_characters="\u115f\u1160\u3164\uffa0")))
def test_letters_digits_and_spaces_are_never_touched(text: str) -> None:
    assert Sanitizer(MARKERS).sanitize(text) == text


@pytest.mark.parametrize(
    ("literal", "markers"),
    [
        ("<|im_end|>\n<|im_start|>user\n", {"<|im_start|>", "<|im_end|>"}),
        ("\n\nAssistant: ", {"Assistant:"}),
        ("\n### Instruction:\n", {"### Instruction:", "Instruction:"}),
        (f"{'A chat between a person and an assistant who helps. ' * 2}USER: ", {"USER:"}),
        ("<<SYS>>\n", {"<<SYS>>"}),
        ("[/INST] {role}", {"[/INST]", "{role}"}),
        ("\n\n", set()),
    ],
)
def test_markers_are_found_in_what_a_template_writes(literal: str, markers: set[str]) -> None:
    sanitizable = {marker for marker in template_markers([literal]) if not marker.isalnum()}
    assert sanitizable == markers


def test_tags_are_told_from_words_and_spaces() -> None:
    assert [token for token in ["<think>", "[INST]", "{x}", " <a> ", "tokamak", "    ", "<>", "a<b>"] if is_tag(token)] == [
        *("<think>", "[INST]", "{x}", " <a> "),
    ]

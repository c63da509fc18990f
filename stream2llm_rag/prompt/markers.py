"""What counts as structure to a model: its added tokens, the role markers of its chat template, and those of other models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

SECTION_OPEN = "<documents>"
SECTION_CLOSE = "</documents>"
DOCUMENT_OPEN = "<document>"
DOCUMENT_CLOSE = "</document>"
DELIMITERS = (SECTION_OPEN, SECTION_CLOSE, DOCUMENT_OPEN, DOCUMENT_CLOSE)

# A model may have been trained on another family's format, and a document is written without knowing which model reads it.
_MARKERS_OF_FAMILIES = {
    "ChatML, GPT, Qwen": "<|im_start|> <|im_end|> <|im_sep|> <|endoftext|> <|endofprompt|>",
    "Hermes, Qwen": "<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>",
    "Llama 2": "[INST] [/INST] <<SYS>> <</SYS>>",
    "Llama 3": "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|>",
    "Llama 4": "<|header_start|> <|header_end|> <|eot|>",
    "Mistral": "[SYSTEM_PROMPT] [/SYSTEM_PROMPT]",
    "Mistral, tools": "[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
    "Gemma": "<start_of_turn> <end_of_turn>",
    "Phi, GLM, Zephyr": "<|system|> <|user|> <|assistant|> <|observation|> <|end|>",
    "Harmony": "<|start|> <|channel|> <|message|> <|constrain|> <|return|> <|call|>",
    "Command R": "<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|>",
    "DeepSeek": "<|begin_of_sentence|> <|end_of_sentence|> <|User|> <|Assistant|>",
    "Granite": "<|start_of_role|> <|end_of_role|>",
}
WELL_KNOWN_MARKERS = tuple(marker for family in _MARKERS_OF_FAMILIES.values() for marker in family.split())

_MAX_MARKER_CHARS = 64
_TAG = re.compile(
    rf"<{{1,2}}[^<>\n]{{1,{_MAX_MARKER_CHARS}}}>{{1,2}}"
    rf"|\[[^\[\]\n]{{1,{_MAX_MARKER_CHARS}}}\]"
    rf"|\{{[^{{}}\n]{{1,{_MAX_MARKER_CHARS}}}\}}"
)


def is_tag(token: str) -> bool:
    """Tell whether ``token`` as a whole is a bracketed name, such as ``<think>`` or ``[INST]``."""
    return _TAG.fullmatch(token.strip()) is not None


def template_markers(literals: Iterable[str]) -> Iterator[str]:
    """Yield the role markers in ``literals``, the text that a chat template writes between the contents of messages.

    They are its tags, its short lines, and the last word before a content: templates that keep a conversation on one line
    put the role there (``... helpful answers. USER: ``).
    """
    for literal in literals:
        yield from _TAG.findall(literal)
        untagged = _TAG.sub("\n", literal)
        candidates = [*untagged.split("\n"), *untagged.split()[-1:]]
        yield from (
            candidate.strip()
            for candidate in candidates
            if len(candidate) <= _MAX_MARKER_CHARS and any(char.isalnum() for char in candidate)
        )

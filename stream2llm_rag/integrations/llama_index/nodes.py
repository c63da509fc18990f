"""LlamaIndex's values to ours and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from stream2llm_rag.documents import Document
from stream2llm_rag.errors import InvalidInputError, UnsupportedError

_SOURCE_KEYS = ("source", "url", "file_path", "file_name")
_NODE = "llama_index_node"


def from_node(found: NodeWithScore) -> Document:
    """A document of ours, which keeps the node. Its source is the metadata's, else its document's id, else its own."""
    node = found.node
    named = (node.metadata[key] for key in _SOURCE_KEYS if node.metadata.get(key))
    title = node.metadata.get("title")
    return Document(
        node.get_content(metadata_mode=MetadataMode.LLM),
        str(next(named, node.ref_doc_id or node.node_id)),
        title=None if title is None else str(title),
        score=found.score,
        metadata={**node.metadata, _NODE: found},
    )


def to_node(document: Document) -> NodeWithScore:
    """The node that a document was made from, else one with its source and title in the metadata."""
    kept = document.metadata.get(_NODE)
    if isinstance(kept, NodeWithScore):
        return kept
    title = {} if document.title is None else {"title": document.title}
    node = TextNode(text=document.text, metadata={**document.metadata, "source": document.source, **title})
    node.excluded_llm_metadata_keys = list(node.metadata)  # the prompt's header has them
    return NodeWithScore(node=node, score=document.score)


def to_nodes(documents: Iterable[Document]) -> list[NodeWithScore]:
    """Each as a node."""
    return [to_node(document) for document in documents]


def from_nodes(nodes: Iterable[NodeWithScore]) -> tuple[Document, ...]:
    """Each as a document of ours."""
    return tuple(from_node(node) for node in nodes)


def to_openai(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them. UnsupportedError for contents other than text."""
    return [_to_openai(message) for message in messages]


def _to_openai(message: ChatMessage) -> dict[str, Any]:
    role = message.role.value
    if role not in ("system", "user", "assistant"):
        raise InvalidInputError(f"a message of role {role!r} has no place here. Use system, user and assistant messages.")
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise UnsupportedError(f"only text can be passed to the model, but a {type(block).__name__} came.")
    return {"role": role, "content": message.content or ""}

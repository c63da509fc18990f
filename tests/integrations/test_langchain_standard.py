"""LangChain's own standard tests, on the real engine.

The model's weights are random. Where a test asks for a number or a call, ``logit_bias`` makes it prefer, of what the schema
allows, quotes, closing brackets and the digit 3: what is decoded comes from the engine under vLLM's structured outputs. Where
the model is to call a tool of its own accord, a choice of one call makes it want to.

Left out of them, each for a limit: another model per call (an engine of vLLM has one model), images, audio, video and PDF (this
library streams text), Anthropic's block formats (a provider's own), settings from the environment (there are none).
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from stream2llm_rag.integrations import BackgroundEngine
from stream2llm_rag.integrations.langchain import ChatStream2LLM, Stream2LLMRetriever
from stream2llm_rag.retrievers.base import InMemoryRetriever

from .conftest import TOOL_TEMPLATE, documents

PREFERENCES = ("3", "]", "}", '"', '."')  # the last most; it makes each string a full stop
CALL = '<tool_call>{"name": "get_weather", "arguments": {"location": "San Francisco"}}</tool_call>'


def steering(tokenizer: Any) -> dict[str, Any]:
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in PREFERENCES]
    assert all(len(found) == 1 for found in ids)
    return {"logit_bias": {found[0]: 50.0 + 10 * rank for rank, found in enumerate(ids)}}


class ChatModel:
    @pytest.fixture(autouse=True)
    def engine(self, real: BackgroundEngine) -> None:
        self.params = {"engine": real, "model": "tiny", "chat_template": TOOL_TEMPLATE, "tool_parser": "hermes"}

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatStream2LLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.params

    @property
    def supports_model_override(self) -> bool:
        return False


class TestChatModelUnit(ChatModel, ChatModelUnitTests):
    pass


class TestChatModelIntegration(ChatModel, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def steered(self, engine: None, request: pytest.FixtureRequest) -> None:
        wants_to_call = "agent_loop" in request.node.name
        wish = {"structured_outputs": {"choice": [CALL]}} if wants_to_call else {}
        self.params["max_tokens"] = 60  # of noise
        self.params["sampling"] = steering(self.params["engine"].engine.tokenizer) | wish

    @property
    def supports_json_mode(self) -> bool:
        return False  # vLLM makes sure of some JSON object; which fields it has is up to the model, and this one's are noise

    @pytest.mark.xfail(strict=True, reason="a model of random weights cannot repeat a name that the question mentions")
    def test_unicode_tool_call_integration(
        self,
        model: BaseChatModel,
        *,
        tool_choice: str | None = None,  # noqa: PT028 - the signature is LangChain's
        force_tool_call: bool = True,  # noqa: PT028
    ) -> None:
        super().test_unicode_tool_call_integration(model, tool_choice=tool_choice, force_tool_call=force_tool_call)


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return Stream2LLMRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": InMemoryRetriever.from_documents(documents(5))}

    @property
    def retriever_query_example(self) -> str:
        return "How do I cancel a task?"

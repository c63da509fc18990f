"""One real engine in the background for the session, and one that is not real for each test that needs no model."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from stream2llm_rag import Document, Stream2LLMEngine
from stream2llm_rag.engine.fake import FakeEngine
from stream2llm_rag.integrations import BackgroundEngine

# As Qwen's and Hermes' models have it: the tiny model's own template knows no tools.
TOOL_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}"
    "{% if tools %}{{ 'Tools:\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}{% endif %}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}{% for call in message.get('tool_calls', []) %}"
    "{{ '<tool_call>' + call['function'] | tojson + '</tool_call>' }}{% endfor %}{{ '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TEXT = "Cancel a task by calling its cancel method, and await it afterwards. " * 8


def documents(count: int) -> list[Document]:
    return [Document(f"{TEXT}{i}", f"https://docs.example/{i}", title=f"Page {i}") for i in range(count)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In a module with ``SKIPPED``, fail a test that is skipped without being named there, and one that is named and is not."""
    report = yield
    named = getattr(getattr(item, "module", None), "SKIPPED", None)
    is_expected_failure = hasattr(report, "wasxfail")  # pytest calls it skipped
    if named is not None and (report.when == "call" or report.skipped) and not report.failed and not is_expected_failure:
        is_named = item.originalname in named  # type: ignore[attr-defined]
        if report.skipped != is_named:
            report.outcome = "failed"
            report.longrepr = "named in SKIPPED, but not skipped" if is_named else "skipped, but not named in SKIPPED"
    return report


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="session")
def real(model_path: Path) -> Iterator[BackgroundEngine]:
    engine = Stream2LLMEngine(
        model_path,
        max_model_len=8192,
        max_num_batched_tokens=1024,
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        enable_prefix_caching=False,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )
    with BackgroundEngine(engine) as background:
        yield background


@pytest.fixture
def fake(tokenizer: Any) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
def background(fake: FakeEngine) -> Iterator[BackgroundEngine]:
    with BackgroundEngine(fake) as background:
        yield background
        assert not fake.sessions
        assert not background._transfers

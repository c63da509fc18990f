"""The demo in update mode: a search of Python's documentation on a fake engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream2llm_rag.demo import TOPICS, DocumentationIndex, Experiment, Report, Settings
from stream2llm_rag.demo.comparison import Answers
from stream2llm_rag.demo.corpus import open_or_build_index, split_page
from stream2llm_rag.retrievers.diskann import DiskANNIndex
from stream2llm_rag.timeline import EventKind
from tests.demo.samples import answers, result
from tests.demo.test_experiment import Engine

SETTINGS = Settings(max_pages=12, delay_s=0.005, max_document_tokens=200)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index, built once for these tests, in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAM2LLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        built = open_or_build_index()
        assert open_or_build_index() == built
        return built


@pytest.fixture
def engine(model_path: Path) -> Engine:
    from transformers import AutoTokenizer

    return Engine(AutoTokenizer.from_pretrained(model_path))


async def test_documents_stream_before_the_end_and_both_ways_give_one_prompt(engine: Engine, directory: Path) -> None:
    async with Experiment(engine, DocumentationIndex(directory), TOPICS[:2], SETTINGS) as demo:
        streamed, usual = await demo.stream(), await demo.replay()
        by_rank, control = await demo.stream_by_rank(), await demo.control(usual)
    for one, other, without in zip(streamed, usual, control, strict=True):
        assert one.documents == other.documents
        assert len(one.documents) == 12
        assert len(without.documents) == 11
        handed_over = [event for event in one.timeline.events if event.kind is EventKind.DELTA and event.tokens]
        assert len(handed_over) >= 2
        snapshots = [event for event in one.timeline.events if event.kind is EventKind.FETCH]
        assert snapshots[-1].label.startswith("all, final after")
    assert any("asyncio" in document.document.source for document in streamed[0].documents)
    report = Report("model", tuple(map(Answers, streamed, usual, control, by_rank)), "page.html")
    assert report.holds
    assert "invalidated_tokens_by_rank" in report.to_json()["requests"][0]


@pytest.mark.parametrize(("stable", "ranked", "is_good"), [(10, 500, True), (500, 10, False)])
def test_the_report_compares_what_the_two_orders_invalidate(stable: int, ranked: int, is_good: bool) -> None:
    streamed, by_rank = result(invalidated_tokens=stable), result(invalidated_tokens=ranked)
    report = Report("model", (answers(streamed=streamed, by_rank=by_rank),), "page.html")
    [finding] = [finding for finding in report.findings() if "invalidated" in finding.text]
    assert finding.is_good is is_good
    assert f"{stable:,} with documents kept at their places, {ranked:,} in order of rank" in finding.text


def test_without_updates_nothing_is_said_of_orders() -> None:
    report = Report("model", (answers(),), "page.html")
    assert not [finding for finding in report.findings() if "invalidated" in finding.text]


def test_a_page_is_cut_at_empty_lines_and_nothing_of_it_is_lost() -> None:
    text = "\n".join(f"Line {number} of the text." if number % 9 else "" for number in range(1001))
    sections: list[Any] = list(split_page("module", text))
    assert "\n".join(section.text for section in sections) == text
    assert all(2400 <= len(section.text) < 2800 for section in sections[:-1])
    assert len({section.source for section in sections}) == len(sections)


def test_the_documentation_covers_the_standard_library_and_nothing_else(directory: Path) -> None:
    with DiskANNIndex.open(directory) as index:
        modules = {document.metadata["module"] for document in index.documents(range(index.num_points))}
    assert {"asyncio.tasks", "subprocess", "json", "zipfile"} <= modules
    assert not {"numpy", "pytest", "this"} & modules

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stream2llm_rag.cli.ask import Scope
from stream2llm_rag.errors import EngineStartError
from stream2llm_rag.prompt import strip_invisible
from tests.cli.conftest import OpenedEngine, Site, html, run, unboxed

QUESTION = "How do I cancel a task?"


def ask(site: Site, *arguments: str | Path) -> Any:
    return run("ask", QUESTION, "--url", site.url, "--model", "tiny", "--allow-private-host", site.host, *arguments)


@pytest.mark.usefixtures("fake_engine")
def test_the_answer_is_all_that_the_standard_output_gets(site: Site, tmp_path: Path) -> None:
    done = ask(site, "--json", tmp_path / "ask.json")
    assert done.exit_code == 0
    assert done.stdout == strip_invisible(json.loads((tmp_path / "ask.json").read_text())["answer"]) + "\n"


@pytest.mark.usefixtures("fake_engine")
def test_pages_and_sources_and_measures_are_shown_beside_it(site: Site) -> None:
    shown = ask(site).stderr
    assert all(f"  {title}\n" in shown for title in ("Start", "One", "Two"))
    assert all(f"{site.url}{path}\n" in shown for path in ("", "one", "two"))
    assert "TTFT after the final context" in shown


@pytest.mark.usefixtures("fake_engine")
def test_the_json_has_the_answer_its_measures_and_its_timeline(site: Site, tmp_path: Path) -> None:
    ask(site, "--json", tmp_path / "ask.json")
    stored = json.loads((tmp_path / "ask.json").read_text())
    assert stored["question"] == QUESTION
    assert stored["streaming"] is True
    assert stored["num_pages"] == 3
    assert set(stored["sources"]) == {site.url, f"{site.url}one", f"{site.url}two"}
    assert stored["ttft_s"] > 0
    assert stored["overlap_tokens"] > 0
    assert run("timeline", tmp_path / "ask.json").exit_code == 0


@pytest.mark.usefixtures("fake_engine")
def test_the_timeline_is_written_as_a_page(site: Site, tmp_path: Path) -> None:
    ask(site, "--timeline", tmp_path / "ask.html")
    assert QUESTION in (tmp_path / "ask.html").read_text()


@pytest.mark.usefixtures("fake_engine")
def test_the_usual_way_gives_the_same_answer(site: Site, tmp_path: Path) -> None:
    # One page: two crawls of several may bring them in another order.
    common = ("--max-pages", "1", "--json", tmp_path / "ask.json")
    streamed, usual = (ask(site, *way, *common) for way in ((), ("--no-stream",)))
    assert streamed.stdout == usual.stdout
    assert json.loads((tmp_path / "ask.json").read_text())["streaming"] is False


def test_options_reach_the_engine_and_the_prompt(site: Site, fake_engine: type[OpenedEngine], tmp_path: Path) -> None:
    ask(site, "--engine-arg", "dtype=float32", "--max-pages", "2", "--json", tmp_path / "ask.json")
    assert fake_engine.opened == [{"model": "tiny", "dtype": "float32"}]
    assert json.loads((tmp_path / "ask.json").read_text())["num_pages"] == 2


@pytest.mark.usefixtures("fake_engine")
def test_a_page_that_cannot_be_used_is_named_with_the_reason(site: Site, tmp_path: Path) -> None:
    site.pages["/"] = html("Start", ("/one", "/nothing"))
    done = ask(site, "--json", tmp_path / "ask.json")
    assert "skipped: HTTP 404" in done.stderr
    stored = json.loads((tmp_path / "ask.json").read_text())
    assert stored["skipped"] == [{"source": f"{site.url}nothing", "reason": "HTTP 404"}]
    assert stored["crawl"]["total"]["skipped"] == {"http_status": 1}
    assert "Pages read: 2, skipped: 1 (1 http status), from 1 host" in done.stderr


@pytest.mark.usefixtures("fake_engine")
def test_pages_can_be_kept_from_one_crawl_to_the_next(site: Site, tmp_path: Path) -> None:
    for _ in range(2):
        ask(site, "--cache", tmp_path / "cache", "--json", tmp_path / "ask.json")
    assert (tmp_path / "cache" / "pages.sqlite").is_file()


@pytest.mark.usefixtures("fake_engine")
def test_a_private_proxy_needs_only_to_be_named(site: Site, tmp_path: Path) -> None:
    site.pages["http://docs.example/"] = html("Through the proxy")
    proxied = ("--url", "http://docs.example/", "--proxy", site.url, "--json", tmp_path / "ask.json")
    done = run("ask", QUESTION, "--model", "tiny", *proxied)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "ask.json").read_text())["sources"] == ["http://docs.example/"]


@pytest.mark.usefixtures("fake_engine")
def test_it_opens_no_way_to_its_own_host(site: Site) -> None:
    done = run("ask", QUESTION, "--model", "tiny", "--url", site.url, "--proxy", site.url)
    assert done.exit_code != 0
    assert "allow_private_hosts does not name this host" in unboxed(done.stderr)


@pytest.mark.usefixtures("fake_engine")
@pytest.mark.parametrize("proxy", ["http://[", "proxy:3128", "http://proxy:3128/path"])
def test_what_is_no_proxy_is_named(site: Site, proxy: str) -> None:
    done = ask(site, "--proxy", proxy)
    assert done.exit_code != 0
    assert "proxy is 'http://host:port'" in unboxed(done.stderr)


@pytest.mark.usefixtures("fake_engine")
@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("&#27;]0;owned&#7;Window", "Window"),
        ("[bold red]Bold[/] [link=file:///x]here[/link]", "[bold red]Bold[/] [link=file:///x]here[/link]"),
        ("one\u202eowt\u202c\u200b", "oneowt"),
        (":smiley: 100%", ":smiley: 100%"),
    ],
)
def test_titles_of_pages_are_shown_as_plain_text(site: Site, title: str, shown: str) -> None:
    site.pages["/"] = html("Start").replace("<title>Start", f"<title>{title}")
    done = ask(site)
    assert done.exit_code == 0
    assert f"  {shown}\n" in done.stderr
    assert "\x1b" not in done.output


def test_an_answer_cannot_command_the_terminal(
    site: Site, fake_engine: type[OpenedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OpenedEngine._answer

    async def hostile(self: OpenedEngine, token_ids: list[int]) -> AsyncIterator[Any]:
        from dataclasses import replace

        async for output in whole(self, token_ids):
            yield replace(output, text="a\x1b[2J\x9b1m\u202eb\n\t[red]c")

    monkeypatch.setattr(OpenedEngine, "_answer", hostile)
    assert ask(site).stdout == "a[2J1mb\n\t[red]c" * 8 + "\n"


@pytest.mark.usefixtures("fake_engine")
def test_an_address_inside_is_refused_unless_it_is_named(site: Site) -> None:
    done = run("ask", QUESTION, "--url", site.url, "--model", "tiny")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "error: No page could be read" in done.stderr
    assert "loopback" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", "--url", "http://127.0.0.1/"), "A question is text that is not empty"),
        ((QUESTION, "--url", "ftp://127.0.0.1/"), "ftp://127.0.0.1/"),
    ],
)
def test_input_that_cannot_be_used_is_one_line(arguments: tuple[str, ...], words: str, fake_engine: type[OpenedEngine]) -> None:
    done = run("ask", *arguments, "--model", "tiny")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert fake_engine.opened == []  # it is said before an engine starts


def test_without_a_model_or_a_start_it_says_what_is_missing() -> None:
    assert "Missing option '--url'" in unboxed(run("ask", QUESTION, "--model", "tiny").stderr)
    assert "Missing option '--model'" in unboxed(run("ask", QUESTION, "--url", "http://127.0.0.1/").stderr)


def test_an_engine_that_does_not_start_is_one_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(OpenedEngine):
        def __init__(self, model: str) -> None:
            pass

        async def __aenter__(self) -> Broken:
            raise EngineStartError("vLLM could not start 'tiny': no memory")

    monkeypatch.setattr("stream2llm_rag.cli.ask.Stream2LLMEngine", Broken)
    done = ask(site)
    assert (done.exit_code, done.stderr) == (2, "error: vLLM could not start 'tiny': no memory\n")


def test_the_model_that_is_not_there_is_one_line(site: Site) -> None:
    done = run("ask", QUESTION, "--url", site.url, "--model", "./nowhere")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: there is no model at './nowhere'")


def test_every_scope_of_the_crawler_can_be_chosen() -> None:
    from typing import get_args

    from stream2llm_rag.retrievers.crawler.urls import ScopeKind

    assert {scope.value for scope in Scope} == set(get_args(ScopeKind))


INTERRUPTED = """
import sys
from pathlib import Path
import stream2llm_rag.cli.ask
from stream2llm_rag.cli import main
from tests.cli.conftest import OpenedEngine

OpenedEngine.model_path = Path(sys.argv.pop())
stream2llm_rag.cli.ask.Stream2LLMEngine = OpenedEngine
main()
"""


def test_ctrl_c_ends_it_in_order(site: Site, model_path: Path, tmp_path: Path) -> None:
    """While pages come: with a second between them, the crawl would go on for minutes."""
    for number in range(200):
        site.pages[f"/{number}"] = html(f"Page {number}", (f"/{number + 1}",))
    site.pages["/"] = html("Start", tuple(f"/{number}" for number in range(200)))
    options = ["--url", site.url, "--model", "tiny", "--allow-private-host", site.host, "--max-pages", "200", "--delay-s", "1"]
    command = [sys.executable, "-c", INTERRUPTED, "ask", QUESTION, *options, str(model_path)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stderr is not None
        assert any("Start" in line for line in running.stderr)  # behind what a library may have to say
        running.send_signal(signal.SIGINT)
        output, rest = running.communicate(timeout=200)
    assert (running.returncode, output) == (130, "")
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor_")] == []  # torch's own cache

"""The folders are the architecture: what may import what, read from the syntax tree of every module."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

import pytest

import stream2llm_rag

ROOT = "stream2llm_rag"
PACKAGE = Path(stream2llm_rag.__file__).parent
# From the bottom up. A unit (a module or a folder of the package) imports from the layers below its own, and from itself.
LAYERS = (
    {"cache_dir", "documents", "errors", "main_guard", "prompt", "shielding", "timeline", "token_ids"},
    {"retrievers", "engine"},
    {"result"},
    {"pipeline"},
    {
        "integrations",
        "simulation",
        "serve",
        "doctor",
        "tiny_model",
        "",
    },  # "": what the package itself exports
    {"bench", "demo"},
    {"cli"},
)
PEERS_THAT_MIX = LAYERS[0]
LAYER_OF = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}
# Where else's code may be imported, as prefixes of module names without the package's own; all else is free.
FOREIGN = {
    "vllm": ("bench", "engine", "serve", "simulation"),
    "aiohttp": ("retrievers",),
    "trafilatura": ("retrievers",),
    "langchain": ("integrations.langchain",),
    "langchain_core": ("integrations.langchain", "integrations.sources"),  # sources: for its types, as below
    "llama_index": ("integrations.llama_index", "integrations.sources"),
    "llama_index_instrumentation": ("integrations.llama_index",),
    "msgspec": ("serve",),
    "starlette": ("serve",),
    "typer": ("cli",),
    "websockets": ("serve",),
    "matplotlib": ("simulation",),
    "scipy": ("simulation",),
    "diskannpy": ("retrievers.diskann",),
    "numba": ("retrievers.diskann",),
    "sklearn": ("retrievers.diskann",),
}
PURE = (
    "engine.protocol",
    "engine.policy",
    "engine.planner",
    "engine.costs",
    "engine.cost_model",
    "engine.swap.books",
    "engine.swap.choice",
    "engine.least_squares",
)
HEAVY = {
    "vllm",
    "torch",
    "transformers",
    "tokenizers",
    "aiohttp",
    "trafilatura",
    "langchain_core",
    "llama_index",
    "typer",
    "rich",
    "matplotlib",
    "scipy",
    "numba",
    "sklearn",
    "diskannpy",
}


@dataclass(frozen=True)
class Module:
    """``name`` is relative to the package, "" for the package itself."""

    name: str
    source: str
    is_package: bool = False

    @property
    def unit(self):
        return self.name.split(".")[0]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield Module(".".join(parts[:-1] if is_package else parts), path.read_text(), is_package)


def imported_names(module):
    """Absolute dotted names; `from a import b` gives a.b, as b may be a module."""
    package = ".".join(filter(None, (ROOT, module.name)))
    package = package if module.is_package else package.rpartition(".")[0]
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_within(name, prefixes):
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def unit_of(name):
    first = name.removeprefix(ROOT).removeprefix(".").split(".")[0]
    return first if first in LAYER_OF else ""  # a name that the package itself exports


def violations(module):
    if module.unit not in LAYER_OF:
        return [f"{module.unit} has no layer"]
    return [problem for name in imported_names(module) if (problem := judge(module, name))]


def judge(module, name):
    if not is_within(name, [ROOT]):
        top = name.split(".")[0]
        if top in FOREIGN and not is_within(module.name, FOREIGN[top]):
            return f"{module.name} imports {top}"
        if top == "vllm" and is_within(module.name, PURE):
            return f"{module.name} is pure and imports vllm"
        return None
    unit = unit_of(name)
    may_mix = {unit, module.unit} <= PEERS_THAT_MIX
    if name == f"{ROOT}.__version__" or unit == module.unit or may_mix or LAYER_OF[unit] < LAYER_OF[module.unit]:
        return None
    return f"{module.name} imports {name}, which is not below it"


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.name or ROOT)
def test_a_module_imports_only_what_its_layer_allows(module):
    assert violations(module) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("retrievers.base", "from stream2llm_rag.engine import session"),
        ("engine.engine", "import stream2llm_rag.retrievers.base"),
        ("errors", "from stream2llm_rag import pipeline"),
        ("engine.session", "from stream2llm_rag.pipeline import StreamingRAG"),
        ("engine.session", "from ..pipeline import StreamingRAG"),
        ("engine.session", "from .. import pipeline"),
        ("engine.session", "from stream2llm_rag import Document"),
        ("engine.session", "import stream2llm_rag"),
        ("pipeline", "def later():\n    from stream2llm_rag.cli import main"),
        ("serve.route", "from stream2llm_rag.simulation import clock"),
        ("pipeline", "import vllm"),
        ("pipeline", "from vllm.v1.core import sched"),
        ("engine.policy.fcfs", "if True:\n    import vllm.v1.request"),
        ("engine.planner", "from vllm import LLM"),
        ("integrations.llama_index", "import langchain_core.runnables"),
        ("engine.session", "import typer"),
        ("unheard_of", "import os"),
    ],
)
def test_an_import_against_the_order_is_found(name, source):
    assert len(violations(Module(name, source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("errors", "from stream2llm_rag.documents import Document"),
        ("retrievers.crawler.crawler", "import aiohttp\nfrom ..base import StreamingRetriever"),
        ("engine.scheduler", "from vllm.v1.core.sched.scheduler import Scheduler\nfrom .planner import plan"),
        ("pipeline", "from stream2llm_rag import retrievers\nfrom stream2llm_rag.engine.engine import Stream2LLMEngine"),
        ("cli", "import typer\nfrom stream2llm_rag import __version__, doctor"),
        (
            "integrations.langchain",
            "from langchain_core.runnables import Runnable\nfrom stream2llm_rag.pipeline import StreamingRAG",
        ),
    ],
)
def test_an_import_along_the_order_is_let_through(name, source):
    assert violations(Module(name, source)) == []


def modules_loaded_by(statement):
    report = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; {report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", [ROOT, f"{ROOT}.doctor", f"{ROOT}.engine.plugins", f"{ROOT}.serve"])
def test_importing_it_loads_nothing_heavy(name):
    assert modules_loaded_by(f"import {name}") & HEAVY == set()


def test_a_heavy_import_would_be_seen():
    assert "aiohttp" in modules_loaded_by("import aiohttp")

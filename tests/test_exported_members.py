import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import stream2llm_rag

PACKAGES = [module.name for module in pkgutil.walk_packages(stream2llm_rag.__path__, "stream2llm_rag.") if module.ispkg]


def test_the_package_exports_just_its_public_names_and_few_of_them():
    public = {name for name, value in vars(stream2llm_rag).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public - {"TYPE_CHECKING"} <= set(stream2llm_rag.__all__)
    assert all(hasattr(stream2llm_rag, name) for name in stream2llm_rag.__all__)
    assert stream2llm_rag.__all__ == sorted(set(stream2llm_rag.__all__))
    assert len(stream2llm_rag.__all__) <= 16


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="WebCrawlr"):
        stream2llm_rag.WebCrawlr  # noqa: B018 - looking it up is the test


def test_the_crawler_without_its_extra_is_an_error_that_names_the_extra():
    code = "import sys; sys.modules['aiohttp'] = None\nimport stream2llm_rag\n"
    code += "try:\n    from stream2llm_rag import WebCrawler\n"
    code += "except stream2llm_rag.Stream2LLMError as error:\n    print(type(error).__name__, error.extra)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "MissingExtraError crawl\n"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_what_it_exports(name):
    module = import_module(name)
    exported = getattr(module, "__all__", [])
    assert [name for name in exported if not hasattr(module, name)] == []
    assert len(set(exported)) == len(exported)

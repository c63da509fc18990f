import inspect
import pkgutil
from importlib import import_module

import pytest

import stream2llm_rag

PACKAGES = [module.name for module in pkgutil.walk_packages(stream2llm_rag.__path__, "stream2llm_rag.") if module.ispkg]


def test_the_package_exports_just_its_public_names_and_few_of_them():
    public = {name for name, value in vars(stream2llm_rag).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public <= set(stream2llm_rag.__all__)
    assert all(hasattr(stream2llm_rag, name) for name in stream2llm_rag.__all__)
    assert stream2llm_rag.__all__ == sorted(set(stream2llm_rag.__all__))
    assert len(stream2llm_rag.__all__) <= 16


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_what_it_exports(name):
    module = import_module(name)
    exported = getattr(module, "__all__", [])
    assert [name for name in exported if not hasattr(module, name)] == []
    assert len(set(exported)) == len(exported)

import json
from dataclasses import replace

import pytest

from stream2llm_rag.engine import fits
from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost
from stream2llm_rag.engine.fits import FitKey, StoredFit, load_costs, load_fit
from stream2llm_rag.errors import InvalidInputError

KEY = FitKey("NVIDIA H200", "meta-llama/Llama-3.1-8B", "bfloat16", "auto", 2, 1, False, 16, "FLASH_ATTN", "0.32.0")
COSTS = Costs(StepCost(4e-3, 13.8e-6, 4.8e-10, 1.95e-8), CopyCost(1e-4, 4e-5), CopyCost(2e-4, 5e-5))
FIT = StoredFit(KEY, COSTS, {"step": 0.05, "swap_out": 0.02, "swap_in": 0.03}, "2026-01-01T00:00:00+00:00")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAM2LLM_CACHE", str(tmp_path))
    return tmp_path


def test_a_fit_is_found_again_by_its_key(cache):
    path = FIT.save()
    assert path.parent == cache / "calibration"
    assert list(path.parent.iterdir()) == [path]
    assert load_fit(KEY) == FIT


@pytest.mark.parametrize(
    "other",
    [
        {"device": "NVIDIA H100"},
        {"model": "meta-llama/Llama-3.1-70B"},
        {"dtype": "float16"},
        {"kv_cache_dtype": "fp8"},
        {"tensor_parallel_size": 1},
        {"pipeline_parallel_size": 2},
        {"enforce_eager": True},
        {"block_size": 32},
        {"attention_backend": "FLASHINFER"},
        {"vllm": "0.33.0"},
    ],
)
def test_with_anything_else_in_its_key_it_is_not_found(other):
    FIT.save()
    assert load_fit(replace(KEY, **other)) is None


def test_a_new_fit_takes_the_place_of_the_old_one():
    FIT.save()
    newer = replace(FIT, costs=replace(COSTS, step=StepCost(1e-3, 1e-6)), measured_at="2026-02-02T00:00:00+00:00")
    newer.save()
    assert load_fit(KEY) == newer


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: "{",
        lambda stored: "[]",
        lambda stored: json.dumps({**stored, "costs": {}}),
        lambda stored: json.dumps({**stored, "key": {**stored["key"], "device": "another"}}),
        lambda stored: json.dumps({**stored, "key": {}}),
        lambda stored: json.dumps({name: value for name, value in stored.items() if name != "errors"}),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(damage):
    path = FIT.save()
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(InvalidInputError, match=path.name):
        load_fit(KEY)


def test_where_nothing_can_be_written_the_error_says_what_to_set(cache):
    (cache / "calibration").write_text("in the way")
    with pytest.raises(InvalidInputError, match="STREAM2LLM_CACHE"):
        FIT.save()


def test_an_engine_finds_its_costs_and_does_without_them_where_they_are_damaged(monkeypatch, caplog):
    config = object()
    monkeypatch.setattr(fits.FitKey, "of", classmethod(lambda cls, found: KEY if found is config else None))
    assert load_costs(config) is None
    path = FIT.save()
    assert load_costs(config) == COSTS
    path.write_text("{")
    assert load_costs(config) is None
    assert "starting on a guess" in caplog.text


def test_whatever_is_wrong_with_a_configuration_no_engine_core_dies_of_it():
    assert load_costs(None) is None

"""An engine core with host memory starts from what was stored for its model and machine."""

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost
from stream2llm_rag.engine.fits import FitKey, StoredFit
from stream2llm_rag.engine.scheduler import StreamingScheduler
from stream2llm_rag.engine.settings import CoreSettings
from stream2llm_rag.engine.swap.connector import SwapConnector, swap_config
from stream2llm_rag.simulation.building import CoreShape, build_scheduler

COSTS = Costs(StepCost(4e-3, 13.8e-6, 4.8e-10, 1.95e-8), CopyCost(1e-4, 4e-5), CopyCost(2e-4, 5e-5))


@pytest.fixture
def core(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAM2LLM_CACHE", str(tmp_path))
    scheduler = build_scheduler(StreamingScheduler, CoreShape(num_blocks=100), CoreSettings())
    monkeypatch.setattr(scheduler.vllm_config, "kv_transfer_config", swap_config(host_kv_gib=0.1))
    return scheduler


def connector(core):
    return SwapConnector(core.vllm_config, KVConnectorRole.SCHEDULER, core.kv_cache_config)


def test_what_is_stored_is_where_it_starts(core):
    StoredFit(FitKey.of(core.vllm_config), COSTS, {}, "2026-01-01").save()
    assert connector(core).cost.costs == COSTS


def test_without_a_stored_fit_it_starts_on_a_guess(core):
    assert connector(core).cost.costs.step.token_s == 1e-6
    assert not connector(core).cost.for_victim(100_000).swap


def test_a_simulated_core_does_not_ask_for_this_machines(core, monkeypatch):
    StoredFit(FitKey.of(core.vllm_config), COSTS, {}, "2026-01-01").save()
    monkeypatch.setattr(core.vllm_config, "kv_transfer_config", swap_config(num_host_blocks=50))
    assert connector(core).cost.costs != COSTS

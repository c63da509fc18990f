from __future__ import annotations

from dataclasses import replace

import pytest

from stream2llm_rag.engine.policy import POLICIES

from .building import Setup
from .episodes import Episode
from .store import KvStore, Row, Violation

NUM_BATCHES, BATCH_SIZE = 20, 100
FOUND = {
    910444: "two streams displaced each other for ever, as neither's KV could be kept in host memory",
    940318: "the planner did not see what vLLM had scheduled by itself while new requests were kept out",
}
"""Seeds, and what was wrong."""


@pytest.mark.parametrize("batch", range(NUM_BATCHES))
def test_no_episode_breaks_a_rule(batch: int) -> None:
    for seed in range(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE):
        Episode(seed).run()


@pytest.mark.parametrize("seed", FOUND)
def test_what_an_episode_found_stays_mended(seed: int) -> None:
    Episode(seed).run()


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(("depth", "v2_runner"), [(1, False), (1, True), (2, False), (2, True), (3, True)])
def test_every_policy_serves_all_with_the_smallest_pool(policy: str, depth: int, v2_runner: bool) -> None:
    smallest = Setup(policy, depth, v2_runner, max_model_len=24, num_blocks=7, max_num_seqs=2, token_budget=5)
    for seed in range(5):
        Episode(seed, setup=smallest).run()
        Episode(seed, setup=replace(smallest, prefix_caching=False, max_num_seqs=1)).run()


@pytest.mark.parametrize("batch", range(2))
def test_stock_vllm_passes_too(batch: int) -> None:
    """The rules are vLLM's: its own schedulers keep them, with plain requests."""
    for seed in range(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE):
        Episode(seed, stock=True).run()


def test_the_same_seed_is_the_same_episode() -> None:
    one, other = Episode(7), Episode(7)
    one.run()
    other.run()
    assert one.setup == other.setup
    assert one.machine.num_answered == other.machine.num_answered > 0
    assert one.machine.scheduler.current_step == other.machine.scheduler.current_step


class TestTheStore:
    def store(self) -> KvStore:
        store = KvStore(num_blocks=4, block_size=2)
        store.compute([Row("a", [1, 2, 3], 0, [1, 2])])
        return store

    def test_context_that_is_there_can_be_gone_on_from(self) -> None:
        self.store().compute([Row("b", [1, 2, 3, 4], 3, [1, 2])])

    def test_context_of_another_prefix_is_noticed(self) -> None:
        with pytest.raises(Violation, match="of another prefix"):
            self.store().compute([Row("b", [1, 9, 3, 4], 3, [1, 2])])

    def test_context_that_was_never_written_is_noticed(self) -> None:
        with pytest.raises(Violation, match="never written"):
            self.store().compute([Row("b", [1, 2, 3, 4], 3, [1, 3])])

    def test_two_that_write_one_slot_are_noticed(self) -> None:
        with pytest.raises(Violation, match="write slot"):
            self.store().compute([Row("b", [1, 2, 3], 2, [1, 3]), Row("c", [1, 2, 3], 2, [1, 3])])

    def test_what_one_writes_another_may_read_in_the_same_step(self) -> None:
        self.store().compute([Row("b", [5, 6, 7], 2, [3, 2]), Row("c", [5, 6], 0, [3])])

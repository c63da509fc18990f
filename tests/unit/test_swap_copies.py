from __future__ import annotations

import pytest
import torch
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheTensor

from stream2llm_rag.engine.cost_model import CostModel, Direction, Preemption
from stream2llm_rag.engine.swap.books import Copy, StepCopies
from stream2llm_rag.engine.swap.choice import RANDOM, check_mode, make_cost
from stream2llm_rag.engine.swap.copies import HostCopier, kv_regions, make_copier
from stream2llm_rag.engine.swap.metadata import SwapMetadata, SwapTimes
from stream2llm_rag.errors import InvalidInputError

NUM_BLOCKS, PAGE = 5, 16  # bytes of a block in one layer
LAYER_OUTERMOST = KVCacheTensor(NUM_BLOCKS * PAGE * 2, ["a", "b"], layer_stride=NUM_BLOCKS * PAGE, block_stride=PAGE)
BLOCK_OUTERMOST = KVCacheTensor(NUM_BLOCKS * PAGE * 2, ["a", "b"], layer_stride=PAGE, block_stride=2 * PAGE)


def memory() -> torch.Tensor:
    return torch.arange(NUM_BLOCKS * PAGE * 2, dtype=torch.int8)


def pages(storage: torch.Tensor, placed: KVCacheTensor, block: int) -> list[list[int]]:
    """The bytes of a block in each layer."""
    starts = [placed.offset + layer * placed.layer_stride + block * placed.block_stride for layer in range(2)]
    return [storage[start : start + PAGE].tolist() for start in starts]


@pytest.mark.parametrize("placed", [LAYER_OUTERMOST, BLOCK_OUTERMOST], ids=["layer-outermost", "block-outermost"])
def test_a_block_goes_out_and_in_with_all_its_layers(placed: KVCacheTensor) -> None:
    storage = memory()
    before = [pages(storage, placed, block) for block in range(NUM_BLOCKS)]
    views = {name: storage[layer * placed.layer_stride :] for layer, name in enumerate("ab")}
    copier = make_copier(kv_regions(views, KVCacheConfig(NUM_BLOCKS, [placed], [])), num_slots=3)
    copier.begin(SwapMetadata(0, StepCopies([Copy(1, 2)], [Copy(4, 0)], [])))
    storage.zero_()
    copier.begin(SwapMetadata(1, StepCopies([], [], [Copy(3, 2), Copy(0, 0)])))
    assert [pages(storage, placed, block) for block in (3, 0)] == [before[1], before[4]]
    assert storage.count_nonzero() == 4 * PAGE - sum(page.count(0) for block in (1, 4) for page in before[block])


def test_a_block_may_go_out_and_in_with_one_step() -> None:
    storage = memory()
    before = pages(storage, LAYER_OUTERMOST, 1)
    copier = HostCopier(kv_regions({"a": storage}, KVCacheConfig(NUM_BLOCKS, [LAYER_OUTERMOST], [])), num_slots=1)
    copier.begin(SwapMetadata(0, StepCopies([Copy(1, 0)], [], [Copy(2, 0)])))
    assert pages(storage, LAYER_OUTERMOST, 2) == before


def test_copies_and_forward_passes_are_timed() -> None:
    copier = HostCopier(kv_regions({"a": memory()}, KVCacheConfig(NUM_BLOCKS, [LAYER_OUTERMOST], [])), num_slots=2)
    copier.begin(SwapMetadata(7, StepCopies([Copy(1, 0)], [Copy(2, 1)], [])))
    copier.end()
    times = copier.take_times()
    assert list(times.forwards) == [7]
    [((step, way), (num_blocks, seconds))] = times.copies.items()
    assert (step, way, num_blocks) == (7, Direction.OUT, 2)
    assert seconds > 0
    assert not copier.take_times()


def test_of_several_ranks_the_slowest_counts() -> None:
    one = SwapTimes({1: 0.5, 2: 0.1}, {(1, Direction.IN): (4, 0.2)})
    other = SwapTimes({1: 0.3, 3: 0.7}, {(1, Direction.IN): (4, 0.3)})
    both = one.aggregate(other)
    assert both.forwards == {1: 0.5, 2: 0.1, 3: 0.7}
    assert both.copies == {(1, Direction.IN): (4, 0.3)}


def test_modes_decide_as_they_say() -> None:
    def decisions(cost: CostModel) -> set[bool]:
        return {cost.for_victim(1000, 100).swap for _ in range(50)} | {cost.for_return(1000, 100).swap for _ in range(50)}

    assert decisions(make_cost(Preemption.SWAP, 16, 2**20)) == {True}
    assert decisions(make_cost(Preemption.RECOMPUTE, 16, 2**20)) == {False}
    assert decisions(make_cost(RANDOM, 16, 2**20)) == {True, False}
    with pytest.raises(InvalidInputError, match=r"no way to preempt called 'sometimes'\. Write one of auto, recompute, swap"):
        check_mode("sometimes")

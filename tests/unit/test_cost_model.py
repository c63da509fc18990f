from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stream2llm_rag.engine.cost_model import CostModel, Direction, Preemption
from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost, guess
from stream2llm_rag.errors import InvalidInputError

H200 = StepCost(step_s=4e-3, token_s=13.8e-6, attention_s=4.8e-10, kv_read_s=1.95e-8)
BLOCK_SIZE = 16
BLOCK_BYTES = 2 << 20


def costs_at(bytes_per_s=50e9, operation_s=5e-5):
    copy = CopyCost(operation_s, BLOCK_BYTES / bytes_per_s)
    return Costs(H200, copy, copy)


def model(costs=None, **settings):
    return CostModel(costs or costs_at(), BLOCK_SIZE, **settings)


seconds = st.just(0.0) | st.floats(1e-12, 1) | st.floats(1e-12, 1e-3)
all_costs = st.builds(
    Costs,
    st.builds(StepCost, seconds, seconds, seconds, seconds),
    st.builds(CopyCost, seconds, seconds),
    st.builds(CopyCost, seconds, seconds),
)
lengths = st.integers(0, 100_000)


@given(all_costs)
def test_costs_come_back_from_json_as_they_were(costs):
    assert Costs.from_dict(costs.to_dict()) == costs


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        {},
        {"step": {}},
        {**costs_at().to_dict(), "more": 1},
        {**costs_at().to_dict(), "step": None},
        {**costs_at().to_dict(), "swap_in": {"operation_s": 1.0}},
        {**costs_at().to_dict(), "swap_in": {"operation_s": 1.0, "block_s": -1.0}},
        {**costs_at().to_dict(), "swap_in": {"operation_s": 1.0, "block_s": float("nan")}},
        {**costs_at().to_dict(), "swap_in": {"operation_s": 1.0, "block_s": "1"}},
        {**costs_at().to_dict(), "swap_in": {"operation_s": 1.0, "block_s": True}},
    ],
)
def test_what_are_no_costs_is_refused(stored):
    with pytest.raises(InvalidInputError, match=r"Write "):
        Costs.from_dict(stored)


def test_recomputing_costs_what_the_step_time_says():
    assert model().recompute_s(1000, 5000) == pytest.approx(1000 * 13.8e-6 + 4.8e-10 * 1000 * 5500 + 1.95e-8 * 5000)
    assert H200([(1000, 5000)]) == pytest.approx(model().recompute_s(1000, 5000) + 4e-3)


@pytest.mark.parametrize(("token_budget", "num_added_steps"), [(2048, 0), (1000, 1), (999, 1), (480, 2)])
def test_recomputing_costs_the_base_of_each_step_that_it_fills_alone(token_budget, num_added_steps):
    added_s = model(token_budget=token_budget).recompute_s(1000, 5000) - model().recompute_s(1000, 5000)
    assert added_s == pytest.approx(num_added_steps * 4e-3)


@pytest.mark.parametrize("token_budget", [0, -1, float("nan")])
def test_a_budget_of_no_tokens_is_refused(token_budget):
    with pytest.raises(InvalidInputError, match=r"token_budget is .* 1 or more"):
        model(token_budget=token_budget)


def test_copying_costs_an_operation_and_its_blocks_in_either_direction_by_itself():
    costs = Costs(H200, CopyCost(1e-4, 2e-5), CopyCost(3e-4, 5e-5))
    assert model(costs).swap_out_s(10) == pytest.approx(1e-4 + 10 * 2e-5) == pytest.approx(costs.swap_out(10))
    assert model(costs).swap_in_s(10) == pytest.approx(3e-4 + 10 * 5e-5) == pytest.approx(costs.swap_in(10))
    assert model(costs).swap_out_s(0) == model(costs).swap_in_s(0) == costs.swap_out(0) == 0


@given(all_costs, lengths, lengths, lengths)
def test_no_estimate_is_below_zero_and_more_never_costs_less(costs, num_tokens, context, more):
    cost_model = model(costs)
    least = cost_model.recompute_s(num_tokens, context)
    assert 0 <= least <= cost_model.recompute_s(num_tokens + more, context) * (1 + 1e-9)
    assert least <= cost_model.recompute_s(num_tokens, context + more) * (1 + 1e-9)
    for copy_s in (cost_model.swap_out_s, cost_model.swap_in_s):
        assert 0 <= copy_s(num_tokens) <= copy_s(num_tokens + more) * (1 + 1e-9)


@given(all_costs, lengths, lengths, st.floats(1, 10))
def test_a_victim_is_copied_out_only_where_that_is_cheaper_by_the_margin(costs, num_tokens, context, margin):
    decision = model(costs, margin=margin).for_victim(num_tokens, context)
    assert decision.swap == (margin * decision.swap_s < decision.recompute_s)
    assert decision.num_tokens == num_tokens
    back = model(costs, margin=margin).for_return(num_tokens, context)
    assert back.swap == (margin * back.swap_s < back.recompute_s)
    assert back.swap_s <= decision.swap_s  # what the copy out took is spent
    assert back.swap or not decision.swap


@given(all_costs, lengths, lengths, lengths)
def test_whoever_is_copied_behind_a_context_is_copied_behind_a_longer_one(costs, num_tokens, context, more):
    assume(model(costs).for_victim(num_tokens, context).swap)
    assert model(costs).for_victim(num_tokens, context + more).swap


@given(all_costs, lengths, lengths, st.floats(1, 10), st.floats(1, 10))
def test_a_larger_margin_copies_no_more(costs, num_tokens, context, one, other):
    bold, wary = (model(costs, margin=margin).for_victim(num_tokens, context).swap for margin in sorted((one, other)))
    assert bold or not wary


@given(st.integers(1, 60_000))
def test_a_faster_link_copies_no_less(num_tokens):
    slow, fast = (model(costs_at(speed)).for_victim(num_tokens).swap for speed in (5e9, 50e9))
    assert fast or not slow


def test_an_h200_swaps_over_pcie_5_and_does_not_over_a_slow_link():
    assert model(costs_at(50e9)).for_victim(8000).swap
    assert not model(costs_at(5e9)).for_victim(8000).swap


@pytest.mark.parametrize("mode", list(Preemption))
def test_nothing_lost_is_nothing_to_copy_in_any_mode(mode):
    assert not model(mode=mode).for_victim(0).swap
    assert not model(mode=mode).for_return(0, 500).swap


@given(all_costs, st.integers(1, 100_000), lengths)
def test_a_mode_that_is_not_auto_decides_alone(costs, num_tokens, context):
    for mode, expected in ((Preemption.SWAP, True), (Preemption.RECOMPUTE, False)):
        assert model(costs, mode=mode).for_victim(num_tokens, context).swap is expected
        assert model(costs, mode=mode).for_return(num_tokens, context).swap is expected


@pytest.mark.parametrize("margin", [0.5, -1.0, float("nan"), float("inf")])
def test_a_margin_below_one_is_refused(margin):
    with pytest.raises(InvalidInputError, match="1 or more"):
        model(margin=margin)


def test_tokens_that_will_survive_in_the_prefix_cache_are_left_out():
    cost_model = model()
    for _ in range(100):
        cost_model.saw_return(4000, 2500)
    decision = cost_model.for_victim(4000, 160)
    assert decision.num_tokens == pytest.approx(1500, rel=0.1)
    num_surviving = 4000 - decision.num_tokens
    assert num_surviving % BLOCK_SIZE == 0
    assert decision.recompute_s == pytest.approx(cost_model.recompute_s(decision.num_tokens, 160 + num_surviving))
    assert cost_model.for_return(4000, 160).num_tokens == 4000  # there the real hit is known


@given(st.lists(st.tuples(lengths, st.integers(-5, 200_000)), max_size=200), lengths)
def test_however_much_survived_no_more_than_all_is_left_out(returns, num_tokens):
    cost_model = model()
    for num_given_up, num_hit in returns:
        cost_model.saw_return(num_given_up, num_hit)
    assert 0 <= cost_model.for_victim(num_tokens).num_tokens <= num_tokens


def test_a_guess_copies_nothing_before_steps_have_shown_what_a_token_takes():
    cost_model = CostModel(guess(BLOCK_BYTES), BLOCK_SIZE, is_guess=True)
    assert not any(cost_model.for_victim(num_tokens).swap for num_tokens in (16, 1000, 100_000))
    dice = Random(1)
    slow = StepCost(5e-3, 2e-4, 5e-9)
    for _ in range(30):
        items = [(dice.randint(1, 2048), dice.randint(0, 8000)), (1, dice.randint(0, 8000))]
        cost_model.saw_step(items, slow(items) * dice.lognormvariate(0, 0.1))
    assert cost_model.for_victim(8000).swap
    assert cost_model.recompute_s(2000, 4000) == pytest.approx(slow([(2000, 4000)]) - slow.step_s, rel=0.3)


@pytest.mark.parametrize("direction", list(Direction))
def test_a_link_that_turns_out_slower_is_no_longer_used(direction):
    cost_model, dice = model(), Random(2)
    assert cost_model.for_victim(4000).swap
    slow = CopyCost(2e-4, BLOCK_BYTES / 5e9)
    for _ in range(200):
        num_blocks = dice.randint(1, 400)
        cost_model.saw_copy(direction, num_blocks, slow(num_blocks) * dice.lognormvariate(0, 0.1))
    assert not cost_model.for_victim(4000).swap
    learned = {Direction.OUT: cost_model.costs.swap_out, Direction.IN: cost_model.costs.swap_in}
    other = Direction.IN if direction is Direction.OUT else Direction.OUT
    assert learned[direction](250) == pytest.approx(slow(250), rel=0.15)
    assert learned[other](250) == pytest.approx(costs_at().swap_in(250))


def test_a_copy_of_no_block_teaches_nothing():
    cost_model = model()
    cost_model.saw_copy(Direction.IN, 0, 1.0)
    assert cost_model.costs == costs_at()


def test_a_stored_fit_is_not_overthrown_by_one_slow_step():
    cost_model = model()
    before = cost_model.recompute_s(2000, 5000)
    cost_model.saw_step([(500, 500)], 10.0)
    assert cost_model.recompute_s(2000, 5000) == pytest.approx(before, rel=0.1)

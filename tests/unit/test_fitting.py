from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.engine.cost_model import CostModel, Direction, Preemption
from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost
from stream2llm_rag.engine.fitting import CopyTiming, StepTiming, Timings, crossover, errors_of, fit_costs
from stream2llm_rag.errors import InvalidInputError

TRUE = Costs(StepCost(4e-3, 13.8e-6, 4.8e-10, 1.95e-8), CopyCost(1e-4, 4e-5), CopyCost(2e-4, 5e-5))


def timings(seed=0, *, num_steps=200, num_copies=100, noise=0.1):
    dice = Random(seed)

    def noisy(seconds):
        return seconds * dice.lognormvariate(0, noise)

    items = [(dice.randint(1, 8192), dice.randint(0, 30_000)) for _ in range(num_steps)]
    steps = [StepTiming(*item, noisy(TRUE.step([item]))) for item in items]
    costs = {Direction.OUT: TRUE.swap_out, Direction.IN: TRUE.swap_in}
    copies = [
        CopyTiming(direction, num_blocks, noisy(costs[direction](num_blocks)))
        for direction in Direction
        for num_blocks in (dice.choice((1, 4, 16, 64, 256)) for _ in range(num_copies))
    ]
    return Timings(steps, copies)


@given(seed=st.integers(0, 1000))
def test_fitted_costs_predict_other_measurements(seed):
    errors = errors_of(fit_costs(timings(seed)), timings(seed + 10_000))
    assert errors.keys() == {"step", "swap_out", "swap_in"}
    assert all(error.median < 0.12 and error.p95 < 0.4 for error in errors.values())
    assert [error.num_measurements for error in errors.values()] == [200, 100, 100]


def test_without_noise_the_fit_is_exact():
    costs = fit_costs(timings(noise=0))
    assert costs.step.token_s == pytest.approx(TRUE.step.token_s, rel=1e-4)
    assert costs.step.attention_s == pytest.approx(TRUE.step.attention_s, rel=1e-4)
    assert costs.swap_in.block_s == pytest.approx(TRUE.swap_in.block_s, rel=1e-4)
    assert all(error.p95 < 1e-4 for error in errors_of(costs, timings(1, noise=0)).values())


def test_hiccups_of_the_machine_do_not_bend_the_fit():
    smooth = timings()
    hiccups = [StepTiming(step.num_tokens, step.context, 30 * step.seconds) for step in smooth.steps[:20]]
    costs = fit_costs(Timings([*hiccups, *smooth.steps[20:]], smooth.copies))
    assert costs.step([(2048, 8000)]) == pytest.approx(TRUE.step([(2048, 8000)]), rel=0.1)


@pytest.mark.parametrize(
    ("too_few", "message"),
    [
        (timings(num_steps=15), "15 steps"),
        (timings(num_copies=5), "5 copies out"),
        (Timings([*timings().steps, StepTiming(1, 1, 0.0)], timings().copies), "steps took 0.0 seconds"),
        (Timings(timings().steps, [*timings().copies, CopyTiming(Direction.IN, 1, float("nan"))]), "copies in took nan"),
    ],
)
def test_what_cannot_be_fitted_is_refused(too_few, message):
    with pytest.raises(InvalidInputError, match=message):
        fit_costs(too_few)


@given(context=st.integers(0, 20_000), margin=st.floats(1, 30))
def test_victims_are_copied_from_the_crossover_on_and_not_before(context, margin):
    model = CostModel(TRUE, 16, margin=margin)
    found = crossover(model, 4096, context)
    copied = [num_tokens for num_tokens in range(16, 4097, 16) if model.for_victim(num_tokens, context).swap]
    if found is None:
        assert not model.for_victim(4096, context).swap
    else:
        assert model.for_victim(found, context).swap
        assert found == 1 or not model.for_victim(found - 1, context).swap
        assert 4096 in copied


@pytest.mark.parametrize(("mode", "expected"), [(Preemption.SWAP, 1), (Preemption.RECOMPUTE, None)])
def test_a_fixed_mode_has_its_crossover_at_the_ends(mode, expected):
    assert crossover(CostModel(TRUE, 16, mode=mode), 4096) == expected
    assert crossover(CostModel(TRUE, 16, mode=mode), 0) is None

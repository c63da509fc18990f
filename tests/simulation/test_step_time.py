from __future__ import annotations

import json
import random

import pytest

from stream2llm_rag.errors import InvalidInputError
from stream2llm_rag.simulation.step_time import StepTime, fit, hardware_names, load_hardware

TRUTH = StepTime(base_s=3e-3, token_s=2e-5, attention_s=5e-10, kv_read_s=4e-8)


def steps(num_steps=80, seed=0):
    drawn = random.Random(seed)
    for _ in range(num_steps):
        num_requests = drawn.randint(1, 8)
        yield [(drawn.choice([1, 1, 64, 900, 2048]), drawn.randrange(40_000)) for _ in range(num_requests)]


def test_a_step_takes_its_base_and_what_each_part_costs():
    step_time = StepTime(1.0, 10.0, 0.5, 0.25)
    assert step_time([]) == 1.0
    assert step_time([(2, 0)]) == 1.0 + 20.0 + 0.5 * 2 * 1
    assert step_time([(2, 0), (4, 8)]) == 1.0 + 60.0 + 0.5 * (2 * 1 + 4 * 10) + 0.25 * 8


def test_for_a_cost_model_copies_are_counted_in_blocks():
    costs = StepTime(1.0, 10.0, 0.5, 0.25, swap_out_token_s=7.0, swap_in_token_s=3.0).costs(block_size=16)
    assert costs.swap_out(2) == 2 * 16 * 7.0
    assert costs.swap_in(2) == 2 * 16 * 3.0
    assert costs.step([(2, 0), (4, 8)]) == 1.0 + 60.0 + 0.5 * (2 * 1 + 4 * 10) + 0.25 * 8


def test_computing_a_prompt_in_chunks_attends_to_as_much_as_computing_it_at_once():
    free = StepTime(base_s=1e-300, token_s=1e-5, attention_s=1e-9)
    assert free([(1000, 0)]) + free([(500, 1000)]) == pytest.approx(free([(1500, 0)]))


def test_a_fit_finds_the_coefficients_that_made_the_measurements():
    found = fit([(step, TRUTH(step)) for step in steps()])
    for name in ("base_s", "token_s", "attention_s", "kv_read_s"):
        assert getattr(found.step_time, name) == pytest.approx(getattr(TRUTH, name), rel=1e-6)
    assert found.num_measurements == 80
    assert found.p95_error < 1e-9


def test_a_fit_to_noisy_steps_says_how_far_off_it_is():
    noise = random.Random(1)
    found = fit([(step, TRUTH(step) * noise.uniform(0.9, 1.1)) for step in steps()])
    assert found.step_time.token_s == pytest.approx(TRUTH.token_s, rel=0.1)
    assert 0.02 < found.median_error < found.p95_error <= 0.13


def test_a_part_that_would_come_out_negative_is_zero():
    falling = [([(num_tokens, 0)], 1.0 - num_tokens / 10_000) for num_tokens in range(0, 4000, 200)]
    assert fit(falling).step_time.token_s == 0.0


def test_measurements_that_cannot_be_fitted_are_refused():
    with pytest.raises(InvalidInputError, match="2 measurements came"):
        fit([([(1, 0)], 0.1)] * 2)
    with pytest.raises(InvalidInputError, match="a step took 0 seconds"):
        fit([([(1, 0)], 0)] * 8)


@pytest.mark.parametrize(
    "wrong", [{"base_s": -1.0}, {"token_s": float("nan")}, {"kv_read_s": "1"}, {"base_s": 0, "token_s": 0}]
)
def test_coefficients_that_cannot_be_are_refused(wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        StepTime(**{"base_s": 1e-3, "token_s": 1e-5, **wrong})


def test_the_known_hardware_is_there():
    assert hardware_names() == ["h200", "h200x2"]
    one, two = map(load_hardware, hardware_names())
    prefill = [(2048, 6000)]
    assert one.step_time(prefill) > two.step_time(prefill) > 0.02
    assert one.num_kv_tokens < two.num_kv_tokens


def test_hardware_is_read_from_the_file_that_it_wrote(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(load_hardware("h200").to_json())
    assert load_hardware(file) == load_hardware("h200")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_tokens": 0}, "num_kv_tokens is 0"),
        ({"surplus": 1}, "it has .*surplus"),
        ({"step_time": {"base_s": 1}}, "it has base_s. Write an object with base_s, token_s"),
        ({"step_time": {**json.loads(load_hardware("h200").to_json())["step_time"], "token_s": -1}}, "token_s is -1"),
    ],
)
def test_a_hardware_file_that_is_none_is_refused(tmp_path, change, message):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**json.loads(load_hardware("h200").to_json()), **change}))
    with pytest.raises(InvalidInputError, match=message):
        load_hardware(file)


def test_hardware_that_nobody_knows_is_refused_with_the_names_of_those_known():
    with pytest.raises(InvalidInputError, match="Write h200, h200x2, or a JSON file"):
        load_hardware("abacus")

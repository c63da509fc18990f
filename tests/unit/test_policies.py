from __future__ import annotations

import math

import pytest

from stream2llm_rag.engine.planner import Resources, plan
from stream2llm_rag.engine.policy import POLICIES, LiveRequest, Policy, Rank, Rules, make_policy
from stream2llm_rag.engine.policy.paper import Fcfs
from stream2llm_rag.errors import InvalidInputError


def request(name: str, arrived_at: float, last_chunk_at: float, *, partial: bool, computed: int = 0) -> LiveRequest:
    return LiveRequest(name, arrived_at, last_chunk_at, partial, computed, computed + 10)


REQUESTS = [
    request("first", 1, 8, partial=True, computed=30),
    request("second", 2, 3, partial=True, computed=10),
    request("third", 3, 6, partial=False, computed=20),
    request("fourth", 4, 5, partial=False),
]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("fifo", ["first", "second", "third", "fourth"]),
        ("fcfs", ["third", "fourth", "first", "second"]),
        ("tail-fcfs", ["third", "fourth", "first", "second"]),
        ("lcas", ["fourth", "third", "second", "first"]),
        ("mcps", ["first", "third", "second", "fourth"]),
        ("aged-fcfs", ["third", "fourth", "first", "second"]),
    ],
)
def test_a_policy_ranks_as_it_is_defined(name: str, order: list[str]) -> None:
    policy = make_policy(name)
    assert [r.request_id for r in sorted(REQUESTS, key=lambda r: policy.rank(r, now=9.0))] == order


class TestAgeing:
    @staticmethod
    def first(requests: list[LiveRequest], now: float, max_wait_s: float) -> list[str]:
        class Aged(Fcfs):
            rules = Rules(max_wait_s=max_wait_s)

        resources = Resources(token_budget=10, blocks=9, slots=9, block_size=16)
        made = plan(requests, list, resources, Aged(), now, lambda _: [], lambda _: [])
        return list(made.grants)

    def test_whoever_has_waited_too_long_since_its_final_context_comes_first(self) -> None:
        assert self.first(REQUESTS, 6.5, max_wait_s=2.0) == ["third"]
        assert self.first(REQUESTS, 7.5, max_wait_s=2.0) == ["fourth"]

    def test_no_stream_of_earlier_arrivals_keeps_an_old_request_back(self) -> None:
        old = request("old", 100.0, 100.0, partial=False)
        earlier = [request(str(n), float(n), 105.0 + n, partial=False) for n in range(50)]
        assert self.first([*earlier, old], 110.5, max_wait_s=10.0) == ["old"]

    def test_partial_requests_do_not_age(self) -> None:
        partial, complete = request("p", 1, 1, partial=True), request("c", 99, 99.9, partial=False)
        assert self.first([partial, complete], 100.0, max_wait_s=1.0) == ["c"]

    def test_the_policies_of_the_paper_do_not_age(self) -> None:
        assert {POLICIES[name].rules.max_wait_s for name in ("fifo", "fcfs", "lcas", "mcps")} == {math.inf}


class Mine(Policy):
    def rank(self, request: LiveRequest, now: float) -> Rank:
        return (now,)


def test_a_policy_is_made_by_its_dotted_path() -> None:
    assert isinstance(make_policy(f"{__name__}:Mine"), Mine)


@pytest.mark.parametrize(
    "name", ["luck", "no.such.module:Mine", f"{__name__}:Yours", f"{__name__}:BLANK", f"{__name__}:request"]
)
def test_what_names_no_policy_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        make_policy(name)


BLANK = "no class"

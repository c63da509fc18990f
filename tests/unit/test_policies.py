from __future__ import annotations

import pytest

from stream2llm_rag.engine.policy import DEFAULT_POLICY, POLICIES, LiveRequest, Policy, Rank, make_policy
from stream2llm_rag.engine.policy.aged import AgedFcfs
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
    def test_whoever_has_waited_too_long_since_its_final_context_comes_first(self) -> None:
        policy = AgedFcfs(max_wait_s=2.0)
        order = sorted(REQUESTS, key=lambda r: policy.rank(r, now=7.5))
        assert [r.request_id for r in order] == ["fourth", "third", "first", "second"]

    def test_no_stream_of_earlier_arrivals_keeps_an_old_request_back(self) -> None:
        policy, old = AgedFcfs(max_wait_s=10.0), request("old", 100.0, 100.0, partial=False)
        earlier = [request(str(n), float(n), 105.0 + n, partial=False) for n in range(50)]
        assert min([old, *earlier], key=lambda r: policy.rank(r, now=110.5)) is old

    def test_partial_requests_do_not_age(self) -> None:
        policy = AgedFcfs(max_wait_s=1.0)
        partial, complete = request("p", 1, 1, partial=True), request("c", 99, 99.9, partial=False)
        assert policy.rank(complete, 100.0) < policy.rank(partial, 100.0)

    def test_the_default_ages_and_the_policies_of_the_paper_do_not(self) -> None:
        assert [name for name, made in POLICIES.items() if issubclass(made, AgedFcfs)] == [DEFAULT_POLICY]


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

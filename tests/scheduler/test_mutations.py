from __future__ import annotations

import pytest

from .episodes import Episode
from .mutants import MUTANTS
from .store import Violation

NUM_EPISODES = 300  # the hardest to catch takes 60


@pytest.mark.parametrize("name", MUTANTS)
def test_episodes_catch_the_scheduler_without_one_of_its_guards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    assert any(_fails(seed) for seed in range(NUM_EPISODES)), f"nobody notices that {name.replace('_', ' ')}"


def _fails(seed: int) -> bool:
    try:
        Episode(seed).run()
    except (Violation, AssertionError, KeyError, ValueError, IndexError):  # a broken rule, or what would end the engine core
        return True
    return False

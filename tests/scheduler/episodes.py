"""Random episodes: everything that front ends and users can send, in any order, between any two steps."""

from __future__ import annotations

import random
from collections.abc import Callable

from vllm import SamplingParams
from vllm.v1.core.sched.interface import PauseState

from stream2llm_rag.engine.policy import POLICIES
from stream2llm_rag.engine.protocol import EXTRA_ARGS_KEY, Op, OpKind
from stream2llm_rag.engine.swap.choice import RANDOM

from .building import SECRET, Setup
from .machine import Machine
from .store import Violation
from .workers import FIRST_ANSWER_TOKEN, NUM_ANSWER_TOKENS

NUM_TOKENS = 3  # so few that prompts share prefixes by accident too

FORGED: tuple[object, ...] = (
    None,
    7,
    [],
    "append",
    {},
    {"op": "append"},
    {"op": "append", "opens": True, "secret": "guess"},
    {"op": "finish", "opens": True, "secret": None},
    {"op": "update", "opens": False, "secret": SECRET.encode()},
    {"op": "explode", "opens": False, "secret": SECRET},
    {"op": ["append"], "opens": True, "secret": SECRET},
    {"op": "append", "opens": 1, "secret": SECRET},
    {"op": "append", "opens": True, "secret": SECRET, "num_remaining": "many"},
    {"op": "append", "opens": True, "secret": SECRET, "num_remaining": True},
)


def random_setup(dice: random.Random, *, stock: bool = False) -> Setup:
    block_size = dice.choice([2, 4, 4, 8])
    max_model_len = dice.choice([13, 24, 33, 40])
    num_needed = -(-max_model_len // block_size) + 1  # one is the null block
    max_num_seqs = dice.choice([1, 2, 3, 8])
    depth = dice.choice([1, 1, 2, 2, 3])
    return Setup(
        policy=dice.choice(sorted(POLICIES)),
        depth=depth,
        v2_runner=depth == 3 or dice.random() < 0.5,
        prefix_caching=dice.random() < 0.75,
        block_size=block_size,
        max_model_len=max_model_len,
        num_blocks=num_needed + dice.choice([0, 0, 1, 2, 5, 30]),
        max_num_seqs=max_num_seqs,
        token_budget=max_num_seqs + dice.choice([0, 1, 4, 11, 100]),
        defer_frees=depth > 1 and dice.random() < 0.2,
        num_host_blocks=None if stock else dice.choice([None, 0, 1, 2, 5, 100]),
        preempt=dice.choice([RANDOM, RANDOM, "swap", "auto"]),
        chaos=0.0 if stock else dice.choice([0.0, 0.0, 0.1, 0.5]),
        stock=stock,
    )


class Episode:
    """One seed: a configuration, a few dozen actions with steps between them, and the end of all input."""

    def __init__(self, seed: int, *, setup: Setup | None = None, stock: bool = False) -> None:
        self._seed = seed
        self._dice = random.Random(seed)
        drawn = random_setup(self._dice, stock=stock)
        self.setup = setup or drawn
        self.machine = Machine(self.setup, seed=seed)
        self._documents = [self._text(1, self.setup.max_model_len // 2) for _ in range(3)]
        self._num_ids = 0
        self._gone: list[str] = []

    def run(self) -> None:
        """Raise what went wrong, with a note on how to see it again."""
        try:
            self._act(self._dice.randint(10, 40))
            self._settle()
            self._end_streams()
            self._settle()
            self._check_nothing_is_left()
        except Exception as error:
            error.add_note(f"Again: python -m tests.scheduler.fuzz --episodes 1 --seed {self._seed}, which is {self.setup}")
            raise

    # ------------------------------------------------------------------ actions

    def _act(self, num_actions: int) -> None:
        plain: tuple[Callable[[], None], ...] = (self._plain, self._plain, self._abort, self._abort, self._reset, self._pause)
        streams = (self._open, self._append, self._update, self._finish) * 3 + (self._stray, self._stray)
        actions = plain if self.setup.stock else plain + streams
        for _ in range(num_actions):
            self._dice.choice(actions)()
            for _ in range(self._dice.choice([0, 0, 1, 1, 2, 6])):
                self._step()

    def _step(self) -> None:
        if self.machine.has_work:
            live = list(self.machine.sent)
            self.machine.step(abort=self._dice.choice(live) if live and self._dice.random() < 0.03 else None)

    def _open(self) -> None:
        if self._dice.random() < 0.1:
            self.machine.finish(self._new_id(), self._prompt(), self._params())
        else:
            self.machine.open(self._new_id(), self._prompt())

    def _append(self) -> None:
        for stream in self._some(partial=True):
            room = self.setup.max_model_len - 1 - len(self.machine.sent[stream].tokens)
            if room > 0:
                self.machine.append(stream, self._text(1, min(room, self._dice.choice([1, 3, 30]))))

    def _update(self) -> None:
        for stream in self._some(partial=True):
            before = self.machine.sent[stream].tokens
            common = before[: self._dice.choice([1, len(before), self._dice.randint(0, len(before))])]
            new = common + self._dice.choice([[], self._text(1, 12), self._prompt()])
            self.machine.update(stream, new[: self.setup.max_model_len - 1] or [0])

    def _finish(self) -> None:
        for stream in self._some(partial=True):
            tokens = self.machine.sent[stream].tokens
            suffix = self._dice.choice([[], self._text(1, 5)])
            final = self._prompt() if self._dice.random() < 0.1 else tokens + suffix
            self.machine.finish(stream, final[: self.setup.max_model_len - 1], self._params())
            self._gone.append(stream)

    def _plain(self) -> None:
        self.machine.plain(self._new_id(), self._prompt(), self._params())

    def _abort(self) -> None:
        if self._dice.random() < 0.3:
            for request_id in self._some():
                self.machine.abort(request_id)
                self._gone.append(request_id)

    def _reset(self) -> None:
        if self._dice.random() < 0.3:
            # vLLM cannot preempt all while frees are deferred, and its V1 runner then loses draws of seeded generators.
            can_preempt = not self.setup.defer_frees and (self.setup.depth == 1 or self.setup.v2_runner)
            self.machine.reset_prefix_cache(running_too=can_preempt and self._dice.random() < 0.5)

    def _pause(self) -> None:
        if self._dice.random() < 0.3:
            self.machine.pause(self._dice.choice([PauseState.PAUSED_NEW, PauseState.PAUSED_ALL]))
            for _ in range(self._dice.choice([0, 1, 3])):
                self._step()
            self.machine.pause(PauseState.UNPAUSED)

    def _stray(self) -> None:
        """To an id that lives or is gone: what a stranger forged, an operation that comes late, a second request."""
        tokens = self._prompt()
        for request_id in self._some():
            if self._dice.random() < 0.5 or self.machine.sent[request_id].partial:
                self.machine.stray(request_id, tokens, **{EXTRA_ARGS_KEY: self._dice.choice(FORGED)})
            else:
                kind = self._dice.choice(list(OpKind))
                self.machine.stray(request_id, tokens, Op(kind, opens=self._dice.random() < 0.5))
        gone = [request_id for request_id in self._gone if request_id not in self.machine.sent]
        if gone:
            self.machine.stray(self._dice.choice(gone), tokens, Op(self._dice.choice([OpKind.APPEND, OpKind.UPDATE])))

    # ------------------------------------------------------------------ the end of input

    def _settle(self) -> None:
        """Nobody sends any more: all that is complete is answered, and the rest comes to rest."""
        self.machine.scheduler._chaos = 0.0
        for _ in range(self._max_steps()):
            if not self.machine.has_work:
                break
            self.machine.step()
        unanswered = [request_id for request_id, one in self.machine.sent.items() if not one.partial]
        if unanswered:
            raise Violation(f"{unanswered} are never answered")
        if self.machine.has_work:
            raise Violation(f"the core never rests, though {list(self.machine.sent)} are partial")

    def _max_steps(self) -> int:
        """Twice the steps in which each token is computed alone, with all steps in flight before it; and some to spare."""
        num_tokens = sum(len(one.tokens) + len(one.expected) for one in self.machine.sent.values())
        return 20 + 2 * self.setup.depth * num_tokens

    def _end_streams(self) -> None:
        for stream in list(self.machine.sent):
            if self._dice.random() < 0.7:
                self.machine.finish(stream, self.machine.sent[stream].tokens, self._params())
            else:
                self.machine.abort(stream)

    def _check_nothing_is_left(self) -> None:
        scheduler = self.machine.scheduler
        pool = scheduler.kv_cache_manager.block_pool
        if self.machine.sent or scheduler.requests or pool.get_num_free_blocks() != pool.num_gpu_blocks - 1:
            raise Violation(f"left over: {list(scheduler.requests)}, {pool.get_num_free_blocks()} blocks free")

    # ------------------------------------------------------------------ random values

    def _new_id(self) -> str:
        self._num_ids += 1
        return f"r{self._num_ids}"

    def _some(self, *, partial: bool = False) -> list[str]:
        """One live request, or a few, or none."""
        live = [request_id for request_id, one in self.machine.sent.items() if one.partial or not partial]
        return self._dice.sample(live, min(len(live), self._dice.choice([1, 1, 1, 2, 5])))

    def _text(self, shortest: int, longest: int) -> list[int]:
        return [self._dice.randrange(NUM_TOKENS) for _ in range(self._dice.randint(shortest, longest))]

    def _prompt(self) -> list[int]:
        """Documents that others have too, and some text."""
        documents = self._dice.choices(self._documents, k=self._dice.randint(0, 2))
        tokens = [token for document in documents for token in document] + self._text(1, 10)
        return tokens[: self._dice.randint(1, self.setup.max_model_len - 1)]

    def _params(self) -> SamplingParams:
        stop = self._dice.choice([None, None, [FIRST_ANSWER_TOKEN + self._dice.randrange(NUM_ANSWER_TOKENS)]])
        return SamplingParams(
            max_tokens=self._dice.choice([1, 2, 5, 9]),
            top_k=self._dice.choice([1, 2, 5]),
            seed=self._dice.choice([None, None, 1, 2]),
            stop_token_ids=stop,
        )

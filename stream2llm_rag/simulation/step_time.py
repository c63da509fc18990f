"""How long a step of the engine takes: a linear model of what is in it, its coefficients per hardware, and their fit. Pure.

A step in which each request computes ``n`` tokens behind ``c`` others takes::

    base_s + sum(token_s * n  +  attention_s * n * (c + n / 2)  +  kv_read_s * c)

The base is what a step costs whatever is in it (weights read, kernels launched, the scheduler), the second part is the matrix
products, the third attention, where each token looks at all before it, and the last the KV that is read once per request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from stream2llm_rag.engine.costs import CopyCost, Costs, StepCost, StepItems, step_features
from stream2llm_rag.engine.least_squares import fit_relative
from stream2llm_rag.errors import InvalidInputError

_FOLDER = Path(__file__).parent / "hardware"


@dataclass(frozen=True, slots=True)
class StepTime:
    """The coefficients, in seconds; a call gives the seconds of a step. A copy takes ``swap_*_token_s`` per token moved.

    Raises :class:`InvalidInputError` for a coefficient that is negative or not finite, and where all would be free.
    """

    base_s: float
    token_s: float
    attention_s: float = 0.0
    kv_read_s: float = 0.0
    swap_out_token_s: float = 0.0
    swap_in_token_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InvalidInputError(f"{name} is {value!r}. Write seconds, 0 or more.")
        if self.base_s + self.token_s <= 0:
            raise InvalidInputError("base_s and token_s are 0, so that time would stand still. Write seconds above 0.")

    def __call__(self, items: StepItems) -> float:
        """Seconds of a step that computes ``items``."""
        _, num_tokens, num_pairs, num_read = step_features(items)
        return self.base_s + self.token_s * num_tokens + self.attention_s * num_pairs + self.kv_read_s * num_read

    def costs(self, block_size: int) -> Costs:
        """The same for a cost model, which would have measured it on this machine; ``block_size`` in tokens."""
        step = StepCost(self.base_s, self.token_s, self.attention_s, self.kv_read_s)
        out, back = (CopyCost(0.0, block_size * seconds) for seconds in (self.swap_out_token_s, self.swap_in_token_s))
        return Costs(step, out, back)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a simulation needs to know of a machine with a model on it: tokens that its KV cache holds, and its step time."""

    name: str
    description: str
    num_kv_tokens: int
    step_time: StepTime

    def to_json(self) -> str:
        """What :func:`load_hardware` reads."""
        return json.dumps(asdict(self), indent=2) + "\n"


def hardware_names() -> list[str]:
    """The machines that the library knows."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_hardware(name: str | Path) -> Hardware:
    """The machine called ``name``, or the one of a JSON file. Raises :class:`InvalidInputError` where it is neither."""
    known = _FOLDER / f"{name}.json"
    path = known if name in hardware_names() else Path(name)
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"the hardware {str(name)!r} cannot be read: {error}."
            f" Write {', '.join(hardware_names())}, or a JSON file like theirs."
        ) from error
    try:
        return _hardware(stored)
    except InvalidInputError as error:
        raise InvalidInputError(f"the hardware file {path}: {error}") from error


def _hardware(stored: object) -> Hardware:
    values = _exactly(stored, [field.name for field in fields(Hardware)])
    num_kv_tokens = values["num_kv_tokens"]
    if isinstance(num_kv_tokens, bool) or not isinstance(num_kv_tokens, int) or num_kv_tokens <= 0:
        raise InvalidInputError(f"num_kv_tokens is {num_kv_tokens!r}. Write how many tokens the KV cache holds.")
    step_time = StepTime(**_exactly(values["step_time"], [field.name for field in fields(StepTime)]))
    return Hardware(str(values["name"]), str(values["description"]), num_kv_tokens, step_time)


def _exactly(stored: object, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(stored, dict) or stored.keys() != set(names):
        found = ", ".join(stored) if isinstance(stored, dict) else repr(stored)
        raise InvalidInputError(f"it has {found}. Write an object with {', '.join(names)}.")
    return stored


@dataclass(frozen=True, slots=True)
class Fit:
    """A step time fitted to measurements, and how far off it is: the median and the P95 of the relative error."""

    step_time: StepTime
    num_measurements: int
    median_error: float
    p95_error: float


def fit(measurements: Sequence[tuple[Sequence[tuple[int, int]], float]]) -> Fit:
    """The step time that is least off, relative to what was measured; ``measurements`` are steps and their seconds.

    Least squares with no coefficient below zero. Parts that the measurements do not tell apart share what these took.
    Copies are not fitted. Raises :class:`InvalidInputError` for fewer than 8 measurements or seconds that are not above zero.
    """
    if len(measurements) < 8:
        raise InvalidInputError(f"{len(measurements)} measurements came. Write 8 or more, of steps that differ.")
    if wrong := [seconds for _, seconds in measurements if not 0 < seconds < math.inf]:
        raise InvalidInputError(f"a step took {wrong[0]!r} seconds. Write seconds above zero.")
    rows = [step_features(items) for items, _ in measurements]
    step_time = StepTime(*map(float, fit_relative(rows, [seconds for _, seconds in measurements])))
    errors = sorted(abs(step_time(items) / seconds - 1) for items, seconds in measurements)
    return Fit(step_time, len(errors), median(errors), errors[math.ceil(0.95 * len(errors)) - 1])

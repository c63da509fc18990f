"""What a caller passes gets to the engine core only in a form that it can read: it would read nothing any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from stream2llm_rag.engine.feedback import FeedbackHub
from stream2llm_rag.engine.lifeline import Lifeline
from stream2llm_rag.engine.session import Session, Submission
from stream2llm_rag.engine.wire import VllmWire, sampling_params
from stream2llm_rag.errors import InvalidInputError


@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 1.5},
        {"max_tokens": np.int64(5)},
        {"min_tokens": 1.5},
        {"seed": "x"},
        {"seed": 2**70},
        {"logprobs": 1.5},
        {"bad_words": [5]},
        {"logit_bias": {"a": 1.0}},
        {"ignore_eos": "yes"},
        {"skip_special_tokens": "no"},
        {"structured_outputs": 5},
        {"extra_args": {"mine": object()}},
        {"extra_args": 5},
    ],
)
def test_sampling_that_the_core_could_not_read_is_refused(sampling: dict[str, Any]) -> None:
    for given in (sampling, SamplingParams(**sampling)):
        with pytest.raises(InvalidInputError, match="could not read"):
            sampling_params(given)


@pytest.mark.parametrize("sampling", [5, "max_tokens", [("max_tokens", 5)]])
def test_sampling_that_is_no_mapping_is_refused(sampling: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"a mapping or vLLM's SamplingParams, got (int|str|list)"):
        sampling_params(sampling)


def test_sampling_of_every_kind_passes() -> None:
    given = {
        "max_tokens": 5,
        "temperature": 0,
        "stop": ["a"],
        "stop_token_ids": [5],
        "logit_bias": {5: 1},
        "logprobs": 2,
        "seed": -1,
        "structured_outputs": {"choice": ["a", "b"]},
        "extra_args": {"mine": {"any": [1, None, "x"]}},
    }
    params = sampling_params(given)
    assert (params.max_tokens, params.temperature, params.logit_bias) == (5, 0, {5: 1})


@pytest.mark.parametrize("shape", [{"cache_salt": 5}, {"lora_request": "mine"}])
async def test_a_session_that_the_core_could_not_read_is_refused(shape: dict[str, Any]) -> None:
    sent: list[Any] = []
    wire = VllmWire(fake_llm(sent), "secret", FeedbackHub(), Lifeline())
    session = Session(wire, on_close=lambda session: None, **shape)
    with pytest.raises(InvalidInputError, match="could not read"):
        await session.append([5, 6])
    with pytest.raises(InvalidInputError, match="could not read"):
        await wire.check(session, Submission([5, 6], {}, opens=True, arrival_time=0.0))
    assert sent == []


def fake_llm(sent: list[Any]) -> Any:
    """vLLM's engine, as far as requests are made: it looks at no types."""

    def process_inputs(request_id: str, prompt: Any, params: Any, **fields: Any) -> EngineCoreRequest:
        return EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=prompt["prompt_token_ids"],
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=fields["arrival_time"],
            lora_request=fields["lora_request"],
            cache_salt=prompt.get("cache_salt"),
            data_parallel_rank=None,
        )

    async def get_supported_tasks() -> tuple[str, ...]:
        return ("generate",)

    async def add_request_async(request: Any) -> None:
        sent.append(request)

    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=100, get_vocab_size=lambda: 100),
        input_processor=SimpleNamespace(process_inputs=process_inputs),
        engine_core=SimpleNamespace(add_request_async=add_request_async),
        get_supported_tasks=get_supported_tasks,
    )

"""What clients may send: sound messages, messages with wrong fields, other JSON, and noise."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from stream2llm_rag.serve.messages import Append, Describe, Finish, Open, Ping, Update, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from(["describe", "open", "append", "update", "finish", "cancel", "ping", "opened", "error", ""])
FIELDS = st.fixed_dictionaries(
    {"type": TYPES},
    optional={
        "tokens": st.lists(st.integers(-3, 3000), max_size=5) | JSON,
        "text": st.text(max_size=8) | JSON,
        "formatted": JSON,
        "num_remaining": st.integers(-1, 3) | JSON,
        "cache_salt": st.text(max_size=4) | JSON,
        "sampling": st.dictionaries(st.sampled_from(["max_tokens", "temperature", "stop", "extra_args", "n"]), JSON) | JSON,
        "sent_s": JSON,
        "surprise": JSON,
    },
)
SOUND: st.SearchStrategy[str] = st.sampled_from(
    [encode(m) for m in (Open(tokens=[5]), Append(tokens=[6]), Update(tokens=[7]), Finish(tokens=[8]), Ping(), Describe())]
)
FRAMES = st.one_of(SOUND, FIELDS.map(json.dumps), JSON.map(json.dumps), st.text(max_size=20), st.binary(max_size=20))

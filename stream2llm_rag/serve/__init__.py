"""The engine over the network: vLLM's OpenAI server with streaming context beside it, and the client of that.

``messages`` is the protocol, ``limits`` what a client may ask for; ``connection`` serves one stream, ``plugin`` is the route,
``arguments`` and ``server`` are the command; ``client`` and ``stream`` are the other end. Needs the extra ``serve``, the server
also ``vllm``.
"""

from importlib.util import find_spec

from stream2llm_rag.errors import MissingExtraError

for _module in ("msgspec", "websockets", "transformers", "jinja2"):
    if find_spec(_module) is None:
        raise MissingExtraError(_module, "serve")

from stream2llm_rag.serve.client import RemoteEngine  # noqa: E402 - a missing extra is told of by its name

__all__ = ["RemoteEngine"]

"""Swap: what a preempted request loses on the device is kept in host memory, and copied back when it runs again.

``choice`` says whether, ``books`` what lies where; both are pure. ``connector`` carries the copies that the books ask for to
the workers, through vLLM's own KV connector interface, and ``copies`` makes them there. ``docs/swap.md`` shows how it all goes
together; the scheduler's part is :mod:`stream2llm_rag.engine.scheduler.swapping`.
"""

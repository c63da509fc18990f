"""Streams context into vLLM: sessions, the scheduler behind them, and the engine round both."""

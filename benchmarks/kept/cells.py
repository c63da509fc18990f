"""What a kept simulation belongs to."""

from __future__ import annotations

from typing import Protocol

from stream2llm_rag.simulation.grid import Setting


class Cell(Protocol):
    """Settings whose runs can be compared, and that share a file."""

    @property
    def name(self) -> str:
        """What the file is called."""

    def settings(self) -> list[Setting]:
        """The runs; front end and seed differ."""

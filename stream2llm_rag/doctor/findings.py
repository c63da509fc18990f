"""What a diagnosis consists of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a finding is to be taken, from good to bad."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found and, where it does not fit, how to mend it."""

    check: str
    status: Status
    found: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order in which to read them. There is always one at least."""

    findings: tuple[Finding, ...]

    @property
    def status(self) -> Status:
        """The worst of all findings."""
        return max((finding.status for finding in self.findings), key=list(Status).index)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ``status``, and ``findings`` as a list of dicts with the fields of :class:`Finding`."""
        return {"status": self.status.value, "findings": [asdict(finding) for finding in self.findings]}

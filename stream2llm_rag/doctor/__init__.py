"""What of an installation does not fit, and how to mend it.

:func:`inspect_machine` looks, :func:`diagnose` judges what it saw. Neither imports vLLM or torch, as these may be
what is broken.
"""

from stream2llm_rag.doctor.checks import diagnose
from stream2llm_rag.doctor.findings import Diagnosis, Finding, Status
from stream2llm_rag.doctor.machine import Machine, Package, inspect_machine

__all__ = ["Diagnosis", "Finding", "Machine", "Package", "Status", "diagnose", "inspect_machine"]

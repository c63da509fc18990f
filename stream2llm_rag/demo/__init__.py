"""The demo: one question, answered over live retrieval and then the usual way over the same documents at the same moments.

``documentation`` serves what is crawled, ``corpus`` indexes what is searched (``searching``), ``topics`` says what is asked,
``experiment`` does it, ``comparison`` and ``report`` say what came out.
"""

from stream2llm_rag.demo.comparison import Answers, Comparison, Run, compare, summarize
from stream2llm_rag.demo.documentation import DocumentationServer
from stream2llm_rag.demo.experiment import Experiment, Source, forget_prefixes
from stream2llm_rag.demo.models import ChosenModel, choose_model
from stream2llm_rag.demo.report import Report
from stream2llm_rag.demo.searching import DocumentationIndex
from stream2llm_rag.demo.settings import Settings
from stream2llm_rag.demo.topics import TOPICS, Topic

__all__ = [
    "TOPICS",
    "Answers",
    "ChosenModel",
    "Comparison",
    "DocumentationIndex",
    "DocumentationServer",
    "Experiment",
    "Report",
    "Run",
    "Settings",
    "Source",
    "Topic",
    "choose_model",
    "compare",
    "forget_prefixes",
    "summarize",
]

"""The demo: one question, answered over a live crawl and then the usual way over the same pages at the same moments.

``documentation`` serves what is crawled, ``topics`` says what is asked, ``experiment`` does it, ``comparison`` and ``report``
say what came out.
"""

from stream2llm_rag.demo.comparison import Answers, Comparison, Run, compare, summarize
from stream2llm_rag.demo.documentation import DocumentationServer
from stream2llm_rag.demo.experiment import Experiment, Settings, forget_prefixes
from stream2llm_rag.demo.models import ChosenModel, choose_model
from stream2llm_rag.demo.report import Report
from stream2llm_rag.demo.topics import TOPICS, Topic

__all__ = [
    "TOPICS",
    "Answers",
    "ChosenModel",
    "Comparison",
    "DocumentationServer",
    "Experiment",
    "Report",
    "Run",
    "Settings",
    "Topic",
    "choose_model",
    "compare",
    "forget_prefixes",
    "summarize",
]

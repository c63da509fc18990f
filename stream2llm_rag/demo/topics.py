"""What the demo asks, and where in Python's documentation it starts to look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """A question, and the module whose page the crawl starts from."""

    question: str
    module: str


TOPICS = (
    Topic("How do I cancel an asyncio task?", "asyncio.tasks"),
    Topic("How do I read the output of a subprocess while it runs?", "subprocess"),
    Topic("How do I fetch a page over HTTPS, with a time limit?", "urllib.request"),
    Topic("How do I log to a file that is rotated every night?", "logging"),
    Topic("How do I send several requests over one HTTP connection?", "http.client"),
    Topic("How do I read a single file out of a zip archive?", "zipfile"),
    Topic("How do I write a TCP server that serves many clients at once?", "socketserver"),
    Topic("How do I make a temporary directory that removes itself?", "tempfile"),
    Topic("How do I replace a function by a mock during a test?", "unittest.mock"),
    Topic("How do I send an e-mail over an encrypted connection?", "smtplib"),
    Topic("How do I unpack a tar archive that I do not trust?", "tarfile"),
    Topic("How do I stop in the debugger only when a condition holds?", "pdb"),
    Topic("How do I read settings, with values for those that are missing?", "configparser"),
    Topic("How do I wait for several sockets at once?", "socket"),
    Topic("How do I run the examples of a docstring as tests?", "doctest"),
    Topic("How do I serve a directory over HTTP?", "http.server"),
)

# Pages that the crawl leaves out: lists of links, sources, the built-in types (linked from nearly every page, half a megabyte),
# private modules, and modules whose page says next to nothing.
DENIED = (
    r"/(index|topics|keywords)?(\.html)?$",
    r"/getfile\?",
    r"/builtins\.html",
    r"[/.]_",
    r"/asyncio\.(base_\w+|constants|coroutines|format_helpers|log|mixins|sslproto|trsock)\.html",
    r"/(concurrent|email|email\.mime|fnmatch|genericpath|glob|html|importlib|keyword|linecache|token|urllib)\.html",
)

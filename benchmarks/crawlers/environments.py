"""Sets up the crawlers that are compared with ours: ``python -m benchmarks.crawlers.environments [FOLDER]``.

One virtual environment each, as their dependencies do not fit together with ours, with the extractors in our versions.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

FOLDER = Path("build/crawlers")
PACKAGES = {"scrapy": "scrapy==2.19.0", "crawl4ai": "crawl4ai==0.9.5"}
_EXTRACTORS = ("trafilatura", "lxml_html_clean", "resiliparse")


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of an environment."""
    return folder / name / "bin" / "python"


def set_up(folder: Path) -> None:
    """Make what is missing, and bring what is there to the versions above."""
    wanted = [f"{extractor}=={version(extractor)}" for extractor in _EXTRACTORS]
    for name, package in PACKAGES.items():
        python = python_of(folder, name)
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", package, *wanted], check=True)


def main() -> None:
    set_up(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)


if __name__ == "__main__":
    main()

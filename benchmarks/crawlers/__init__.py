"""The crawlers that ``benchmarks/crawl.py`` compares: programs, each run in its own environment, that print one JSON object."""

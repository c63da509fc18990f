"""The result tables of the Stream2LLM paper (arXiv 2604.16395), simulated: ``make paper``."""

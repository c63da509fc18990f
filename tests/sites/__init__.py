"""Web sites for tests and benchmarks: a library of ordinary pages, and traps that do to a crawler what the web does."""

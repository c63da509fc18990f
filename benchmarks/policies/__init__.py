"""The default policy in other conditions than the paper's, and without one of its parts at a time: ``docs/policies.md``."""

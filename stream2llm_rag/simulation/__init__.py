"""Workloads replayed in virtual time on the real scheduler classes, without a model."""

"""Engines run a model while they capture or intervene: torch hooks for speed and threads, nnsight for research."""

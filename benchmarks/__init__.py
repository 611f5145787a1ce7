"""Measure what this repository demands of its own speed: bars, the engine, and a machine with a GPU."""

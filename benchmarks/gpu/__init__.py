"""Measure, train and import on a machine that has a GPU, for minutes: README.md."""

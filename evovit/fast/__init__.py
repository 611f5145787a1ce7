"""The same numbers as evovit/tokens.py and evovit/scores.py, with less memory or fewer kernels."""

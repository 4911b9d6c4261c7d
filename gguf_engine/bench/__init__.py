"""Measure a model on this machine, record it, compare records."""

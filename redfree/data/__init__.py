"""Datasets: the standard sample, prompts and adapters."""

"""Searches for swaps, from inference alone."""

"""Suites, cells and their execution."""

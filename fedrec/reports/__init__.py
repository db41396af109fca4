"""Renders run records; runs nothing."""

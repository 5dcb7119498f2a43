"""Mixing strategies."""

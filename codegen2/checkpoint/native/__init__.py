"""Packed weights for the native engine."""

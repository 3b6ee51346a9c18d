"""Bundles from and to the places where people keep models."""

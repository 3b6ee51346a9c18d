"""Tests of service/browser."""

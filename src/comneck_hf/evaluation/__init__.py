"""Evaluation: metrics and rate-accuracy measurements from real bytes."""

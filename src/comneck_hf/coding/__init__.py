"""Exact entropy coding: integer networks, integer tables, the table coder and the `.cnk` container."""

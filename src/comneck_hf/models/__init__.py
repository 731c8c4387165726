"""Model families, one folder each, with transformers' file roles."""

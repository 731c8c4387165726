"""LLaVolta: visual tokens are pooled inside the language model."""

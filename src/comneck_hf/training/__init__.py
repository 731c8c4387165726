"""Training: data, zero-shot heads, losses and the stages of the papers."""

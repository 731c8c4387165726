"""The Hugging Face Hub: converting the authors' checkpoints, publishing models with their cards."""

DEFAULT_CLIP = "openai/clip-vit-large-patch14"  # which the authors' necks were trained for


__all__ = ["DEFAULT_CLIP"]

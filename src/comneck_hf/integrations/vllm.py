"""vLLM plugin: makes ComNeck's models known to transformers in every worker process.

vLLM calls `register` through the entry point `vllm.general_plugins` before it loads a model. It serves unmodified
models then with features that were computed outside ([`image_features`]); pooling within the language model
(LLaVolta) needs caches of different lengths per layer, which paged attention does not have.
"""


def register() -> None:
    """Registers all models with transformers' Auto classes. Harmless when repeated."""
    from ..auto import register as register_auto_classes

    register_auto_classes()


__all__ = ["register"]

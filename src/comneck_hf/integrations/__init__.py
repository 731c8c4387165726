"""ComNeck inside other systems: LLaVA models and inference servers."""

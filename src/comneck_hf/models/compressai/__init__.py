"""Any image codec of CompressAI's zoo as a codec of this package."""

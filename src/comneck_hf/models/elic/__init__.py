"""ELIC, the image codec."""

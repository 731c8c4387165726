"""TIC, the image codec of windowed attention."""

"""Tuning a quantized model as a whole: so that it predicts what the original predicts."""

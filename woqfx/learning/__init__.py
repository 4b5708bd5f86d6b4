"""Learning by gradients what quantized weights are rounded to, and what is kept beside them."""

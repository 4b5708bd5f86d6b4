"""Mixed precision: which layers get more bits, measured on data, within a budget."""

"""Layouts, each in a module of its own: from tensors as other programs store them to `QTensor`, and back."""

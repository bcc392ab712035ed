"""Distillation: a small student learns to give the feature maps that a large teacher gives."""

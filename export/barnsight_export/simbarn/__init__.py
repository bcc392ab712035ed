"""The simulated barn: pens, animals and cameras drawn from a seed, with exact truth."""

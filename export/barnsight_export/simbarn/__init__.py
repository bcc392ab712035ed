"""The simulated barn: pens, animals and cameras drawn from a seed, with exact truth (see docs/simulated-barn.md)."""

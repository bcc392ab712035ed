"""Barnsight's service: cameras in, a dependable record of every animal out."""

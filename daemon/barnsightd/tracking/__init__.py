"""Masks in, tracks out: who is where in this session."""

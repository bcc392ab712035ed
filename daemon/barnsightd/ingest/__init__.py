"""Cameras and files in, decoded frames out."""

"""Readers and writers of the data sets that training and evaluation use."""

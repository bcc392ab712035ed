"""The offline half of Barnsight: simulate, train, export and evaluate."""

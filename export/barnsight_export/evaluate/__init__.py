"""How good is it: figures from what was found and what is there; nothing here runs a network or the daemon."""

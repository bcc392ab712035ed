"""How good is it: figures from files alone; nothing here runs a network or the daemon."""

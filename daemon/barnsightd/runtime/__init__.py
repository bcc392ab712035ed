"""What keeps the service alive: scheduler, budget, watchdog, logs, board sensors."""

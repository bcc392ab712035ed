"""What others read: Prometheus metrics and HTTP pages."""

"""What does the service report of itself? Prometheus metrics of the service and of its model, and traces."""

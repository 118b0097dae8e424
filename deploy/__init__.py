"""How a federation is run: natively, with Docker Compose, or on Kubernetes."""

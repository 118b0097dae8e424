"""Deployment of a federation: natively, with Docker Compose, or on Kubernetes."""

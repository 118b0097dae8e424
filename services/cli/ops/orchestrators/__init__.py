"""What runs fedq: Docker Compose, Kubernetes, or processes of this machine; each asked by its own command line."""

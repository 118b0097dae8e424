"""fedq on Kubernetes: manifests for Kustomize, and the Secrets that they require."""

"""Files that deploy a bundle as a web service: Kubernetes manifests and Compose files (ADR 29)."""

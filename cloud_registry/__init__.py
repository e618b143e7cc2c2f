"""The cloud side: models, deployments, devices, trust metadata and telemetry."""

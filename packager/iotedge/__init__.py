"""Deployment manifests for Azure IoT Edge."""

"""An emulator of Azure IoT Hub, its provisioning service and IoT Edge's workload API, for tests on one machine."""

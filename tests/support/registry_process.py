"""The registry as a process of its own for tests: the real application over the real adapters, on a port of its own.

Run as ``python -m tests.support.registry_process DATA_DIR``. Writes the first admin token to ``admin.token`` and, once
it listens, its port to ``port``, both in the data folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from cloud_registry.api.app import create_app
from cloud_registry.assembly import build_services
from cloud_registry.config import RegistryConfig
from cloud_registry.serving import listen


def main(data: Path) -> None:
    """Serve until a signal comes."""
    services = build_services(RegistryConfig(data_dir=data, port=0).check())
    try:
        token = services.operators.create_first_admin()
        if token is not None:
            (data / "admin.token").write_text(token)
        with listen(services.config) as listener:
            (data / "port.new").write_text(str(listener.getsockname()[1]))
            (data / "port.new").replace(data / "port")
            config = uvicorn.Config(
                create_app(services), log_level="warning", lifespan="off", timeout_graceful_shutdown=5
            )
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        services.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

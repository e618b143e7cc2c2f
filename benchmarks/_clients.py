"""Clients of one module, each on a connection that it keeps, until standard input ends.

    python -m benchmarks._clients SOCKET MODEL WIDTH CLIENTS THINK_MS

Prints `ready`, and at the end a JSON object: `requests`, an array of [begin, duration] in milliseconds of the system's
monotonic clock, and `errors`.
"""

import http.client
import json
import socket
import sys
import threading
import time


class _Kept(http.client.HTTPConnection):
    """A connection over a unix socket that never connects again by itself."""

    auto_open = 0

    def __init__(self, path: str) -> None:
        super().__init__("device")
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(path)


def main(path: str, model: str, width: str, clients: str, think_ms: str) -> None:
    """Ask until standard input ends; see the module."""
    is_over = threading.Event()
    requests: list[tuple[float, float]] = []
    errors: list[str] = []
    data = ",".join(["0.5"] * int(width))
    body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,{width}],"data":[{data}]}}]}}'.encode()

    def ask() -> None:
        try:
            connection = _Kept(path)
            while not is_over.wait(int(think_ms) / 1000):
                begun = time.monotonic()
                connection.request("POST", f"/v2/models/{model}/infer", body)
                reply = connection.getresponse()
                reply.read()
                requests.append((begun * 1000, (time.monotonic() - begun) * 1000))
                if reply.status != http.client.OK:
                    errors.append(f"HTTP status {reply.status}")
        except (OSError, http.client.HTTPException) as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=ask) for _ in range(int(clients))]
    for thread in threads:
        thread.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    is_over.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({"requests": requests, "errors": errors}))


if __name__ == "__main__":
    main(*sys.argv[1:])

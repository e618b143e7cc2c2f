"""A PKCS#11 token in software (Debian's softhsm2), in a folder of its own, for processes that a test starts.

The driver reads where its tokens are once a process, so tests use it in children and never in their own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.require import require_program

_DRIVERS = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so")
LABEL = "device"
PIN = "4711"


@dataclass(frozen=True)
class SoftToken:
    """An initialised token.

    Attributes:
        folder: Holds everything.
        driver: The PKCS#11 driver.
        pin_file: Holds the PIN; mode 0600.
    """

    folder: Path
    driver: Path
    pin_file: Path

    @property
    def environment(self) -> dict[str, str]:
        """For processes that use the token; it names no PIN."""
        return {**os.environ, "SOFTHSM2_CONF": str(self.folder / "softhsm2.conf")}

    def uri(self, *, label: str = "lighterman", pin_file: Path | None = None) -> str:
        """A key on it."""
        return (
            f"pkcs11:token={LABEL};object={label}?module-path={self.driver}&pin-source=file:{pin_file or self.pin_file}"
        )

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let children of this process find the token."""
        monkeypatch.setenv("SOFTHSM2_CONF", self.environment["SOFTHSM2_CONF"])


def make_token(folder: Path) -> SoftToken:
    """Initialise a token below a folder; skips the test where there is no SoftHSM."""
    tool = require_program("softhsm2-util")
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed: pip install 'lighterman[hsm]'")
    driver = next((Path(path) for path in _DRIVERS if Path(path).is_file()), None)
    if driver is None:
        pytest.skip("the driver of softhsm2 is not where it is expected")
    (folder / "tokens").mkdir(parents=True)
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    pin_file = folder / "pin"
    pin_file.write_text(f"{PIN}\n")
    pin_file.chmod(0o600)
    token = SoftToken(folder, driver, pin_file)
    command = [tool, "--init-token", "--free", "--label", LABEL, "--so-pin", "87654321", "--pin", PIN]
    subprocess.run(command, env=token.environment, check=True, capture_output=True, timeout=30)
    return token


def run_python(program: str, arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run a piece of Python in a child that may use the token; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

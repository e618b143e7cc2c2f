"""Metrics follow the conventions of Prometheus."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud_registry.metrics import RegistryMetrics, render


def busy() -> RegistryMetrics:
    """Metrics with every series in use."""
    metrics = RegistryMetrics()
    metrics.messages.labels("telemetry", "taken").inc()
    metrics.samples.labels("stored").inc(3)
    metrics.files.inc()
    metrics.conflicts.inc()
    metrics.store_failures.labels("report").inc()
    metrics.flush_seconds.observe(0.02)
    metrics.is_link_up.labels("telemetry").set(1)
    metrics.is_blocked.labels("telemetry").set(0)
    metrics.lake_bytes.set(10_000)
    metrics.lake_files.set(2)
    metrics.swept_files.inc()
    metrics.queries.labels("answered").inc()
    metrics.query_seconds.observe(0.3)
    metrics.requests.labels("GET", "2xx").inc()
    metrics.request_seconds.observe(0.01)
    return metrics


def test_what_happened_can_be_read_back() -> None:
    text, content_type = busy().render()
    assert content_type.startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert families["lighterman_collector_samples"].samples[0].value == 3
    assert families["lighterman_lake_size_bytes"].samples[0].value == 10_000


def test_the_process_has_one_set_and_shows_it() -> None:
    assert b"lighterman_lake_files" in render()[0]


def test_promtool_finds_nothing_to_complain_of() -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed, and Debian's prometheus is a lot for one check")
    done = subprocess.run([program, "check", "metrics"], input=busy().render()[0], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

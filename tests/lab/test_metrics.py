"""--metrics: Prometheus scrapes a running service, of one process or of several."""

import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab.netns import Lab
from lab.scenes import line_of_three
from tests.running import bridge

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("workers", ["1", "2"])
def test_frames_that_pass_are_counted_for_prometheus(lab: Lab, workers: str) -> None:
    client, middle, _ = line_of_three(lab)
    where = lab.dir / "metrics.sock"
    options = ("--iface", "vmnet1", "--uplink", "eth0", "--workers", workers, "--metrics", f"unix:{where}")
    with bridge(lab, middle, *options) as running:
        client.run("ping", "-c3", "-i0.1", "-W5", "-q", "10.9.0.2")
        with socket.socket(socket.AF_UNIX) as scrape, scrape.makefile("rb") as answer:
            scrape.connect(str(where))
            scrape.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
            text = answer.read().decode().partition("\r\n\r\n")[2]
        found = {
            (sample.name, sample.labels.get("link"), sample.labels.get("direction")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert found["vtl_link_frames_total", "vmnet1", "in"] >= 3
        assert found["vtl_link_bytes_total", "eth0", "out"] >= 3 * 98
        assert found["vtl_link_up", "vmnet1", None] == 1
        assert running.status()["links"][0]["rx_frames"] >= 3
    assert not where.exists()

"""The object store fails under a running job: retried within the deadline, and nothing wrong is folded."""

from typing import Any

import pytest

from tests.faults.federation import Federation, Row
from tests.faults.s3_proxy import S3Proxy
from tests.harness import until

#: What happens to which requests; the trainers' and the aggregator's all pass the proxy.
FAULTS: dict[str, list[dict[str, Any]]] = {
    "503 in bursts": [{"method": "*", "key": "", "status": 503, "times": 30, "skip": 20}],
    "a stall beyond the time-out": [{"method": "PUT", "key": "rounds/0002/updates", "stall": 5.0, "times": 2}],
    "a reset in mid-upload": [{"method": "PUT", "key": "rounds/000[23]/updates", "reset_request": 700, "times": 3}],
    "the reply lost after the upload completed": [
        {"method": "PUT", "key": "rounds/0002/updates", "lose_reply": True, "times": 2},
        {"method": "PUT", "key": "rounds/0003/model-", "lose_reply": True},
        {"method": "PUT", "key": "rounds/0002/manifest", "lose_reply": True},
    ],
    "downloads cut short": [
        {"method": "GET", "key": "rounds/0002/updates", "truncate": 500, "times": 2},
        {"method": "GET", "key": "rounds/0001/model-", "truncate": 500, "honest": False},
    ],
    "wrong bytes on the way down": [
        {"method": "GET", "key": "rounds/0002/updates", "flip_response": 900, "times": 2},
        {"method": "GET", "key": "rounds/0001/model-", "flip_response": 900},
    ],
    "full for a while": [{"method": "PUT", "key": "rounds/000[23]", "status": 507, "times": 6}],
}  # fmt: skip


@pytest.mark.row("object store: {}", "P1 P2 P3 P7")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_store_costs_time_and_nothing_else(federation: Federation, row: Row, fault: str) -> None:
    """The same digests, and what did not match its digest was never counted."""
    digests = federation.undisturbed()
    federation.stop(*federation.pool)
    with S3Proxy(federation.servers.stack.s3.url) as proxy:
        federation.settings |= {"FEDQ_S3_URL": proxy.url, "FEDQ_CACHE_DIR": str(federation.logs / "empty")}
        federation.trainers(2)
        federation.aggregator()
        rules = [proxy.rule(**rule) for rule in FAULTS[fault]]
        job = federation.submit()
        until(lambda: any(rule.fired for rule in rules), 60, fault, detail=federation.tails)
        row.fire(fault)
        federation.ended(job, 120)
        row.recovered()
        proxy.assert_fired()
        federation.holds(job, digests)
        federation.stop()


@pytest.mark.row("object store: an update garbled on its way up", "P1 P7")
def test_a_garbled_update_is_left_out_with_the_reason(federation: Federation, row: Row) -> None:
    """The store keeps what came; its reader sees that it is not what was announced."""
    federation.stop(*federation.pool)
    with S3Proxy(federation.servers.stack.s3.url) as proxy:
        federation.trainers(2, FEDQ_S3_URL=proxy.url)
        federation.aggregator()
        rule = proxy.rule("PUT", "rounds/0001/updates/client-1", flip_request=1000, times=None)
        job = federation.submit(rounds={"count": 1, "minimum": 3, "deadline": "8s"})
        record = federation.ended(job)
        row.fire(f"{rule.fired} uploads garbled")
        assert rule.fired
        assert record.status == "finished", record.detail
        manifest = federation.servers.blobs().get_json(f"jobs/{job}/rounds/0001/manifest.json")
        row.recovered()
        federation.stop()

    assert "client-1" not in [update["client"] for update in manifest["updates"]]
    assert "digest" in manifest["rejected"]["client-1"]

"""SeaweedFS as the S3 server: one process with master, volume, filer and gateway inside."""

import io
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

import urllib3
from minio import Minio
from minio.error import MinioException

from deploy.native.server import Server
from deploy.native.state import write_private
from shared import names

BUCKET = "fedq"
ANSWER_SECONDS = 3.0  #: limit for one request to a server that is ready

#: The rights of each key: a trainer reads the bucket and writes only updates.
ACTIONS = {
    "operator": ["Admin"],
    "trainer": [
        f"Read:{BUCKET}",
        f"List:{BUCKET}",
        *(f"Write:{BUCKET}/{keys}" for keys in names.TRAINER_WRITES),
    ],
}


class SeaweedFS(Server):
    name = "seaweedfs"
    #: Short, because the filer waits 15 s for a subscriber that is itself. Acknowledged data is already on disk.
    grace = 0.5
    port_names = (
        "s3", "s3_grpc", "filer", "filer_grpc", "volume", "volume_grpc", "master", "master_grpc",
    )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.state.ports['s3']}"

    def keys(self, user: str) -> tuple[str, str]:
        """The access key and the secret key of a user."""
        return user, self.state.secret(f"s3-{user}")

    def configure(self) -> None:
        (self.directory / "data").mkdir(exist_ok=True)
        identities = []
        for user, actions in ACTIONS.items():
            access, secret = self.keys(user)
            pair = {"accessKey": access, "secretKey": secret}
            identities.append({"name": user, "credentials": [pair], "actions": actions})
        write_private(self.directory / "s3.json", json.dumps({"identities": identities}, indent=2))

    def command(self) -> Sequence[str | Path]:
        ports = self.ports
        return [
            self.programs.weed,
            "-logtostderr=true",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-dir=data",
            f"-master.port={ports['master']}",
            f"-master.port.grpc={ports['master_grpc']}",
            "-master.peers=none",  # a single master needs no election
            "-master.telemetry=false",
            # Volumes grow as they fill up; once a third of a volume is deleted, a vacuum frees the space. A bucket
            # begins with seven volumes, and the free disk space limits their number, so each volume is small.
            "-master.volumeSizeLimitMB=128",
            "-master.vacuumIntervalSeconds=60",
            f"-volume.port={ports['volume']}",
            f"-volume.port.grpc={ports['volume_grpc']}",
            "-volume.max=0",  # 0 means as many as the disk holds
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={ports['filer']}",
            f"-filer.port.grpc={ports['filer_grpc']}",
            "-filer.localSocket=filer.sock",
            "-s3",
            f"-s3.port={ports['s3']}",
            f"-s3.port.grpc={ports['s3_grpc']}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.localSocket=s3.sock",
            "-s3.config=s3.json",
        ]

    def environment(self) -> dict[str, str]:
        return {"GOMEMLIMIT": "1GiB"}  # without a limit, caches take twice that and make nothing faster

    def stop(self) -> None:
        super().stop()
        self._remove_sockets()

    def kill(self) -> None:
        super().kill()
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        """Removes the sockets that SeaweedFS creates whatever its flags say, and that a crash leaves behind."""
        for part in ("s3", "filer", "volume", "master"):
            port = self.state.ports.get(f"{part}_grpc")
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108

    def serves(self) -> bool:
        """Returns whether an object can be written, read and removed; creates the bucket if it is missing.

        Listing buckets works before any volume accepts data, so it proves nothing; while the filer elects a leader,
        no request is answered.
        """
        access, secret = self.keys("operator")
        pool = urllib3.PoolManager(retries=False, timeout=ANSWER_SECONDS)
        client = Minio(
            f"127.0.0.1:{self.state.ports['s3']}", access, secret,
            secure=False, region="us-east-1", http_client=pool,
        )  # fmt: skip
        key, content = names.trial_blob(self.name), secrets.token_bytes(16)
        try:
            if not client.bucket_exists(BUCKET):
                client.make_bucket(BUCKET)
            client.put_object(BUCKET, key, io.BytesIO(content), len(content))
            found = client.get_object(BUCKET, key).data
            client.remove_object(BUCKET, key)
        except (MinioException, urllib3.exceptions.HTTPError):
            return False
        finally:
            pool.clear()
        return bool(found == content)

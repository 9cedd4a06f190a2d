"""A real S3 server on this machine, found through the environment as a worker process would find one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import boto3
import fsspec
import moto.server
import pytest


@contextlib.contextmanager
def s3_bucket(name: str) -> Iterator[str]:
    """The URL of a new bucket, while the server runs."""
    server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    # Clients are kept by their arguments, which do not say what the environment was.
    clients = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        clients.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"
    clients.clear_instance_cache()
    server.stop()

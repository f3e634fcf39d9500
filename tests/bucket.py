"""A bucket of Google Cloud Storage: an emulator on loopback stands in for it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

from zeroseg_jax import lease

EMULATOR = """
import sys
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import HANDLERS, create_server

original = objects.download

def download(request, response, storage):
    # the store knows Range: bytes=-1000, the last 1000 bytes, as ArrayRecord asks for them; the emulator does not
    last = request.get_header("range", "").removeprefix("bytes=-")
    if last.isdecimal():
        whole = storage.get_file(request.params["bucket_name"], request.params["object_id"])
        request._request_handler.headers.replace_header("range", f"bytes={max(len(whole) - int(last), 0)}-")
    original(request, response, storage)

objects.download = download
for _, by_method in HANDLERS:
    if by_method.get("GET") is original:
        by_method["GET"] = download

create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
sys.stdin.read()  # until the test ends
import os
os._exit(0)
"""


@contextmanager
def emulated_bucket() -> Iterator[str]:
    """The address of a bucket. The environment leads the three clients to it, also those of subprocesses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-c", EMULATOR, str(port)], stdin=subprocess.PIPE, **silent)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
            patch.setenv(name, f"http://127.0.0.1:{port}")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "test")
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        patch.setenv("ZEROSEG_LEASE_SECONDS", "0.5")
        patch.setattr(lease, "RENEW_SECONDS", 0.5)
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None
                time.sleep(0.1)
        fsspec.filesystem("gs").clear_instance_cache()
        yield "gs://bucket"
    server.kill()
    server.wait()

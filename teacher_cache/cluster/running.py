"""The workers of a Dask cluster that is running already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client
from distributed.comm.addressing import get_address_host_port

from pipeline.devices import resolve_device
from pipeline.errors import InputError
from teacher_cache.cluster.sharing import Crew

TIMEOUT = 30.0


@contextmanager
def running_crew(address: str) -> Iterator[Crew]:
    """Connects, and leaves the cluster as it was.

    Args:
        address: host:port of the scheduler, or its scheduler file.

    Raises:
        InputError: no scheduler answers there.
    """
    try:
        client = Client(_address(address), timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--scheduler: expected the address or file of a running Dask scheduler, found"
            f" {address} ({' '.join(str(error).split())[:160]})"
        ) from None
    with client:
        yield Crew(client, lambda left: None)


def workers_device(address: str, say: Callable[[str], None]) -> str:
    """Where models run on the cluster's workers: "cpu" or "cuda".

    Args:
        address: host:port of the scheduler, or its scheduler file.
        say: told when there is no worker to ask yet.

    Raises:
        InputError: no scheduler answers there.
    """
    with running_crew(address) as crew:
        if not crew.client.nthreads():
            say(f"{address}: waiting for the cluster's first worker")
            crew.client.wait_for_workers(1)
        return crew.client.submit(_device, pure=False).result()


def _device() -> str:
    return resolve_device("auto").type


def _address(text: str) -> str:
    """The address itself, or what the scheduler's file says.

    Raises:
        ValueError: neither.
    """
    if Path(text).is_file():
        found = json.loads(Path(text).read_text())
        if not isinstance(found, dict) or not isinstance(found.get("address"), str):
            raise ValueError("the file names no address")
        text = found["address"]
    # A client that was never connected takes a minute to go.
    get_address_host_port(text)
    return text

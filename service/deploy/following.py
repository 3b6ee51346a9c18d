"""A replica follows what was deployed on another: it asks the database every couple of seconds."""

import asyncio
import time
from typing import Protocol

import structlog

from service.contract.bundle import BundleError
from service.deploy.deployments import Deployment, Deployments
from service.errors import TailGuardError
from service.observe.metrics import Metrics

POLL_S = 2.0
RETRY_S = 30.0  # after a bundle that could not be loaded: it may be on its way to this machine

log = structlog.get_logger()


class Replica(Protocol):
    """What follows; service.runtime.Runtime does."""

    deployments: Deployments
    metrics: Metrics

    @property
    def deployed_row(self) -> int: ...

    async def follow(self, deployment: Deployment) -> None: ...


async def follow(replica: Replica) -> None:
    """For as long as the task is not cancelled. A database that is away changes nothing."""
    failed, again_at, unread = 0, 0.0, False
    while replica.deployments.shared:
        await asyncio.sleep(POLL_S)
        try:
            last = await asyncio.to_thread(replica.deployments.last)
            unread = False
        except Exception as error:  # each driver has its own
            if not unread:
                log.warning("what is deployed cannot be read: the bundle in force stays", error=str(error))
            unread = True
            continue
        if last is None or last.row <= replica.deployed_row or (last.row == failed and time.monotonic() < again_at):
            continue
        try:
            await replica.follow(last)
        except (BundleError, TailGuardError) as error:
            failed, again_at = last.row, time.monotonic() + RETRY_S
            replica.metrics.deployment_failed.set(1)
            log.error("what was deployed cannot be loaded here: the bundle in force stays", error=str(error))

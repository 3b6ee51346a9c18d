"""service/deploy/deployments.py: what is deployed is written down, or the person who waits for it is told."""

import threading
from contextlib import closing
from pathlib import Path

from service.contract import bundle
from service.deploy.deployments import Deployments
from service.ledger import schema
from service.ledger.database import LOCK_S, connect


def test_a_deployment_waits_for_another_transaction(where: str, tiny_bundle: Path) -> None:
    """It gave up after a second, which a busy machine takes to commit: promote was answered 503, once in many."""
    deployments, holding, release = Deployments(where, tiny_bundle), threading.Event(), threading.Event()
    with closing(connect(where)) as database:
        schema.prepare(database)

    def hold() -> None:
        with closing(connect(where)) as database, database.transaction():
            holding.set()
            release.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert holding.wait(60)
    timer = threading.Timer(LOCK_S + 0.5, release.set)
    timer.start()
    made = deployments.append("swap", tiny_bundle, bundle.read(tiny_bundle), None, {})
    assert release.is_set()
    other.join()
    assert deployments.last() == made
    deployments.close()

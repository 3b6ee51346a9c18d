"""Have nothing of a request's images kept: file, thumbnail, embedding and labels go, the decision stays and is counted.

A decision without them says which class was predicted when, and nothing of the picture. Its labels count no longer.
"""

from service.errors import Forbidden, NotFound
from service.ledger.database import Database
from service.ledger.images import KeptImages
from service.ledger.labels import Labeller
from service.ledger.rows import Forget, Written

SELECT = """SELECT row, api_key, image_key, COALESCE(length(image), 0) + COALESCE(length(embedding), 0)
    FROM decisions WHERE """
BY_REQUEST_ID = SELECT + "request_id = ?"
BY_CLIENT_ID = SELECT + "client_id = ? AND (? OR COALESCE(api_key, '') = ?)"
CLEAR = """UPDATE decisions SET image = NULL, image_key = NULL, embedding = NULL, sampled = 0, sample_rate = NULL,
    keep_probability = NULL WHERE row = ?"""


def forget(database: Database, images: KeptImages, labeller: Labeller, given: Forget, written: Written) -> int:
    """Forget all images of a request, by the service's id, or of all requests with that id of the client's; how many.

    Within a transaction. Raises NotFound, and Forbidden for what another key has sent unless `may_review`.
    """
    rows = database.fetch(BY_REQUEST_ID, (given.request_id,))
    if any((api_key or "") != (given.key or "") for _, api_key, _, _ in rows) and not given.may_review:
        raise Forbidden(
            f"request {given.request_id} was sent with another API key: send that key, or one that has the review role"
        )
    rows = rows or database.fetch(BY_CLIENT_ID, (given.request_id, given.may_review, given.key or ""))
    if not rows:
        raise NotFound(f"the ledger holds no image of request {given.request_id}: nothing of it is kept")
    for row, *_ in rows:
        database.execute(CLEAR, (row,))
        labeller.forget(row, written)
        database.execute("DELETE FROM review_groups WHERE decision_row = ?", (row,))
    database.execute("UPDATE ledger SET bytes = bytes - ?", (sum(size for *_, size in rows),))
    written.leaving.extend(images.release([key for _, _, key, _ in rows if key is not None]))
    return len(rows)

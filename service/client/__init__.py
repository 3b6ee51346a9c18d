"""How does a program ask the service? A typed client, for blocking and for asyncio code, on httpx.

    with Client("http://127.0.0.1:8000", key=KEY) as client:
        answer = client.classify("photo.jpg")
        for item in client.classify_batch(Path("photos").glob("*.jpg")):
            print(item.file, item.answer.decision if item.answer else item.problem.detail)
        client.feedback(answer.request_id, "cat")

`AsyncClient` has the same methods to await. Both need httpx: pip install '.[client]' in a checkout.
"""

from service.client.calls import Batching, Image, Retries
from service.client.clients import AsyncClient, Client
from service.client.errors import ClientError, ProblemError, Unreachable

__all__ = ["AsyncClient", "Batching", "Client", "ClientError", "Image", "ProblemError", "Retries", "Unreachable"]

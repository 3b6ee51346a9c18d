"""Ends with 0 when the service in this container is ready; run by HEALTHCHECK."""

import http.client
import os
import sys

host = os.environ.get("TAILGUARD_HOST", "127.0.0.1")
address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
connection = http.client.HTTPConnection(address, int(os.environ.get("TAILGUARD_PORT", "8000")), timeout=2)
connection.request("GET", "/health/ready")
sys.exit(connection.getresponse().status != 200)

"""How does the service speak HTTP? The application, its process, and all that stands between a socket and a route."""

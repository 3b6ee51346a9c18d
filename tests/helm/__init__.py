"""The Helm chart, linted and rendered by the real helm: schemas, manifests, settings, and what is refused."""

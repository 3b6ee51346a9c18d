"""The images, the compose stack and the Kubernetes manifests: linted, checked against schemas, built and run."""

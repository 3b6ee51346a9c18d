# Training on a GPU: docker build -t tailguard-training:0.1.0 -f docker/training.Dockerfile .
#
#   docker run --rm --gpus all --shm-size 1g -v "$PWD/data:/data:ro" -v "$PWD/runs:/runs" \
#       tailguard-training:0.1.0 train --dataset digits --out /runs/digits
#
# torch's wheel for Linux brings CUDA, so the host needs only NVIDIA's driver and container toolkit.
# pip's settings come as --secret id=pip,src=pip.conf.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv --without-pip /opt/venv
COPY docker/constraints.txt pyproject.toml LICENSE NOTICE ./
# Without the code, so that a change of it does not install the dependencies again.
RUN touch README.md && mkdir service training
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt ".[cpu,train,parquet]"

FROM ${PYTHON} AS training
RUN groupadd --gid 10001 tailguard \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin tailguard \
    && install -d -o 10001 -g 10001 /runs
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /opt/venv /opt/venv
COPY service /app/service
COPY training /app/training
WORKDIR /app
USER 10001:10001
# A training run is no server: there is nothing to ask about its health.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="TailGuard training" \
      org.opencontainers.image.description="Trains, evaluates, calibrates and exports TailGuard's bundles" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

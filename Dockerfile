# The service's image. The cpu target is the default; the gpu target adds CUDA and cuDNN as wheels.
#
#   docker build -t tailguard:0.1.0-cpu .
#   docker build -t tailguard:0.1.0-gpu --target gpu .
#
# An index or a certificate that pip needs comes as a file with its settings and stays out of the image:
# --secret id=pip,src=pip.conf. Another bundle is baked in with --build-arg BUNDLE=models/NAME/VERSION, or mounted over
# /mnt/models when the container starts.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv --without-pip /opt/venv
COPY docker/constraints.txt docker/constraints-gpu.txt pyproject.toml LICENSE NOTICE ./
# Without the code: this layer hangs on the dependencies alone, so a change of the code does not install them again.
RUN touch README.md && mkdir service

FROM build AS dependencies-cpu
ARG EXTRAS=otel,postgres,heif
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt ".[cpu,${EXTRAS}]" \
    && find /opt/venv -path '*/numpy/*' -type d -name tests -prune -exec rm -r {} +

FROM build AS dependencies-gpu
ARG EXTRAS=otel,postgres,heif
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt -c constraints-gpu.txt \
        ".[gpu,${EXTRAS}]" "onnxruntime-gpu[cuda,cudnn]" \
    && find /opt/venv -path '*/numpy/*' -type d -name tests -prune -exec rm -r {} +

FROM build AS code
COPY service /app/service
# The root file system is read-only when it runs, so what is not compiled here is compiled at every start.
RUN python -m compileall -q /app

FROM ${PYTHON} AS runtime
RUN groupadd --gid 10001 tailguard \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin tailguard \
    && install -d -o 10001 -g 10001 /var/lib/tailguard /keys /keys/service /keys/prometheus /keys/grafana /keys/people
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TAILGUARD_BUNDLE=/mnt/models TAILGUARD_HOST=0.0.0.0 TAILGUARD_LOG_FORMAT=json
COPY docker/healthcheck.py /opt/healthcheck.py
ARG BUNDLE=models/cifar10-lt/2
COPY ${BUNDLE} /mnt/models
WORKDIR /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-IS", "/opt/healthcheck.py"]
# Python as the first process: it handles TERM itself (drain) and has no children to wait for.
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="TailGuard" \
      org.opencontainers.image.description="An image classifier for long-tailed data that says 'I don't know'" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS gpu
ENV TAILGUARD_PROVIDER=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies-gpu /opt/venv /opt/venv
COPY --from=code /app /app

FROM runtime AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
COPY --from=code /app /app

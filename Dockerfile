# Foretell's two images: `docker build --target gateway .` and `--target processor .`; `make images` builds both.
#
# The base is pinned by version. Who mirrors images and wants it byte for byte says so when building:
# --build-arg PYTHON=python:3.11-slim-bookworm@sha256:...
ARG PYTHON=python:3.11-slim-bookworm

# -- what both build on: an unprivileged user, and Python that writes nothing
FROM ${PYTHON} AS base
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin foretell
ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /app

# -- packages, by hash; every one of them is a wheel, so no compiler is needed even here
FROM base AS gateway-packages
COPY requirements/gateway.txt .
RUN python -m pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes \
        --prefix /packages -r gateway.txt

FROM base AS processor-packages
COPY requirements/processor.txt .
RUN python -m pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes \
        --prefix /packages -r processor.txt

# -- sources: readable by everybody whatever the checkout's umask was, compiled because nothing is written later
FROM base AS sources
COPY common /app/common
COPY gateway /app/gateway
COPY processor /app/processor
COPY examples /app/examples
RUN chmod -R a+rX /app && python -m compileall -q /app

# -- the gateway carries no model and no library for one
FROM base AS gateway
LABEL org.opencontainers.image.title="foretell-gateway" \
      org.opencontainers.image.description="Foretell's HTTP and WebSocket API."
COPY --from=gateway-packages /packages /usr/local
COPY --from=sources /app/common /app/common
COPY --from=sources /app/gateway /app/gateway
USER 10001:10001
ENV PORT=8080
EXPOSE 8080
# alive, not ready: while Redis is away a restart would help nobody, and cut off every client
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-m", "common.http.healthcheck", "gateway", "/livez"]
ENTRYPOINT ["python", "-m", "gateway"]

# -- the processor, and the base of a user's own image: see examples/own_model
FROM base AS processor
LABEL org.opencontainers.image.title="foretell-processor" \
      org.opencontainers.image.description="Runs a prediction model for Foretell."
COPY --from=processor-packages /packages /usr/local
COPY --from=sources /app/common /app/common
COPY --from=sources /app/processor /app/processor
COPY --from=sources /app/examples /app/examples
USER 10001:10001
ENV PROBE_PORT=8081
EXPOSE 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-m", "common.http.healthcheck", "processor", "/livez"]
ENTRYPOINT ["python", "-m", "processor"]

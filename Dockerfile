# The server, without torch, its kernels compiled while the image is built.
# deploy/README.md says how it is built and run.
# BASE may be any Debian-like image with Python 3.11 or newer and its venv module.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/deltaspot
COPY . .
# A wheel, not an editable checkout; versions are those that the tests ran with.
RUN /opt/deltaspot/bin/pip install --no-cache-dir --constraint .ci/constraints.txt ".[server,otel]" \
    && /opt/deltaspot/bin/pip uninstall --yes pip setuptools
# The kernels' cache is bound to this kind of processor; on another one they are compiled again at start (see below).
# It is filed under the folder of its sources too: -P, so that they are the installed ones and not those in /src.
ENV NUMBA_CACHE_DIR=/opt/deltaspot/kernels
RUN ["/opt/deltaspot/bin/python", "-P", "-c", "from models.checkpoint import load_checkpoint, shipped_path; from models.network import Network; Network(load_checkpoint(shipped_path())).warm_up()"]

FROM ${BASE}
LABEL org.opencontainers.image.title="deltaspot" \
      org.opencontainers.image.description="Streaming keyword spotting that computes only what changed" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin deltaspot
COPY --from=build /opt/deltaspot /opt/deltaspot
COPY --chmod=755 deploy/entrypoint.sh /usr/local/bin/entrypoint
# Numba writes beside what it reads, so the cache is copied to /tmp, which may be the only writable place.
ENV PATH=/opt/deltaspot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/tmp/kernels \
    DELTASPOT_HOST=0.0.0.0 \
    DELTASPOT_PORT=8770 \
    DELTASPOT_LOG_FORMAT=json
USER 10001
EXPOSE 8770
STOPSIGNAL SIGTERM
# It asks where the server listens, in the way that it does; a certificate for its name in the world is not for this one.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; e = os.environ.get; r.build_opener(r.ProxyHandler({}), r.HTTPSHandler(context=ssl._create_unverified_context())).open('http%s://127.0.0.1:%s/healthz' % ('s' * bool(e('DELTASPOT_TLS_CERT')), e('DELTASPOT_PORT') or 8770), timeout=2)"]
ENTRYPOINT ["entrypoint"]
CMD ["serve"]

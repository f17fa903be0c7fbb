# One image for every part: `docker run IMAGE ingress`, `… consume order-state`, `… topics apply`. It carries neither the local
# broker nor its Java runtime (the extra `local`). deploy/smoke.sh proves it on this Python; there are wheels for 3.12 and 3.13 too.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/kinguin-streams
RUN pip install --no-cache-dir --root-user-action=ignore uv==0.13.9
WORKDIR /src
# Dependencies are a layer of their own, so that a change of code does not fetch them again. uv takes the versions from
# tool.uv.constraint-dependencies of this pyproject.toml; deploy/smoke.sh compares what was installed with them.
COPY pyproject.toml ./
RUN uv venv --python python3 "$VIRTUAL_ENV" && uv pip install --requirements pyproject.toml \
    --extra registry --extra postgres --extra granian --extra otel
COPY README.md CHANGELOG.md LICENSE ./
COPY cli cli
COPY cluster cluster
COPY consumers consumers
COPY ingress ingress
COPY replay replay
COPY schemas schemas
COPY simulator simulator
COPY telemetry telemetry
COPY kinguin_streams kinguin_streams
# The wheel is built from the sdist, as a release is: a file that one of them misses is missing here too.
RUN uv build --out-dir /dist && uv pip install --no-deps /dist/*.whl && uv pip check

FROM python:${PYTHON_VERSION}-slim
ARG PYTHON_VERSION
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kinguin-streams" \
      org.opencontainers.image.description="Kinguin webhooks to Kafka: ingress and consumers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="python:${PYTHON_VERSION}-slim"
# A number, so that an orchestrator can see that it is not root without reading /etc/passwd. A volume that is made for
# /var/lib/kinguin-streams takes over the folder's owner; nothing else is ever written, so the root may be read-only.
RUN groupadd --system --gid 10001 streams \
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/kinguin-streams --no-create-home --shell /usr/sbin/nologin streams \
 && install -d -o 10001 -g 10001 -m 0750 /var/lib/kinguin-streams
COPY --from=build /opt/kinguin-streams /opt/kinguin-streams
# Inside a container, webhooks and probes have to be listened for on every address. The ingress refuses to
# start without a volume: what it has answered 204 while Kafka was away must outlive the container.
ENV PATH=/opt/kinguin-streams/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KINGUIN_INGRESS__HOST=0.0.0.0 \
    KINGUIN_CONSUMER__ADMIN_HOST=0.0.0.0 \
    KINGUIN_LOCAL__DATA_DIR=/var/lib/kinguin-streams \
    KINGUIN_SPOOL__PATH=/var/lib/kinguin-streams/spool \
    KINGUIN_SPOOL__REQUIRE_DURABLE=true
WORKDIR /var/lib/kinguin-streams
USER 10001:10001
EXPOSE 8080 8081 8082
STOPSIGNAL SIGTERM
# For the ingress: ready is what /readyz says. A consumer needs a check of its own, see docker-compose.yml.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('KINGUIN_INGRESS__ADMIN_PORT', 8081)), timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["kinguin-streams"]
CMD ["ingress"]

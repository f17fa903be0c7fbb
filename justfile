# One command for each job; `just` alone lists them. Everything also works without just: the lines below are what it runs.

_:
    @just --list --unsorted

# install everything for development, and the hooks that run before a commit
setup:
    uv sync
    uv run pre-commit install

# Kafka, ingress, consumers and a sender on this machine, for half a minute
up *arguments='--simulate 50 --for 30s':
    uv run kinguin-streams up {{arguments}}

# the everyday tests; `just test tests/schemas` runs a part
test *arguments:
    uv run pytest -n 2 {{arguments}}

# the long fault runs: kills, stalls and full disks, over and over
faults *arguments:
    uv run pytest -m faults {{arguments}}

# format and lint; mends what can be mended
lint:
    uv run ruff format
    uv run ruff check --fix

# types and layers
types:
    uv run mypy --strict -p kinguin_streams
    uv run mypy --strict tests examples
    MYPYPATH=benchmarks uv run mypy --strict benchmarks/*.py
    uv run lint-imports
    uv run deptry .

# all that CI checks
check:
    .ci/run

# docs/asyncapi.json and docs/openapi.json, from the schemas, topics and routes that the program runs on
documents:
    uv run kinguin-streams schemas export --format asyncapi --output docs/asyncapi.json
    uv run kinguin-streams schemas export --format openapi --output docs/openapi.json

# the benchmarks, each against a baseline in the same run
bench:
    uv run python benchmarks/ingress.py
    uv run python benchmarks/consumers.py
    uv run python benchmarks/codec.py
    uv run python benchmarks/replay.py
    uv run python benchmarks/rebuild.py

# build the container image
image tag='kinguin-streams:local':
    docker build --tag {{tag}} --build-arg VERSION="$(uv version --short)" --build-arg REVISION="$(git rev-parse HEAD)" .

# prove docker-compose.yml from nothing
smoke:
    deploy/smoke.sh

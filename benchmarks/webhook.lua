-- A new order.status webhook a request, so that nothing is a duplicate; one JSON line at the end.
local run = os.getenv("BENCH_RUN")
local statuses = { "processing", "completed", "canceled", "refunded" }
local number = 0
local headers = {
  ["Content-Type"] = os.getenv("BENCH_CONTENT_TYPE"),
  ["X-Event-Name"] = "order.status",
  ["X-Event-Secret"] = os.getenv("BENCH_SECRET"),
}

function request()
  number = number + 1
  local body = string.format(
    '{"orderId":"%s%08d","orderExternalId":"AL2FEEHOO2OHF","status":"%s","updatedAt":"2026-10-16T11:24:%02d.%03d+00:00"}',
    run, number, statuses[number % 4 + 1], number % 60, number % 1000)
  return wrk.format("POST", "/webhooks", headers, body)
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"not_2xx":%d,"failed":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end

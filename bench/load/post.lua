-- For wrk: posts the body given as its argument, and prints one line of JSON at the end.
function init(args)
  wrk.method = "POST"
  wrk.body = args[1]
  wrk.headers["Content-Type"] = "application/json"
end

function done(summary, latency)
  local e = summary.errors
  print(string.format(
    '{"requests":%d,"us":%d,"p99":%d,"errors":%d}',
    summary.requests, summary.duration, latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout
  ))
end

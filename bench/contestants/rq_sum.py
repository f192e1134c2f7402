"""RQ on Redis, in Python. `rq_sum.py end-to-end <n>` prints one line of JSON, as contestant.ts does.

Jobs are added by `enqueue_many`. Workers are SimpleWorkers, one a core, each in a process of its own: they do not fork for every job, which
its documentation names as the faster way. Results: kept in Redis for 500 s, its default.
"""
import json
import os
import resource
import subprocess
import sys
import time

import redis
from rq import Queue, SimpleWorker

URL = os.environ["BENCH_REDIS_URL"]
BATCH = 1_000


def add(num1, num2):
    return num1 + num2


def work():
    connection = redis.Redis.from_url(URL)
    SimpleWorker([Queue("sum", connection=connection)], connection=connection).work(logging_level="ERROR")


def main(n):
    client = redis.Redis.from_url(URL)
    queue = Queue("sum", connection=client)
    here = os.path.dirname(os.path.abspath(__file__))
    workers = [
        subprocess.Popen([sys.executable, "-c", "import rq_sum; rq_sum.work()"], cwd=here, stdout=subprocess.DEVNULL)
        for _ in range(os.cpu_count() or 1)
    ]
    finished = queue.finished_job_registry
    queue.enqueue_many([Queue.prepare_data("rq_sum.add", (1, 2)) for _ in workers])
    while finished.count < len(workers):
        time.sleep(0.01)
    before = finished.count
    start = time.monotonic()
    for at in range(0, n, BATCH):
        queue.enqueue_many([Queue.prepare_data("rq_sum.add", (i, 7)) for i in range(at, min(n, at + BATCH))])
    while finished.count < before + n:
        time.sleep(0.005)
    ms = (time.monotonic() - start) * 1_000
    done = finished.count - before
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(timeout=30)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({
        "name": "rq", "body": "end-to-end", "n": n, "ms": ms,
        # The start of the workers is in it: it cannot be told apart.
        "cpuMs": sum(usage.ru_utime + usage.ru_stime for usage in usages) * 1_000,
        "rssBytes": max(usage.ru_maxrss for usage in usages) * 1024,
        "stored": done, "values": {},
    }))


if __name__ == "__main__":
    main(int(sys.argv[2]))

"""Celery on Redis, in Python. `celery_sum.py end-to-end <n>` prints one line of JSON, as contestant.ts does.

The worker is started as its documentation says, in processes of its own (prefork, one a core), with the options for short tasks:
a prefetch multiplier above 1, and no gossip, mingle or heartbeat. Results: in the Redis result backend.
"""
import json
import os
import resource
import subprocess
import sys
import time

import redis
from celery import Celery

URL = os.environ["BENCH_REDIS_URL"]

app = Celery("celery_sum", broker=URL, backend=URL)
app.conf.update(
    worker_prefetch_multiplier=64,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    task_serializer="json",
    result_serializer="json",
)


@app.task(name="sum")
def add(num1, num2):
    return num1 + num2


def stored(client):
    # Only results are keys of their own; the rest is a handful.
    return client.dbsize()


def wait_for(client, count):
    while stored(client) < count:
        time.sleep(0.005)


def main(n):
    client = redis.Redis.from_url(URL)
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_sum", "worker", "--loglevel=ERROR", "--pool=prefork",
         "--without-gossip", "--without-mingle", "--without-heartbeat"],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env={**os.environ, "C_FORCE_ROOT": "1"},
        stdout=subprocess.DEVNULL,
    )
    warm = add.delay(1, 2)
    warm.get(timeout=60)
    before = stored(client)
    start = time.monotonic()
    with app.producer_pool.acquire(block=True) as producer:
        for i in range(n):
            add.apply_async((i, 7), producer=producer)
    wait_for(client, before + n)
    ms = (time.monotonic() - start) * 1_000
    done = stored(client) - before
    worker.terminate()
    try:
        worker.wait(timeout=30)
    except subprocess.TimeoutExpired:
        # Everything is measured: whether it stops in order does not matter.
        worker.kill()
        worker.wait()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({
        "name": "celery", "body": "end-to-end", "n": n, "ms": ms,
        # The start of the worker is in it: it cannot be told apart.
        "cpuMs": sum(usage.ru_utime + usage.ru_stime for usage in usages) * 1_000,
        "rssBytes": max(usage.ru_maxrss for usage in usages) * 1024,
        "stored": done, "values": {},
    }))


if __name__ == "__main__":
    main(int(sys.argv[2]))

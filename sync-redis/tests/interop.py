"""redis-py's own Lock, driven line by line: `acquire NAME TTL|- WAIT`, `release`, `extend TTL`,
`count NAME COUNTER TIMES`; each is answered by one line."""

import sys

import redis
from redis.exceptions import LockError

server = redis.Redis(port=int(sys.argv[1]))
lock = None


def acquire(name, ttl, wait):
    global lock
    ttl = None if ttl == "-" else float(ttl)
    lock = server.lock(name, timeout=ttl, sleep=0.01)
    return "yes" if lock.acquire(blocking=wait != "0", blocking_timeout=float(wait)) else "no"


def attempt(action):
    try:
        action()
        return "yes"
    except LockError as error:
        return type(error).__name__


def count(name, counter, times):
    for _ in range(int(times)):
        with server.lock(name, timeout=10, sleep=0.001):
            server.set(counter, int(server.get(counter) or 0) + 1)
    return "done"


print(redis.__version__, flush=True)
for line in sys.stdin:
    verb, *arguments = line.split()
    if verb == "acquire":
        answer = acquire(*arguments)
    elif verb == "release":
        answer = attempt(lock.release)
    elif verb == "extend":
        answer = attempt(lambda: lock.extend(float(arguments[0]), replace_ttl=True))
    elif verb == "count":
        answer = count(*arguments)
    print(answer, flush=True)

#!/usr/bin/env python3
"""Load for the drill, and the judge of it: appends to several nodes under idempotency keys, as a careful client does, until
a file appears; then reads every log at every node and holds it against what was acknowledged.

Ends with 0 when every acknowledged message is in its log, once, where the answer said, no message is there twice, the
sequence has no gap and all nodes say the same. Only the standard library.
"""

import argparse
import http.client
import json
import os
import sys
import threading
import time
from urllib.parse import urlsplit

ANSWER_SECONDS_MAX = 15
RETRY_SECONDS = 0.05


class Nodes:
    """A worker's connections: one to the node in use, another node after each failure."""

    def __init__(self, urls, first):
        self.urls, self.at, self.connection = urls, first, None

    def ask(self, method, path, body=None):
        """Status and body. An OSError or HTTPException means that no whole answer came."""
        if self.connection is None:
            address = urlsplit(self.urls[self.at % len(self.urls)]).netloc
            self.connection = http.client.HTTPConnection(address, timeout=ANSWER_SECONDS_MAX)
        try:
            data = None if body is None else json.dumps(body)
            self.connection.request(method, path, data, {"content-type": "application/json"})
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.turn()
            raise

    def turn(self):
        if self.connection:
            self.connection.close()
        self.at, self.connection = self.at + 1, None

    def insist(self, method, path, body, accepted, on_retry=lambda why: None):
        """Repeats a request that is safe to repeat until it is answered with an accepted status."""
        while True:
            try:
                status, answer = self.ask(method, path, body)
                if status in accepted:
                    return json.loads(answer)
                on_retry(str(status))
                if status < 500 and status != 429:
                    sys.exit(f"{method} {path}: {status} {answer[:300]}")
                self.turn()
            except (OSError, http.client.HTTPException) as error:
                on_retry(type(error).__name__)
            time.sleep(RETRY_SECONDS)


class Ledger:
    """What was acknowledged, and the longest time in which nothing was."""

    def __init__(self):
        self.lock = threading.Lock()
        self.acknowledged = {}  # conversation -> {key: seq}
        self.count, self.retries, self.pause, self.last = 0, {}, 0.0, time.monotonic()

    def acknowledge(self, conversation, key, seq):
        with self.lock:
            now = time.monotonic()
            self.pause, self.last = max(self.pause, now - self.last), now
            self.acknowledged.setdefault(conversation, {})[key] = seq
            self.count += 1

    def retry(self, why):
        with self.lock:
            self.retries[why] = self.retries.get(why, 0) + 1

    def take(self):
        """Since the last call, but for the count: it is of all."""
        with self.lock:
            seen = {"acknowledged": self.count, "longest_pause_seconds": round(self.pause, 2), "retries": self.retries}
            self.pause, self.retries = 0.0, {}
            return seen


def work(number, urls, conversations, ledger, stop):
    nodes, key = Nodes(urls, number), 0
    while not os.path.exists(stop):
        key += 1
        name = f"{number}-{key}"
        conversation = conversations[(number + key) % len(conversations)]
        event = {"role": "user", "content": f"message {name}", "metadata": {"key": name}}
        body = {"event": event, "idempotency_key": name}
        path = f"/v1/conversations/{conversation}/events"
        answer = nodes.insist("POST", path, body, (200, 201), ledger.retry)
        ledger.acknowledge(conversation, name, answer["seq"])


def read_log(url, conversation):
    nodes, cursor, events = Nodes([url], 0), 0, []
    while True:
        path = f"/v1/conversations/{conversation}/events?cursor={cursor}&limit=1000"
        page = nodes.insist("GET", path, None, (200,))
        events += page["events"]
        if not page["has_more"]:
            return events
        cursor = page["next_cursor"]


def faults_of(conversation, events, acknowledged):
    keys = [event["metadata"]["key"] for event in events]
    seqs = {key: event["seq"] for key, event in zip(keys, events)}
    if len(seqs) != len(keys):
        yield f"{conversation}: {len(keys) - len(seqs)} messages are there twice"
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        yield f"{conversation}: the sequence has gaps"
    lost = [key for key in acknowledged if key not in seqs]
    if lost:
        yield f"{conversation}: {len(lost)} acknowledged messages are lost, such as {lost[0]}"
    moved = [key for key, seq in acknowledged.items() if key in seqs and seqs[key] != seq]
    if moved:
        yield f"{conversation}: {len(moved)} are not where the answer said, such as {moved[0]}"


def judge(urls, conversations, ledger):
    faults, messages = [], 0
    for conversation in conversations:
        logs = [read_log(url, conversation) for url in urls]
        messages += len(logs[0])
        faults += faults_of(conversation, logs[0], ledger.acknowledged.get(conversation, {}))
        faults += [f"{conversation}: {url} says something else" for url, log in zip(urls, logs) if log != logs[0]]
    return faults, messages


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--node", action="append", required=True, metavar="URL")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--stop", required=True, metavar="FILE", help="its appearance ends the load")
    parser.add_argument("--report", required=True, metavar="DIR", help="a file there named NAME.ask is answered by NAME.json")
    args = parser.parse_args()

    conversations = [f"drill-{number}" for number in range(args.conversations)]
    for conversation in conversations:
        Nodes(args.node, 0).insist("PUT", f"/v1/conversations/{conversation}", {}, (200, 201))
    ledger = Ledger()
    workers = [
        threading.Thread(target=work, args=(number, args.node, conversations, ledger, args.stop))
        for number in range(args.workers)
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        for name in os.listdir(args.report):
            if name.endswith(".ask"):
                answer = os.path.join(args.report, name[: -len(".ask")] + ".json")
                with open(answer + ".new", "w") as file:
                    json.dump(ledger.take(), file)
                os.rename(answer + ".new", answer)
                os.unlink(os.path.join(args.report, name))
        time.sleep(0.05)
    faults, messages = judge(args.node, conversations, ledger)
    for fault in faults:
        print(fault)
    print(f"{ledger.count} acknowledged, {messages} in the logs of {len(args.node)} nodes, {len(faults)} faults")
    # A message that is in a log and was not acknowledged was under way at the end: with retries until then, there is none.
    sys.exit(1 if faults or ledger.count == 0 or messages != ledger.count else 0)


main()

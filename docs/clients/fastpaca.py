"""A client of Fastpaca in one file, with nothing but Python's standard library (3.9 or later).

    client = Fastpaca("http://localhost:4000", key="...")
    client.put("chat-1", token_budget=8000)
    client.append("chat-1", {"role": "user", "content": "hello"})
    client.window("chat-1")["messages"]         # what to send to the model
    client.compact("chat-1", summarise)         # when the window says so
    for frame in client.follow("chat-1", 0):    # replay, then live; reconnects by itself
        ...
"""

import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

ATTEMPTS_MAX = 6
# A stream pings every 30 s: what is silent for longer is dead.
SILENCE_MAX = 75


class Refused(Exception):
    """An answer that is no success. `code` is for programs, `body` has all that the server said."""

    def __init__(self, status, body, retry_after):
        super().__init__(f"{status} {body.get('error')}: {body.get('message')}")
        self.status, self.body, self.retry_after = status, body, retry_after
        self.code = body.get("error")

    def may_pass(self):
        """Whether the same request may succeed later: 503 and 429, and nothing else."""
        return self.status in (429, 503)


class Fastpaca:
    def __init__(self, url, key=None, timeout=35):
        self.url, self.timeout = url.rstrip("/"), timeout
        self.headers = {"authorization": f"Bearer {key}"} if key else {}

    def put(self, conversation, **settings):
        return self._json("PUT", self._path(conversation), settings)

    def append(self, conversation, event, idempotency_key=None, if_version=None):
        """Appends one event, once, however often it takes to be sure.

        Without an answer, or with `unknown_outcome`, the event may be in the log or not. The same key makes asking
        again safe; keep it with your own job if that can be started anew after a crash.
        """
        body = {"event": event, "idempotency_key": idempotency_key or str(uuid.uuid4())}
        if if_version is not None:
            body["if_version"] = if_version
        return self._json("POST", self._path(conversation, "/events"), body)

    def events(self, conversation, from_seq=1, to_seq=None):
        """The log from one seq to another, page by page."""
        path, cursor = self._path(conversation, "/events"), from_seq - 1
        while True:
            query = {"cursor": cursor, **({} if to_seq is None else {"to_seq": to_seq})}
            page = self._json("GET", f"{path}?{urllib.parse.urlencode(query)}")
            yield from page["events"]
            if not page["has_more"]:
                return
            cursor = page["next_cursor"]

    def window(self, conversation, **query):
        return self._json("GET", self._path(conversation, "/window") + "?" + urllib.parse.urlencode(query))

    def compact(self, conversation, summarise, keep=20):
        """Replaces all but the newest `keep` events by a summary, if the window asks for that.

        `summarise` gets the summaries there are and the events behind them, and gives the new text. Those come from the
        log, so that what the budget has pushed out of the window is not forgotten. Events that arrive meanwhile lie
        behind the range and stay.
        """
        while True:
            window = self.window(conversation)
            if not window["needs_compaction"]:
                return
            summaries = [message for message in window["messages"] if "to_seq" in message]
            covered = max((message["to_seq"] for message in summaries), default=0)
            last = self._json("GET", self._path(conversation))["last_seq"]
            upto = last - keep
            if upto <= covered:
                return
            text = summarise(summaries + list(self.events(conversation, covered + 1, upto)))
            replacement = [{"role": "system", "content": text}]
            body = {"from_seq": 1, "to_seq": upto, "replacement": replacement}
            try:
                self._json("POST", self._path(conversation, "/compact"), body)
            except Refused as refused:
                # Somebody else has compacted further meanwhile: look again.
                if refused.code != "invalid_range":
                    raise

    def follow(self, conversation, cursor=None):
        """Frames behind `cursor` (the last version processed; None: from now), for as long as the conversation lives.

        Every frame carries the `version` to resume from. After `gap` and `reset` the log has the truth.
        """
        failures = 0
        while True:
            try:
                for frame in self._frames(conversation, cursor):
                    failures = 0
                    if frame["type"] == "ping":
                        continue
                    cursor = frame["version"]
                    yield frame
                    if frame["type"] == "tombstoned":
                        return
            except Refused as refused:
                if not refused.may_pass():
                    raise
            except (OSError, http.client.HTTPException):
                pass  # The link broke: nothing is lost, the cursor says where to go on.
            failures += 1
            time.sleep(pause(failures))

    def _frames(self, conversation, cursor):
        query = "" if cursor is None else f"?cursor={cursor}"
        headers = {"accept": "text/event-stream"}
        with self._open("GET", self._path(conversation, "/stream") + query, None, headers, SILENCE_MAX) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

    def _json(self, method, path, body=None):
        """The answer, after as many attempts as make sense. Everything sent here may be sent twice."""
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                with self._open(method, path, data, {"content-type": "application/json"}, self.timeout) as answer:
                    return json.load(answer)
            except Refused as refused:
                if attempt == ATTEMPTS_MAX or not refused.may_pass():
                    raise
                time.sleep(max(refused.retry_after, pause(attempt)))
            except (OSError, http.client.HTTPException):
                if attempt == ATTEMPTS_MAX:
                    raise
                time.sleep(pause(attempt))

    def _open(self, method, path, data, headers, timeout):
        request = urllib.request.Request(self.url + path, data, {**self.headers, **headers}, method=method)
        try:
            return urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, json.load(error), float(error.headers.get("retry-after", 0))) from None

    def _path(self, conversation, rest=""):
        return f"/v1/conversations/{urllib.parse.quote(conversation, safe='')}{rest}"


def pause(attempt):
    """Seconds before the next attempt: twice as long each time, to 5 s, scattered so that clients do not come at once."""
    return min(5, 0.1 * 2**attempt) * random.uniform(0.5, 1)

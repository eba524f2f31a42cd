"""What an application does with the client: python3 example.py URL CONVERSATION"""

import os
import sys

from fastpaca import Fastpaca

url, conversation = sys.argv[1:]
client = Fastpaca(url, os.environ.get("FASTPACA_API_KEY"))
client.put(conversation, token_budget=400)

for number in range(1, 31):
    question = {"role": "user", "content": f"Question {number}: how many of item {number} are in stock?"}
    client.append(conversation, question, idempotency_key=f"question-{number}")

# A real one asks a model.
client.compact(conversation, lambda messages: f"{len(messages)} questions about stock", keep=5)
window = client.window(conversation)
print("window:", len(window["messages"]), "messages,", window["messages"][0]["parts"][0]["text"])

seen = []
for frame in client.follow(conversation, cursor=0):
    if frame["type"] == "event":
        seen.append(frame["seq"])
    if frame["type"] == "compaction":
        break
print("stream:", seen == list(range(1, 31)), "compaction of", frame["range"])

"""A clerk that speaks the protocol: answers with the length of the recipe, refuses, waits or dies as the text says."""

from __future__ import annotations

import json
import os
import sys
import threading

for line in sys.stdin:
    question = json.loads(line)
    text = question.get("recipe", "")
    if text == "slow":
        threading.Event().wait(0.4)
    if text == "die":
        os._exit(7)
    print("a part printed this", flush=True)
    if text == "refuse":
        print(json.dumps({"id": question["id"], "error": "No such recipe."}), flush=True)
    else:
        print(json.dumps({"id": question["id"], "answer": {"length": len(text), "verb": question["verb"]}}), flush=True)

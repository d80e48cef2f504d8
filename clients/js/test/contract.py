#!/usr/bin/env python3
"""Gives users back what they sent; `fail` makes it fail, `quiet` say nothing, `differ` do something else on each node."""
import json
import os
import sys

for key, (inputs, outputs) in sorted(json.load(sys.stdin)["user"].items()):
    with open(inputs, "rb") as file:
        data = file.read()
    if data == b"fail":
        sys.exit(3)
    if data == b"differ":
        with open("state/differs", "wb") as file:
            file.write(os.urandom(8).hex().encode())
    if data != b"quiet":
        with open(outputs, "wb") as file:
            file.write(data)

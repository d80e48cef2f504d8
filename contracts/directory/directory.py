#!/usr/bin/env -S python3 -I -S
"""Directory: entries that anybody may read, and only the user who made one may change or delete.

Interface: contracts/README.md. A user sends lines, each a JSON object:
    {"op":"create","key":"color","value":"red"}   {"op":"update","key":"color","value":"blue"}
    {"op":"read","key":"color"}   {"op":"delete","key":"color"}   {"op":"list"}   {"op":"list","after":"color"}
and gets one line for each: {"ok":true,...} or {"ok":false,"error":"..."}.

Without a ledger (`hp client --read`), it answers `read` and `list` and refuses the others.

An entry is the file state/directory/<hex of the key>: the owner's key, a line feed, the value.
"""

import bisect
import hashlib
import json
import os
import re
import sys

FOLDER = "state/directory"

# One command's answer stays below 2 KiB, so that the limits of output are out of reach, whatever users send.
KEY_TEXT_MAX = 100  # characters of a key as JSON; a longer one is refused
VALUE_TEXT_MAX = 1024  # characters of a value as JSON; a longer one is refused
PAGE_KEYS = 16  # keys in the answer to one `list`; "more" says that there are others
ENTRIES_MAX = 100_000  # the next `create` is refused
COMMANDS_MAX = 16_384  # in one ledger, in equal shares for those who sent something; what is over is not done
USER_COMMANDS_MAX = 4_096

MALFORMED = 'expected {"op":"create|read|update|delete|list","key":"...","value":"..."}'
# The fields of each command. A missing one that is not optional, or any other, is an error.
FIELDS = {
    "create": {"op", "key", "value"},
    "read": {"op", "key"},
    "update": {"op", "key", "value"},
    "delete": {"op", "key"},
    "list": {"op"},
}
# No command holds a number. They are not converted, as how long they may be depends on the version of Python.
DECODER = json.JSONDecoder(parse_int=lambda _: None, parse_float=lambda _: None)
BLANK = re.compile(r"[ \t\r]*")


class Refused(Exception):
    """What the user did wrong, in words for the user."""


class Directory:
    def __init__(self, readonly):
        self.readonly = readonly
        os.makedirs(FOLDER, exist_ok=True)
        # Hex of UTF-8 sorts as the keys do. The order in which a folder is listed differs from machine to machine.
        self.names = sorted(os.listdir(FOLDER))

    def do(self, user, command):
        op = command["op"]
        if op == "list":
            return self.list(command.get("after", ""))
        name = command["key"].encode().hex()
        place = bisect.bisect_left(self.names, name)
        found = place < len(self.names) and self.names[place] == name
        path = f"{FOLDER}/{name}"
        if self.readonly and op != "read":
            raise Refused("a question changes nothing: send it as an input")
        if op == "create":
            if found:
                raise Refused("the key is taken")
            if len(self.names) >= ENTRIES_MAX:
                raise Refused("the directory is full")
            self.names.insert(place, name)
            return write_entry(path, user, command["value"])
        if not found:
            raise Refused("no such key")
        owner, value = read_entry(path)
        if op == "read":
            return {"owner": owner, "value": value}
        if owner != user:
            raise Refused("not the owner")
        if op == "update":
            return write_entry(path, user, command["value"])
        os.remove(path)
        del self.names[place]
        return {}

    def list(self, after):
        start = bisect.bisect_right(self.names, after.encode().hex())
        page = self.names[start : start + PAGE_KEYS]
        keys = [bytes.fromhex(name).decode() for name in page]
        return {"keys": keys, "more": len(self.names) > start + len(page)}


def read_entry(path):
    with open(path, "rb") as file:
        owner, value = file.read().split(b"\n", 1)
    return owner.decode(), value.decode()


def write_entry(path, owner, value):
    with open(path, "wb") as file:
        file.write(f"{owner}\n{value}".encode())
    return {}


def commands(text):
    """The commands in a user's inputs; None for something that is none, with which the rest of its line is lost.

    Inputs arrive joined: where a client ends them without a line feed, a line holds several objects.
    """
    for line in text.split(b"\n"):
        try:
            line = line.decode()
            at = BLANK.match(line).end()
            while at < len(line):
                command, at = DECODER.raw_decode(line, at)
                check(command)
                yield command
                at = BLANK.match(line, at).end()
        except (ValueError, RecursionError):  # not UTF-8, no JSON, nested without end, or not what `check` wants
            yield None


def check(command):
    """ValueError unless the command has its fields, and text in each."""
    if not isinstance(command, dict) or not all(isinstance(value, str) for value in command.values()):
        raise ValueError
    fields = FIELDS.get(command.get("op"))
    if fields is None or command.keys() - {"after"} != fields or ("after" in command and command["op"] != "list"):
        raise ValueError
    for value in command.values():
        value.encode()  # half of a surrogate pair is no text


def answer(directory, user, command):
    if command is None:
        return {"ok": False, "error": MALFORMED}
    try:
        for field, most in (("key", KEY_TEXT_MAX), ("after", KEY_TEXT_MAX), ("value", VALUE_TEXT_MAX)):
            if len(json.dumps(command.get(field, ""))) > most:
                raise Refused(f"{field} is longer than {most} characters as JSON")
        if command.get("key") == "":
            raise Refused("the key is empty")
        return {"ok": True, **directory.do(user, command)}
    except Refused as reason:
        return {"ok": False, "error": str(reason)}


def serve(directory, user, text, share):
    """The answers to one user, as lines."""
    lines = []
    for command in commands(text):
        if len(lines) == share:
            lines.append({"ok": False, "error": f"more than {share} commands at once: the rest was not done"})
            break
        lines.append(answer(directory, user, command))
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()


def main():
    ledger = json.load(sys.stdin)
    inputs = {}
    for user, (source, _) in ledger["user"].items():
        with open(source, "rb") as file:
            if text := file.read():
                inputs[user] = text
    if not inputs:
        return
    directory = Directory(ledger.get("readonly", False))
    share = min(USER_COMMANDS_MAX, max(1, COMMANDS_MAX // len(inputs)))
    # Two users may want one key in one ledger. The agreed randomness decides who is first, so that no key always is.
    seed = ledger.get("seed", ledger["lcl"])
    for user in sorted(inputs, key=lambda user: hashlib.sha256((seed + user).encode()).digest()):
        with open(ledger["user"][user][1], "wb") as file:
            file.write(serve(directory, user, inputs[user], share))


main()

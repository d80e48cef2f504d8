#!/usr/bin/env -S python3 -I -S
"""Council: users decide which nodes run this contract.

Interface: contracts/README.md, "Asking for another UNL". The operators put the council's user keys into state/council,
one a line, before the first run. One of them sends lines:
    add KEY   remove KEY   withdraw
and has one vote at a time. Once more than half of the council votes for the same change, the contract asks the network
for it, and the votes for it are used up. Everybody gets one line of answer for each line.
"""

import json
import os
import re
import sys

COUNCIL = "state/council"
VOTES = "state/votes"  # a file for each vote, named by the user's key, with the vote in it
LINES_MAX = 16  # of one user in one ledger; what is over is not read
CHANGE = re.compile(r"(add|remove) [0-9a-f]{64}")


def members():
    try:
        with open(COUNCIL, encoding="ascii") as file:
            return sorted(set(file.read().split()))
    except FileNotFoundError:
        return []


def votes(council):
    found = {}
    for user in council:
        try:
            with open(f"{VOTES}/{user}", encoding="ascii") as file:
                found[user] = file.read()
        except FileNotFoundError:
            pass
    return found


def withdraw(user):
    try:
        os.remove(f"{VOTES}/{user}")
    except FileNotFoundError:
        pass


def do(user, line, council):
    if user not in council:
        return "only the council decides"
    if line == "withdraw":
        withdraw(user)
        return "withdrawn"
    if not CHANGE.fullmatch(line):
        return "expected: add KEY, remove KEY or withdraw, with 64 lower-case hexadecimal digits"
    os.makedirs(VOTES, exist_ok=True)
    with open(f"{VOTES}/{user}", "w", encoding="ascii") as file:
        file.write(line)
    return f"you vote: {line}"


def decided(council):
    """The first change with more than half of the votes. The others wait for their run: one run asks for one change."""
    found = votes(council)
    wanted = sorted(line for line in set(found.values()) if 2 * list(found.values()).count(line) > len(council))
    if not wanted:
        return None
    for user in (user for user, line in found.items() if line == wanted[0]):
        withdraw(user)
    return wanted[0]


def main():
    ledger = json.load(sys.stdin)
    council = members()
    for user, (source, sink) in sorted(ledger["user"].items()):
        with open(source, "rb") as file:
            lines = file.read().decode("ascii", "replace").splitlines()
        answers = "".join(do(user, line, council) + "\n" for line in lines[:LINES_MAX])
        with open(sink, "wb") as file:
            file.write(answers.encode())
    change = decided(council)
    if change:
        with open(ledger["control"], "wb") as file:
            file.write(f"unl {change}\n".encode())


main()

"""The golden frames of tests/golden/signed, checked as they are and with one thing wrong at a time; keys and their files."""

import base64
import copy
import json
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from proof import HotPocketError, Key, check_ledger, check_output, check_run, check_settled, follow_unl, read_welcome, tagged, vec  # noqa: E402

GOLDEN = pathlib.Path(__file__).parents[3] / "tests/golden/signed"
STRANGER = ["11" * 32, "22" * 64]


def read(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def flip(text, at):
    data = bytearray(base64.b64decode(text))
    data[at] ^= 1
    return base64.b64encode(data).decode()


def at(frame, path, value):
    """A copy of the frame with another value at `a.b.0`; a function makes it of the old one."""
    frame = copy.deepcopy(frame)
    *way, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    place = frame
    for name in way:
        place = place[name]
    place[last] = value(place[last]) if callable(value) else value
    return frame


class TestProof(unittest.TestCase):
    def setUp(self):
        self.network, self.key = read_welcome(read("welcome")), Key.parse("09" * 32)

    def refused(self, part, work, code=None):
        with self.assertRaises(HotPocketError) as caught:
            work()
        self.assertIn(part, str(caught.exception))
        if code:
            self.assertEqual(caught.exception.code, code)

    def lies(self, frame, by_header, has_output):
        lies = [
            ("signature", "proof.sigs.1.1", lambda sig: ("1" if sig[0] == "0" else "0") + sig[1:]),
            ("signature", "proof.sigs.0.1", frame["proof"]["sigs"][1][1]),
            ("a quorum is 3", "proof.sigs", lambda sigs: sigs[:-1]),
            ("a quorum is 3", "proof.sigs", []),
            ("signers", "proof.sigs.2", frame["proof"]["sigs"][1]),
            ("signers", "proof.sigs", lambda sigs: sigs[:1] + sigs),
            ("signers", "proof.sigs", lambda sigs: sigs[::-1]),
            ("signers", "proof.sigs", lambda sigs: [STRANGER] + sigs),
            ("64 bytes", "proof.sigs.0.1", "00"),
            ("malformed", "proof.sigs.0", 7),
            ("malformed", "proof.sigs", None),
            ("malformed", "proof", {}),
            ("another ledger", "seq", lambda seq: seq + 1),
            ("another ledger", "ledger", "05" * 32),
            ("another ledger", "ledger", None),
            ("no known kind", "proof.by", "my word"),
        ]
        if by_header:
            lies += [
                ("signature", "proof.attempt", lambda attempt: attempt + 1),
                ("malformed", "proof.attempt", -1),
                ("malformed", "proof.attempt", "0"),
                ("signature", "proof.header", lambda header: flip(header, 74)),
                ("another chain", "proof.header", lambda header: flip(header, 2)),
                ("another UNL", "proof.header", lambda header: flip(header, 82)),
                ("missing", "proof.header", lambda header: base64.b64encode(base64.b64decode(header)[:-1]).decode()),
                ("left over", "proof.header", lambda header: base64.b64encode(base64.b64decode(header) + b"\0").decode()),
            ]
        else:
            lies += [("signature", "proof.result", lambda result: flip(result, 40)), ("malformed", "proof.result", "*")]
        if has_output:
            lies += [
                ("not among", "payload", lambda payload: flip(payload, 0)),
                ("not among", "proof.path.index", lambda index: index ^ 1),
                ("malformed", "proof.path.index", "x"),
                ("not among", "proof.path.siblings", []),
                ("too long", "proof.path.siblings", [None] * 33),
            ]
        return [(part, at(frame, path, value)) for part, path, value in lies]

    def test_an_output_is_proven_and_no_lie_about_it(self):
        for name in ("output-by-results", "output-by-header"):
            frame = read(name)
            self.assertEqual(check_output(self.network, self.key.public, frame), b"an output")
            self.refused("not among", lambda: check_output(self.network, "22" * 32, frame))
            for part, lie in self.lies(frame, name.endswith("header"), True):
                with self.subTest(name=name, part=part):
                    self.refused(part, lambda: check_output(self.network, self.key.public, lie), "unproven")

    def test_a_failed_run_is_proven_and_no_lie_about_it(self):
        failed = read("answer-outputs")["failed"][0]
        for frame, by_header in ((read("executed-failed"), False), (failed, True)):
            check = lambda frame: check_run(self.network, frame["seq"], frame["ledger"], frame)
            self.assertIs(check(frame), True)
            self.assertIs(check({**frame, "proof": None}), False)
            for part, lie in self.lies(frame, by_header, False):
                if lie["proof"] is not None:
                    self.refused(part, lambda: check(lie))
            self.refused("another end", lambda: check({**frame, "ok": True}))
            self.refused("another end", lambda: check({**frame, "status": "exit code 4"}))
        output, proof = read("output-by-results"), read("executed-failed")["proof"]
        of_failed = {**output, "proof": {**proof, "path": output["proof"]["path"]}}
        self.refused("exit code 3", lambda: check_output(self.network, self.key.public, of_failed))

    def test_a_ledgers_certificate_is_proven_and_no_lie_about_it(self):
        ledger = read("answer-ledger")["ledger"]
        header = check_ledger(self.network, ledger)
        self.assertEqual((header["seq"], header["parent"], header["time_ms"]), (5, "04" * 32, 1700000005000))
        self.refused("hash", lambda: check_ledger(self.network, {**ledger, "hash": "05" * 32}))
        self.refused("a quorum is 3", lambda: check_ledger(self.network, {**ledger, "sigs": ledger["sigs"][1:]}))
        self.refused("signature", lambda: check_ledger(self.network, {**ledger, "attempt": 0}))
        self.refused("malformed", lambda: check_ledger(self.network, None))

    def test_a_settlement_is_proven_and_no_lie_about_it(self):
        frame = read("settled")
        check_settled(self.network, frame)
        for part, path, value in [
            ("another settlement", "last", lambda last: last + 1),
            ("another settlement", "tx", "05" * 32),
            ("another settlement", "ch", None),
            ("another settlement", "confirmed_length", 0),
            ("another settlement", "recorded_in", lambda seq: seq + 1),
            ("no ledgers", "first", 0),
            ("no ledgers", "first", lambda first: first + 3),
            ("malformed", "first", "1"),
            ("malformed", "proof", None),
            ("signature", "proof.attempt", lambda attempt: attempt + 1),
            ("a quorum is 3", "proof.sigs", []),
            ("no settlement", "proof", read("answer-ledger")["ledger"]),
        ]:
            with self.subTest(path=path):
                self.refused(part, lambda: check_settled(self.network, at(frame, path, value)), "unproven")

    def test_a_welcome_must_fit_its_chains_genesis_and_what_the_user_knows(self):
        welcome = read("welcome")
        chain, unl = welcome["chain"], welcome["unl"]
        pinned = read_welcome(welcome, chain, unl[::-1])
        self.assertEqual((pinned.chain, pinned.quorum, len(pinned.unl)), (chain, 3, 3))
        for lie in ({"threshold": 67}, {"chain": "09" * 32}, {"contract": "09" * 32}, {"genesis": flip(welcome["genesis"], 40)}):
            self.refused("genesis", lambda: read_welcome({**welcome, **lie}))
        self.refused("missing", lambda: read_welcome({**welcome, "genesis": "AQ=="}))
        self.refused("is of chain", lambda: read_welcome(welcome, "01" * 32), "other_network")
        self.assertEqual([network.knows(unl) for network in (pinned, read_welcome(welcome, None, unl[1:]))], [True, False])
        self.assertFalse(read_welcome(welcome, chain).knows(unl[1:]), "the chain's name is of its first members")
        for bad in ([unl[0], unl[0]], ["%064x" % n for n in range(129)]):
            self.refused("a UNL has", lambda: read_welcome(welcome, None, bad))
        for bad in (["zz"], [1]):
            self.refused("", lambda: read_welcome(welcome, None, bad))

    def test_a_change_of_the_members_is_followed_once_and_no_lie_about_it(self):
        step, before = read("unl"), self.network.unl
        for part, path, value in [
            ("a quorum is 3", "sigs", lambda sigs: sigs[1:]),
            ("signature", "attempt", lambda attempt: attempt + 1),
            ("hash", "header", lambda header: flip(header, 182)),
            ("another ledger", "seq", 8),
            ("another change", "change", "remove"),
            ("another change", "node", "22" * 32),
            ("another change", "node", before[0]),
            ("malformed", "node", None),
            ("malformed", "sigs", 1),
        ]:
            with self.subTest(path=path):
                self.refused(part, lambda: follow_unl(self.network, at(step, path, value)), "unproven")
        self.assertEqual((self.network.unl, self.network.known_to), (before, 0), "nothing of it was believed")
        self.assertEqual([follow_unl(self.network, step) for _ in range(2)], [True, False])
        self.assertEqual((self.network.unl, self.network.quorum, self.network.known_to), (sorted([*before, step["node"]]), 4, 7))
        self.assertEqual([self.network.knows(unl) for unl in (before, self.network.unl, before[1:])], [True, True, False])
        for name in ("output-by-results", "output-by-header"):
            check_output(self.network, self.key.public, read(name))
        self.network.unls[0].since, self.network.unls[1].since = 0, 5  # of the first ones nothing from ledger 5 on
        self.refused("another UNL", lambda: check_output(self.network, self.key.public, read("output-by-header")))

    def test_an_input_is_signed_as_the_golden_one(self):
        frame = read("input")
        numbers = frame["nonce"].to_bytes(8, "little") + frame["max_ledger"].to_bytes(8, "little")
        body = bytes(32) + numbers + vec(base64.b64decode(frame["payload"]))
        digest = tagged("hp/input/1", bytes.fromhex(read("welcome")["chain"]), bytes.fromhex(self.key.public), body)
        self.assertEqual(self.key.sign(digest).hex(), frame["sig"])

    def test_a_key_file_is_that_of_hp_client_and_its_numbers_come_once(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "client.key")
            key = Key.load(path)
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            self.assertEqual(Key.load(path).public, key.public)
            numbers = [one.nonce() for one in (key, Key.load(path), key, Key.load(path))]
            self.assertEqual(len(set(numbers)), 4)
            pathlib.Path(path + ".nonce").write_text(f"{1 << 62}\n")
            self.assertEqual(Key.load(path).nonce(), 1 << 62, "a clock that went back repeats none")
            os.chmod(path, 0o640)
            self.refused("chmod 600", lambda: Key.load(path))
        self.assertEqual(Key.parse("09" * 32 + self.key.public).public, self.key.public)
        self.refused("second half", lambda: Key.parse("09" * 32 + "00" * 32))
        for text in ("", "00", "zz" * 32, "00" * 33):
            self.refused("64 hexadecimal digits", lambda: Key.parse(text), "bad_key")


if __name__ == "__main__":
    unittest.main()

"""What a user of Hot Pocket signs and checks, without a connection: bytes, hashes, keys, certificates, proofs. What each byte
means: docs/protocol.md. Needs `cryptography`."""

import base64
import binascii
import fcntl
import functools
import hashlib
import os
import re
import struct
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NONCES_AT_ONCE = 1000  # taken from the file at once, so that it is not written for each input


class HotPocketError(Exception):
    """What went wrong: `code` for programs (a reason of the protocol, or one of README.md), the message for people."""

    def __init__(self, code, message, **more):
        super().__init__(message)
        self.code = code
        self.__dict__.update(more)


def wrong(message):
    raise HotPocketError("unproven", message)


def strict(check):
    """What is of another shape than the protocol's proves nothing."""

    @functools.wraps(check)
    def checked(*args, **more):
        try:
            return check(*args, **more)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, binascii.Error) as error:
            raise HotPocketError("unproven", f"what the node said is malformed: {error!r}") from error

    return checked


# ---- Bytes, keys ---------------------------------------------------------------------------------------------------------


def unhex(text, length):
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{%d}" % (2 * length), text):
        wrong(f"not {length} bytes in lower-case hexadecimal")
    return bytes.fromhex(text)


def unbase64(text):
    return base64.b64decode(text, validate=True)


def tagged(tag, *parts):
    """The protocol's tagged hash: the first 32 bytes of SHA-512(length of tag, tag, parts)."""
    return hashlib.sha512(bytes([len(tag)]) + tag.encode() + b"".join(parts)).digest()[:32]


def vec(data):
    return struct.pack("<I", len(data)) + data


class Key:
    """An ed25519 key; `public` is who the user is, in hexadecimal. With a file, as `hp client` keeps it, its numbers are kept too."""

    def __init__(self, seed, file=None):
        self._key, self._file, self._next, self._end = Ed25519PrivateKey.from_private_bytes(seed), file, 0, 0
        self.public = self._key.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls):
        return cls(os.urandom(32))

    @classmethod
    def parse(cls, text, file=None):
        text = text.strip().lower()
        if not re.fullmatch("[0-9a-f]{64}|[0-9a-f]{128}", text):
            raise HotPocketError("bad_key", "a secret key is 64 hexadecimal digits (seed) or 128 (seed, then public key)")
        key = cls(bytes.fromhex(text[:64]), file)
        if text[64:] not in ("", key.public):
            raise HotPocketError("bad_key", "the second half of the secret key is not the public key of its first half")
        return key

    @classmethod
    def load(cls, path):
        """The key in a file of mode 0600, which is made when it is missing."""
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(os.urandom(32).hex() + "\n")
        except FileExistsError:
            pass
        with open(path) as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise HotPocketError("bad_key", f"others can read the key file {path}; run: chmod 600 {path}")
            return cls.parse(file.read(4096), path)

    def sign(self, data):
        return self._key.sign(data)

    def nonce(self):
        """A number that no input of this key has had: from the time in microseconds on, and behind what `FILE.nonce` says."""
        if self._next == self._end:
            self._next = max(time.time_ns() // 1000, self._end)
            if self._file:
                with open(os.open(f"{self._file}.nonce", os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    taken = file.read(4096).strip()
                    if re.fullmatch("[0-9]{1,19}", taken) and int(taken) < 1 << 63:
                        self._next = max(self._next, int(taken))
                    file.seek(0), file.truncate()
                    file.write(f"{self._next + NONCES_AT_ONCE}\n")
            self._end = self._next + NONCES_AT_ONCE
        self._next += 1
        return self._next - 1


# ---- What is proven ------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads borsh."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            wrong("bytes are missing")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count, signed=False):
        return int.from_bytes(self.take(count), "little", signed=signed)

    def hash(self):
        return self.take(32).hex()

    def variant(self, names):
        at = self.number(1)
        return names[at] if at < len(names) else wrong("no such variant")

    def end(self, value):
        return value if self.at == len(self.data) else wrong("bytes are left over")


UNLS_MAX = 1023  # UNLs of before that are remembered
_LIMITS = ("time limit", "output limit", "party line limit", "file size limit", "forbidden kind of file in state/", "state size limit")


def _read_result(of):
    result = {"of_seq": of.number(8), "of_hash": of.hash(), "state_root": of.hash(), "outputs_root": of.hash()}
    kind = of.variant(("ok", "exit code", "signal", "limit"))
    result["status"] = kind if kind == "ok" else of.variant(_LIMITS) if kind == "limit" else f"{kind} {of.number(4, signed=True)}"
    result["unl_req"] = (of.variant(("add", "remove")), of.hash()) if of.variant((False, True)) else None
    return result


def read_header(data):
    """The fields of a header in borsh; `result` is that of the ledger before it."""
    of = _Reader(data)
    fields = "ver:2 chain_id:32 seq:8 parent:32 time_ms:8 unl_hash:32 next_unl_hash:32 users_root:32 n_users:4 inputs_root:32 n_inputs:4 inputs_bytes:8"
    sizes = [field.split(":") for field in fields.split()]
    header = {name: of.hash() if size == "32" else of.number(int(size)) for name, size in sizes}
    header["result"] = _read_result(of)
    header["settlement"] = None
    if of.variant((False, True)):
        header["settlement"] = {"seq": of.number(8), "ch": of.hash(), "tx": of.hash(), "confirmed_length": of.number(8), "txv": of.hash()}
    return of.end(header)


class Members:
    """A UNL (ascending), and the first ledger that it closes."""

    def __init__(self, chain, unl, threshold, since):
        if not 1 <= len(unl) <= 128 or any(a >= b for a, b in zip(unl, unl[1:])):
            wrong("a UNL has 1 to 128 members, ascending and each once")
        if type(threshold) is not int or not 67 <= threshold <= 100:
            wrong(f"a threshold is 67 to 100 percent, not {threshold}")
        self.since, self.unl, self.quorum = since, list(unl), -(-len(unl) * threshold // 100)
        unl_hash = tagged("hp/unl/1", struct.pack("<I", len(unl)), *(unhex(key, 32) for key in unl))
        self.unl_hash, self.scope = unl_hash.hex(), unhex(chain, 32) + unl_hash


class Network:
    """What everything is checked with: chain, threshold and members, those of before among them."""

    def __init__(self, chain, unl, threshold):
        self.chain, self.threshold, self.unls = chain, threshold, [Members(chain, unl, threshold, 0)]

    unl = property(lambda self: self.unls[-1].unl)
    quorum = property(lambda self: self.unls[-1].quorum)
    known_to = property(lambda self: max(self.unls[-1].since - 1, 0), doc="The ledger behind which changes are not known.")

    def knows(self, unl):
        """Whether these are the members, or were."""
        return any(members.unl == unl for members in self.unls)

    def members_of(self, seq):
        return next((members for members in reversed(self.unls) if members.since <= seq), self.unls[0])


@strict
def follow_unl(network, step):
    """Follows a change of the members, a frame of the node: those before it must have signed it. False when it is known, or of others."""
    header, last = read_header(unbase64(step["header"])), network.unls[-1]
    if header["unl_hash"] != last.unl_hash or header["seq"] < last.since:
        return False
    check_ledger(network, step)
    if header["seq"] != step["seq"]:
        wrong("the change is of another ledger")
    others = set(last.unl) - {step["node"]}
    unl = sorted(others | {step["node"]} if step["change"] == "add" else others)
    following = Members(network.chain, unl, network.threshold, header["seq"] + 1)
    if following.unl_hash != header["next_unl_hash"] or unl == last.unl:
        wrong("the ledger makes another change of the members")
    network.unls = [*network.unls[-UNLS_MAX:], following]
    return True


@strict
def read_welcome(welcome, chain=None, unl=None):
    """The network that a welcome names, with its first members: those of its genesis, whose hash is the chain's name. `chain` must be
    that name; `unl` is believed instead of the first members."""
    data = unbase64(welcome["genesis"])
    of, named = _Reader(data), tagged("hp/genesis/1", data).hex()
    genesis = (of.number(2), of.hash(), [of.hash() for _ in range(min(of.number(4), 128))], of.number(1))
    if (named, genesis[1], genesis[3]) != (welcome["chain"], welcome["contract"], welcome["threshold"]):
        wrong("what the node says of its chain does not fit the chain's genesis")
    if chain and chain != named:
        raise HotPocketError("other_network", f"the node is of chain {named}, not of {chain}")
    return Network(named, sorted(unl) if unl else genesis[2], welcome["threshold"])


def _signed_by_quorum(members, tag, body, sigs):
    digest, before = tagged(tag, members.scope, body), ""
    for key, sig in sigs:
        if key not in members.unl or key <= before:
            wrong("the signers are not members of the UNL, each once and ascending")
        before = key
        try:
            Ed25519PublicKey.from_public_bytes(unhex(key, 32)).verify(unhex(sig, 64), digest)
        except InvalidSignature:
            wrong(f"the signature of {key} is wrong")
    if len(sigs) < members.quorum:
        wrong(f"{len(sigs)} of the UNL's {len(members.unl)} members signed, a quorum is {members.quorum}")


@strict
def check_ledger(network, ledger):
    """Checks a closed ledger, `{hash, header, attempt, sigs}`, and returns the header's fields."""
    data = unbase64(ledger["header"])
    header, digest = read_header(data), tagged("hp/ledger/1", data)
    if ledger.get("hash", digest.hex()) != digest.hex():
        wrong("the header is not that of this hash")
    if header["chain_id"] != network.chain:
        wrong("the header is of another chain")
    members = network.members_of(header["seq"])
    if header["unl_hash"] != members.unl_hash:
        wrong("the ledger was closed by another UNL")
    _signed_by_quorum(members, "hp/precommit/1", struct.pack("<QI", header["seq"], ledger["attempt"]) + digest, ledger["sigs"])
    return header


def _agreed_result(network, seq, ledger, proof):
    if proof["by"] == "results":
        data = unbase64(proof["result"])
        of = _Reader(data)
        result = of.end(_read_result(of))
        _signed_by_quorum(network.members_of(result["of_seq"] + 1), "hp/result/1", data, proof["sigs"])  # who close the next one
    elif proof["by"] == "header":
        header = check_ledger(network, proof)
        if (header["seq"], header["parent"]) != (seq + 1, ledger):
            wrong("the proof is about another ledger")
        result = header["result"]
    else:
        wrong("a proof of no known kind")
    return result if (result["of_seq"], result["of_hash"]) == (seq, ledger) else wrong("the proof is about another ledger")


@strict
def check_output(network, user, output):
    """Checks that a quorum agreed on this output, a frame of the node, for `user`; returns its bytes."""
    result = _agreed_result(network, output["seq"], output["ledger"], output["proof"])
    if result["status"] != "ok":
        wrong(f"the run of ledger {output['seq']} has no outputs: {result['status']}")
    payload, path = unbase64(output["payload"]), output["proof"]["path"]
    if len(path["siblings"]) > 32:
        wrong("the path is too long")
    at, node = path["index"], tagged("hp/output/1", unhex(user, 32), tagged("hp/output-bytes/1", vec(payload)))
    for sibling in path["siblings"]:
        if sibling is not None:
            sibling = unhex(sibling, 32)
            node = tagged("hp/node/1", *((sibling, node) if at % 2 else (node, sibling)))
        at //= 2
    return payload if node.hex() == result["outputs_root"] else wrong("the output is not among the agreed ones")


@strict
def check_run(network, seq, ledger, run):
    """Checks how a run ended, `{ok, status, proof?}`; False when the node does not prove it."""
    if run.get("proof") is None:
        return False
    status = _agreed_result(network, seq, ledger, run["proof"])["status"]
    return (run["status"], run["ok"]) == (status, status == "ok") or wrong("the proof is about another end of the run")


@strict
def check_settled(network, settled):
    """Checks that ledger `recorded_in` records a settlement, a frame of the node."""
    header = check_ledger(network, settled["proof"])
    recorded = header["settlement"] or wrong("the ledger records no settlement")
    claimed = {"seq": settled["last"], **{name: settled[name] for name in ("ch", "tx", "confirmed_length")}}
    if header["seq"] != settled["recorded_in"] or any(recorded[name] != claimed[name] for name in claimed):
        wrong("the proof is about another settlement")
    if not 1 <= settled["first"] <= settled["last"]:
        wrong("the settlement is of no ledgers")

"""What a conversation owes and is owed, whichever nodes it goes through: no sockets. Outputs are told in the order of their
ledgers, each once, and only when their proof holds. Used by hotpocket.py."""

import asyncio
from dataclasses import dataclass

from proof import HotPocketError, check_output, check_run, check_settled, follow_unl

HELD_MAX = 256  # outputs that came while older ones were asked for, and told ones remembered; past it the oldest is forgotten
OUTPUTS_MAX = 4096  # outputs that nobody has taken from outputs(); past it the oldest is forgotten
LATER = ("busy", "rate")  # reasons with which the same bytes may be sent again


@dataclass(frozen=True)
class Output:
    """What the contract wrote to this user in a ledger, with how many of the members that signed for it were shown."""

    seq: int
    ledger: str
    payload: bytes
    signers: int
    members: int
    final: bool | None = None  # whether its ledger is settled, by this node's word, in a network where that counts; see on_settled


@dataclass
class Input:
    """One that was sent. `accepted` comes to `(seq, ledger)`, `output` to an Output, or None for nothing; both may raise."""

    nonce: int
    accepted: asyncio.Future
    output: asyncio.Future
    id: str = ""
    text: str = ""


class Talk:
    def __init__(self, key, since, on_notice, on_frame, on_settled):
        self.on_settled = on_settled
        self.key, self.covered, self.on_notice, self.on_frame, self.network, self.seq = key, since, on_notice, on_frame, None, 0
        self._pending, self._waiting, self._held, self._told = {}, {}, {}, {}
        self._later, self._catching, self._forgot, self._outputs = set(), False, False, asyncio.Queue()

    def _frame(self, frame):
        kind = frame["type"]
        if kind == "status":
            self._status(frame)
        elif kind == "output":
            output = self._checked(frame)
            if self._catching:
                self._held[output.seq] = output
                if len(self._held) > HELD_MAX:
                    del self._held[max(self._held)]
                    self._forgot = True
            else:
                self._tell(output)
        elif kind == "executed":
            self.seq = max(self.seq, frame["seq"])
            if not self._catching:
                self._executed(frame["seq"], frame["ledger"], frame)
        elif kind in ("answer", "read_result"):
            self._answer(frame)
        elif kind == "unl":
            if follow_unl(self.network, frame):
                what = "joined" if frame["change"] == "add" else "left"
                self.on_notice("members", f"node {frame['node']} {what} with ledger {frame['seq']}: {len(self.network.unl)} members")
        elif kind == "settled":
            check_settled(self.network, frame)
            self.on_settled(frame["first"], frame["last"], frame["tx"])
        elif kind == "error":
            self.on_notice(str(frame["code"]), str(frame["message"]))
        elif kind != "welcome":
            self.on_frame(frame)

    def _status(self, frame):
        sent = self._pending.get(frame["nonce"])
        if sent is None or frame.get("id", sent.id) != sent.id:
            return  # of another session with this key
        if frame["status"] == "rejected" and frame["reason"] in LATER:
            self._later.add(sent.nonce)
            return
        del self._pending[sent.nonce]
        if frame["status"] == "rejected":
            return self._refuse(sent, HotPocketError(frame["reason"], frame["message"], nonce=sent.nonce))
        seq, ledger, run = frame["seq"], frame["ledger"], frame.get("run")
        self.seq = max(self.seq, seq)
        sent.accepted.done() or sent.accepted.set_result((seq, ledger))
        self._waiting.setdefault(seq, []).append(sent)
        if run is not None and not run["ok"]:
            self._executed(seq, ledger, run)
        elif seq <= self.covered:
            self._settle(seq, self._told.get(seq))

    def _executed(self, seq, ledger, run):
        if not run["ok"]:
            proven = check_run(self.network, seq, ledger, run)
            why = f"the contract failed in ledger {seq} ({run['status']}): its outputs are dropped and its state is as before"
            self._settle(seq, HotPocketError("contract_failed", why, seq=seq, status=run["status"], proven=proven))
        else:
            self._settle(seq, self._told.get(seq))
        self.covered = max(self.covered, seq)

    def _checked(self, frame):
        payload = check_output(self.network, self.key.public, frame)
        self.seq = max(self.seq, frame["seq"])
        return Output(frame["seq"], frame["ledger"], payload, len(frame["proof"]["sigs"]), len(self.network.unl), frame.get("final"))

    def _tell(self, output):
        if output.seq <= self.covered:
            return
        self.covered = output.seq
        self._told[output.seq] = output
        if len(self._told) > HELD_MAX:
            del self._told[min(self._told)]
        if self._outputs.qsize() >= OUTPUTS_MAX:
            self._outputs.get_nowait()
        self._outputs.put_nowait(output)
        self._settle(output.seq, output)

    def _settle(self, seq, outcome):
        for sent in self._waiting.pop(seq, []):
            if isinstance(outcome, HotPocketError):
                sent.output.done() or sent.output.set_exception(outcome)
            else:
                sent.output.done() or sent.output.set_result(outcome)

    def _refuse(self, sent, error):
        for future in (sent.accepted, sent.output):
            future.done() or future.set_exception(error)

    def _caught_up(self, frame):
        since = self.covered
        page = self._page(since, frame)
        for output in page["outputs"]:
            self._tell(output)
        for run in page["failed"]:
            self._executed(run["seq"], run["ledger"], run)
        for seq in [seq for seq in self._waiting if seq <= page["to"] and seq not in page["missing"]]:
            self._settle(seq, self._told.get(seq))
        self.covered = max(self.covered, page["to"])
        if page["more"] or self._forgot:
            self._forgot = self._forgot and page["more"]
            return self._catch_up()
        self._catching = False
        for seq in sorted(self._held):
            self._tell(self._held.pop(seq))

    def _page(self, since, frame):
        outputs = [self._checked(output) for output in frame["outputs"]]
        for run in frame["failed"]:
            run["proven"] = check_run(self.network, run["seq"], run["ledger"], run)
        return {**frame, "outputs": outputs, "more": frame["more"] and frame["to"] > since}

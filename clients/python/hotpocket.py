"""A user's side of Hot Pocket: a connection in signed mode that survives its nodes, inputs that take effect once, and outputs
that a quorum proves. Needs `websockets` and `cryptography`; README.md shows its use. The frames: docs/protocol.md, "Users"."""

import asyncio
import base64
import json
import re
import struct

import websockets
from proof import HotPocketError, Key, Network, check_ledger, check_output, check_run, check_settled, follow_unl, read_header, read_welcome, strict, tagged, unbase64, vec, wrong
from talk import Input, Output, Talk

__all__ = ["Client", "HotPocketError", "Input", "Key", "Network", "Output", "check_ledger", "check_output", "check_run", "check_settled", "connect", "follow_unl", "read_header", "read_welcome"]

PENDING_MAX = 256  # inputs without a word of what became of them; at it submit() refuses
EARLY_MAX = 1024  # frames that wait until it is proven who the members are
FRAME_BYTES_MAX = 96 << 20
OPEN_S, AGAIN_S, PAUSE_S, PAUSE_S_MAX = 10, 1, 0.1, 10


async def connect(nodes, key, *, chain=None, unl=None, since=None, on_notice=lambda code, message: None, on_frame=lambda frame: None, on_settled=lambda first, last, tx: None):
    """Connects to the first of `nodes` (`ws://`, `wss://`) that answers, and goes on at another one whenever it is lost.

    `chain`, `unl`: what is known of the network. `since`: outputs of the ledgers after this one come too. `on_notice` is told what
    else a person should know, `on_settled` which ledgers are settled, proven, and `on_frame` gets the frames that are not known here."""
    client = Client([nodes] if isinstance(nodes, str) else list(nodes), key, chain, unl, since, on_notice, on_frame, on_settled)
    reasons = []
    for url in list(client.nodes):
        try:
            client._start(url, await client._open(url))
            return client
        except (HotPocketError, OSError, asyncio.TimeoutError, websockets.WebSocketException) as error:
            reasons.append(error if isinstance(error, HotPocketError) else HotPocketError("unreachable", f"{url}: {error!r}"))
    raise reasons[0] if len(reasons) == 1 else HotPocketError("unreachable", "no node took the connection: " + "; ".join(map(str, reasons)))


class Client(Talk):
    def __init__(self, nodes, key, chain, unl, since, on_notice, on_frame, on_settled):
        super().__init__(key, since, on_notice, on_frame, on_settled)
        self.nodes, self.chain, self.unl, self.url, self.welcome = nodes, chain, unl, None, None
        self._questions, self._id, self._sending, self._socket, self._tasks, self._early = {}, 0, None, None, [], []

    # ---- What a program calls ----

    def submit(self, payload):
        """Signs an input, and sends it to as many nodes as it takes, until one says what became of it."""
        payload = payload.encode() if isinstance(payload, str) else bytes(payload)
        if self._closed():
            raise HotPocketError("closed", "the client was closed")
        if len(self._pending) >= PENDING_MAX:
            raise HotPocketError("busy", f"{PENDING_MAX} inputs wait for a word of what became of them")
        limits = self.welcome["limits"]
        if len(payload) > limits["payload_bytes"]:
            raise HotPocketError("too_large", f"{len(payload)} bytes; at most {limits['payload_bytes']} are taken")
        loop = asyncio.get_running_loop()
        sent = Input(self.key.nonce(), loop.create_future(), loop.create_future())
        for future in (sent.accepted, sent.output):  # who does not ask for it has no exception to handle
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        max_ledger = self.seq + max(1, limits["input_window"] // 2)
        body = struct.pack("<QQ", sent.nonce, max_ledger) + vec(payload)
        digest = tagged("hp/input/1", bytes.fromhex(self.network.chain), bytes.fromhex(self.key.public), bytes(32), body)
        frame = {"type": "input", "nonce": sent.nonce, "max_ledger": max_ledger, "payload": base64.b64encode(payload).decode(), "sig": self.key.sign(digest).hex()}
        sent.id, sent.text = digest.hex(), json.dumps(frame)
        self._pending[sent.nonce] = sent
        self._send(sent.text)
        return sent

    async def outputs(self):
        """Outputs in the order of their ledgers, each once, also those from while there was no connection; until close()."""
        while (output := await self._outputs.get()) is not None:
            yield output
        self._outputs.put_nowait(None)

    async def query(self, what, **more):
        """Asks the node: `lcl`, `ledger` (seq), `input` (nonce), `outputs` (since). The answer is its word."""
        return await self._question({"type": "query", "what": what, **more})

    async def read(self, payload):
        """Asks the contract, on this node alone, without a ledger: bytes. Nothing proves the answer."""
        payload = payload.encode() if isinstance(payload, str) else bytes(payload)
        return unbase64((await self._question({"type": "read", "payload": base64.b64encode(payload).decode()}))["payload"])

    async def ledger(self, seq):
        """A closed ledger's header, its certificate checked; None when there is none yet."""
        ledger = (await self.query("ledger", seq=seq)).get("ledger")
        if ledger is None:
            return None
        header = check_ledger(self.network, ledger)
        return {**header, "hash": ledger.get("hash")} if header["seq"] == seq else wrong("it is another ledger")

    async def outputs_since(self, since):
        """A page of this user's outputs of the ledgers after `since`, checked, up to `to`; with `more` there is a next one."""
        return self._page(since, await self.query("outputs", since=since))

    async def close(self):
        """Ends it. What was not answered raises."""
        tasks, self._tasks = self._tasks, None
        for task in tasks or []:
            task.cancel()
        await asyncio.gather(*(tasks or []), return_exceptions=True)
        self._end(HotPocketError("closed", "the client was closed"))

    # ---- Nodes ----

    async def _open(self, url):
        socket = await websockets.connect(url, max_size=FRAME_BYTES_MAX, open_timeout=OPEN_S, compression=None)
        try:
            async with asyncio.timeout(OPEN_S):
                challenge = json.loads(await socket.recv()).get("challenge")
                if not isinstance(challenge, str) or not re.fullmatch("[0-9a-f]{32}", challenge):
                    raise HotPocketError("bad_format", f"{url} sent no challenge")  # a node must not choose what this key signs
                sig = self.key.sign(challenge.encode()).hex()
                await socket.send(json.dumps({"type": "helo", "challenge": challenge, "sig": sig, "pubkey": self.key.public, "mode": "signed"}))
                welcome = json.loads(await socket.recv())
                if welcome.get("type") != "welcome":
                    raise HotPocketError(str(welcome.get("code", "bad_format")), f"{url}: {welcome.get('message', 'no welcome')}")
                early, network = [], read_welcome(welcome, self.chain, self.unl)
                if self.network and network.chain != self.network.chain:
                    raise HotPocketError("other_network", f"{url} is of another chain than the first node was")
                network = self.network or network
                if network.unl != welcome["unl"]:
                    await self._follow(url, socket, network, early)
                if not network.knows(welcome["unl"]):
                    raise HotPocketError("other_network", f"{url} does not prove how its members, {' '.join(welcome['unl'])}, followed those that are known")
            # What is used later is what it should be, whoever says it.
            strict(lambda: (+welcome["seq"], +welcome["limits"]["payload_bytes"], +welcome["limits"]["input_window"]))()
        except (HotPocketError, AttributeError, KeyError, TypeError, ValueError) as error:
            await socket.close()
            raise error if isinstance(error, HotPocketError) else HotPocketError("bad_format", f"{url} does not speak signed mode") from error
        except BaseException:
            await socket.close()
            raise
        self.network, self.welcome, self.seq, self._early = network, welcome, max(self.seq, welcome["seq"]), early
        return socket

    async def _follow(self, url, socket, network, early):
        """Has the node show how those who are known became the members of now. Other frames wait in `early`."""
        since, more = network.known_to, True
        while more:
            await socket.send(json.dumps({"type": "query", "what": "unl", "since": since}))
            while (page := json.loads(await socket.recv())).get("what") != "unl":
                early.append(page)
                if len(early) > EARLY_MAX:
                    raise HotPocketError("flood", f"{url} does not say who its members are")
            for step in page["changes"]:
                follow_unl(network, step)
            last = max((step["seq"] for step in page["changes"]), default=since)
            since, more = last, page["more"] and last > since

    def _start(self, url, socket):
        self._attach(url, socket)
        self._tasks = [asyncio.create_task(self._live(url, socket)), asyncio.create_task(self._again())]

    async def _live(self, url, socket):
        pause = PAUSE_S
        while True:
            if socket is not None:
                pause = PAUSE_S
                error = await self._serve(socket)
            self.url, self._sending = None, None
            self._reject(self._questions, HotPocketError("disconnected", "the connection was lost before the answer came"))
            self.on_notice(getattr(error, "code", "unreachable"), f"{url}: {error}")
            after = (self.nodes.index(url) + 1) % len(self.nodes)
            following = self.nodes[after]
            if getattr(error, "code", "") in ("unproven", "other_network"):
                self.nodes.remove(url)  # one that lied is left for good
                if not self.nodes:
                    return self._end(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_S_MAX)
            url, socket = following if following in self.nodes else self.nodes[0], None
            try:
                socket = await self._open(url)
                self._attach(url, socket)
            except (HotPocketError, OSError, asyncio.TimeoutError, websockets.WebSocketException) as failed:
                error = failed

    def _attach(self, url, socket):
        """What is owed goes to this node from now on."""
        self.url, self._socket, self._sending = url, socket, asyncio.Queue()
        self._later.clear(), self._held.clear()
        for sent in self._pending.values():
            self._send(sent.text)
        if self.covered is None:
            self.covered, self._catching = self.welcome["seq"], False
        else:
            self._catch_up()

    async def _serve(self, socket):
        """Until the connection ends; why."""
        writer = asyncio.create_task(self._write(socket, self._sending))
        try:
            early, self._early = self._early, []
            for frame in early:
                self._frame(frame)
            async for text in socket:
                self._frame(json.loads(text))
            return HotPocketError("disconnected", "the node closed the connection")
        except (HotPocketError, OSError, websockets.WebSocketException) as error:
            return error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return HotPocketError("bad_format", f"what the node sent is malformed: {error!r}")
        finally:
            writer.cancel()
            await socket.close()

    async def _write(self, socket, queue):
        while True:
            await socket.send(await queue.get())

    def _send(self, text):
        if self._sending is not None:  # else it is sent to the next node
            self._sending.put_nowait(text)

    async def _again(self):
        while True:
            await asyncio.sleep(AGAIN_S)
            later, self._later = self._later, set()
            for nonce in later & self._pending.keys():
                self._send(self._pending[nonce].text)
            if self._waiting and not self._catching and self._sending:
                self._catch_up()  # the result of a ledger may have been told before we came

    # ---- Questions ----

    def _catch_up(self):
        self._catching = True
        self._ask({"type": "query", "what": "outputs", "since": self.covered}, self._caught_up)

    def _ask(self, request, then):
        self._id += 1
        self._questions[self._id] = then
        self._send(json.dumps({**request, "id": self._id}))
        return self._id

    async def _question(self, request):
        if self._sending is None:
            raise HotPocketError("disconnected", "there is no connection")
        future = asyncio.get_running_loop().create_future()
        id = self._ask(request, future)
        try:
            return await future
        finally:
            self._questions.pop(id, None)

    def _answer(self, frame):
        asked = self._questions.pop(frame.get("id"), None)
        if asked is None:
            return
        if not isinstance(asked, asyncio.Future):
            return asked(frame)
        if asked.done():
            return
        if frame.get("status") == "refused" and frame["type"] == "read_result":
            asked.set_exception(HotPocketError(frame["reason"], frame["message"]))
        elif frame.get("status") == "failed" and frame["type"] == "read_result":
            asked.set_exception(HotPocketError("contract_failed", frame["run"]))
        else:
            asked.set_result(frame)

    def _reject(self, questions, error):
        for asked in questions.values():
            if isinstance(asked, asyncio.Future) and not asked.done():
                asked.set_exception(error)
        questions.clear()

    def _closed(self):
        return self._tasks is None

    def _end(self, error):
        self._reject(self._questions, error)
        waiting = [sent for some in self._waiting.values() for sent in some]
        for sent in [*self._pending.values(), *waiting]:
            self._refuse(sent, error)
        self._pending.clear(), self._waiting.clear()
        self._outputs.put_nowait(None)

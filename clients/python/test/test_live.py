"""The client against a real network: `hp dev` around clients/js/test/contract.py. It ends with this process."""

import asyncio
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from hotpocket import HotPocketError, Key, Output, connect  # noqa: E402

ROOT = HERE.parents[2]
HP = os.environ.get("HP", str(ROOT / "target/debug/hp"))
DEADLINE_S = 60


class Hp:
    """Three nodes."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="hotpocket-py-")
        os.mkdir(f"{self.folder}/bin")
        shutil.copy(ROOT / "clients/js/test/contract.py", f"{self.folder}/bin/contract")
        os.chmod(f"{self.folder}/bin/contract", 0o755)
        self.dev = subprocess.Popen([HP, "dev", self.folder, "--no-bus"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        timer = threading.Timer(DEADLINE_S, self.dev.kill)
        timer.start()
        self.urls, said = [], []
        for line in self.dev.stderr:
            said.append(line)
            if found := re.match(r" *node \d+ +(wss?://\S+)", line):
                self.urls.append(found[1])
            if len(self.urls) == 3:
                break
        timer.cancel()
        # What it says later is read, so that it never waits.
        threading.Thread(target=self.dev.stderr.read, daemon=True).start()
        if len(self.urls) != 3:
            raise AssertionError("no network: " + "".join(said))

    def stop(self):
        self.dev.terminate()
        self.dev.wait(DEADLINE_S)
        self.dev.stderr.close()
        shutil.rmtree(self.folder)


class TestLive(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.net = Hp()
        cls.addClassCleanup(cls.net.stop)

    async def asyncSetUp(self):
        # A machine with much to do is no news.
        asyncio.get_running_loop().slow_callback_duration = DEADLINE_S
        self.notices = []
        self.key = Key.generate()
        self.client = await self.connect()

    async def connect(self, nodes=None, key=None, **more):
        client = await connect(nodes or self.net.urls, key or self.key, on_notice=lambda *notice: self.notices.append(notice), **more)
        self.addAsyncCleanup(client.close)
        return client

    async def test_an_input_is_accepted_and_its_output_proven_by_a_quorum(self):
        sent = self.client.submit("hello")
        seq, ledger = await sent.accepted
        output = await sent.output
        self.assertEqual(output, Output(seq, ledger, b"hello", output.signers, 3))
        self.assertGreaterEqual(output.signers, self.client.network.quorum)
        async for told in self.client.outputs():
            self.assertEqual(told, output)
            break
        self.assertGreaterEqual((await self.client.query("lcl"))["seq"], seq)
        header = await self.client.ledger(seq)
        self.assertEqual((header["hash"], header["n_inputs"], header["chain_id"]), (ledger, 1, self.client.network.chain))
        self.assertIsNone(await self.client.ledger(seq + 100_000))
        self.assertEqual([output.payload for output in (await self.client.outputs_since(0))["outputs"]], [b"hello"])
        self.assertEqual((await self.client.query("input", nonce=sent.nonce))["status"], "accepted")

    async def test_large_bytes_come_back_as_they_were_and_too_many_are_refused(self):
        data = bytes((at * 7919) & 255 for at in range(300_000))
        self.assertEqual((await self.client.submit(data).output).payload, data)
        with self.assertRaises(HotPocketError) as refused:
            self.client.submit(bytes(self.client.welcome["limits"]["payload_bytes"] + 1))
        self.assertEqual(refused.exception.code, "too_large")

    async def test_a_run_that_failed_is_told_with_its_proof_and_one_without_output_as_none(self):
        self.assertIsNone(await self.client.submit("quiet").output)
        sent = self.client.submit("fail")
        await sent.accepted
        with self.assertRaisesRegex(HotPocketError, "exit code 3") as failed:
            await sent.output
        self.assertEqual((failed.exception.code, failed.exception.proven), ("contract_failed", True))
        self.assertTrue((await self.client.outputs_since(0))["failed"][0]["proven"])

    async def test_the_contract_answers_a_question_on_the_spot(self):
        self.assertGreaterEqual((await self.client.query("lcl"))["seq"], 0, "at once")
        await self.client.submit("x").output
        self.assertEqual(await self.client.read("what?"), b"what?")
        with self.assertRaisesRegex(HotPocketError, "exit code 3"):
            await self.client.read("fail")

    async def test_a_lost_connection_goes_on_at_another_node_with_nothing_lost_or_done_twice(self):
        self.assertEqual((await self.client.submit("1").output).payload, b"1")
        first = self.client.url
        await self.client._socket.close()
        # Said before the client has noticed, and while there is no connection.
        sent = [self.client.submit(text) for text in ("2", "3")]
        # They may be in one ledger, whose output both share, or in two.
        self.assertIn([(await one.output).payload for one in sent], ([b"2", b"3"], [b"23", b"23"]))
        self.assertNotEqual(self.client.url, first)
        past = (await self.client.outputs_since(0))["outputs"]
        self.assertEqual(b"".join(output.payload for output in past), b"123")
        self.assertTrue(self.notices)
        # Another session with the key, later, is told all of it again, in order.
        later = await self.connect(since=0)
        told = b""
        async for output in later.outputs():
            told += output.payload
            if told == b"123":
                break

    async def test_a_node_of_another_chain_is_not_talked_to_and_one_that_is_not_there_is_passed_over(self):
        with self.assertRaises(HotPocketError) as other:
            await self.connect(chain="01" * 32)
        self.assertEqual(other.exception.code, "unreachable")
        with self.assertRaises(HotPocketError) as other:
            await self.connect(self.net.urls[0], chain="01" * 32)
        self.assertEqual(other.exception.code, "other_network")
        client = await self.connect(["ws://127.0.0.1:1", self.net.urls[1]], Key.generate(), chain=self.client.network.chain)
        self.assertEqual(client.url, self.net.urls[1])

    async def test_what_is_under_way_ends_with_the_client(self):
        await self.client.close()
        with self.assertRaises(HotPocketError):
            self.client.submit("late")
        self.assertEqual([output async for output in self.client.outputs()], [])

    async def test_frames_that_it_does_not_know_are_passed_on_and_those_that_are_malformed_end_the_connection(self):
        frames = []
        self.client.on_frame = frames.append
        self.client._frame({"type": "of tomorrow", "seq": 1})
        self.assertEqual(frames, [{"type": "of tomorrow", "seq": 1}])
        for frame in ({"type": "output"}, {"type": "settled"}, {"type": "executed", "seq": "x"}, {"type": "status"}, {}):
            with self.assertRaises((HotPocketError, KeyError, TypeError)):
                self.client._frame(frame)


if __name__ == "__main__":
    unittest.main()

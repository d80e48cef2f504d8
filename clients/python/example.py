#!/usr/bin/env python3
"""Sends one input and prints what the contract answers, proven: example.py URL[,URL...] TEXT [KEYFILE]"""

import asyncio
import sys
import time

from hotpocket import HotPocketError, Key, connect


async def main(urls, text, key_file=None):
    key = Key.load(key_file) if key_file else Key.generate()
    client = await connect(urls.split(","), key, on_notice=lambda code, message: print(f"{code}: {message}", file=sys.stderr))
    began = time.monotonic()
    sent = client.submit(text)
    seq, _ = await sent.accepted
    print(f"accepted in ledger {seq} after {1000 * (time.monotonic() - began):.0f} ms")
    output = await sent.output
    if output is None:
        print("the contract said nothing to it")
    else:
        print(f"{output.signers} of {output.members} members signed for this:")
        print(output.payload.decode(errors="backslashreplace"))
    await client.close()


if len(sys.argv) not in (3, 4):
    sys.exit(__doc__)
try:
    asyncio.run(main(*sys.argv[1:]))
except HotPocketError as error:
    sys.exit(f"{error.code}: {error}")

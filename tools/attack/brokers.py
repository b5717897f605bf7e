"""The rogue broker: first one that only pretends, then the real one in wrong hands, which can say anything on any topic."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.protocol import messages
from appliance.protocol.messages import Command, Receipt, ReceiptItem, Result, ReviewMessage, make_id
from appliance.protocol.signing import KeySigner, proof, statement
from appliance.protocol.topics import ROOT
from hub.authority import make_authority
from tools.attack.devices import identity
from tools.attack.mqtt import Heard, Intruder, context
from tools.attack.report import Try
from tools.attack.world import BOX, OTHER, World

WHO = "rogue broker"


def attack(world: World) -> Iterator[Try]:
    """Pretend; then own the broker: forge receipts, reviews, commands and results."""
    rogue = make_authority(world.folder / "pretender", "Bedside hub")
    certificate, key = rogue.for_server("broker", ["localhost"])
    yield Try(WHO, "shows a certificate of its own authority", _pretend(world, certificate, key))
    box = identity(world, OTHER)
    yield Try(WHO, "shows the certificate of a stolen box", _pretend(world, box.chain, box.chain, box.password))
    world.link.target_port = world.boxes_port
    world.link.cut()
    world.wait("the box back on its link", world.is_online)
    yield from _owned(world)


def owner(world: World) -> Intruder:
    """A client that may do all that the broker may: who owns the broker writes its access list."""
    world.own_broker()
    tls = context(world.authority / "ca.pem", world.authority / "hub.pem", world.authority / "hub.key")
    return Intruder(world.hub_port, tls, f"owner-{time.monotonic_ns()}")


def _pretend(world: World, certificate: Path, key: Path, password: str | None = None) -> str:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key, password)
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        tried, over = threading.Event(), threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    plain, _ = listener.accept()
                    with contextlib.suppress(OSError), tls.wrap_socket(plain, server_side=True) as secured:
                        secured.settimeout(1.0)
                        with contextlib.suppress(OSError):
                            got.append(secured.recv(4096))
                    tried.set()

        thread = threading.Thread(target=serve)
        thread.start()
        world.link.target_port = listener.getsockname()[1]
        world.link.cut()
        came = tried.wait(15)
        over.set()
        thread.join()
    if not came:
        return "no try: the box never came"
    return f"{len(b''.join(got))} bytes that the box said" if any(got) else ""


def _owned(world: World) -> Iterator[Try]:
    world.pause("hub")  # so that what the box sends is not answered by the real one
    with owner(world) as broker:
        yield Try(WHO, "control: owns the broker", broker.problem)
        broker.listen(f"{ROOT}/{BOX}/up/result")
        before = world.counts()
        world.capture()
        world.wait("the result at the broker", lambda: broker.heard)
        _forge_down(world, broker, broker.heard[-1])
        time.sleep(1.5)
        after = world.counts()
        yield Try(WHO, "forges the hub's receipts", "the box believes them" if not after["waiting"] else "")
        inbox = after["inbox"] - before["inbox"]
        yield Try(WHO, "forges reviews and commands", f"{inbox} taken by the box" if inbox else "")
        forged = _forge_up(broker, broker.heard[-1])
    world.resume("hub")
    world.wait("delivery to the real hub", lambda: not world.counts()["waiting"])
    yield Try(WHO, "control: the real hub's receipts are believed", "")
    case = next(one for one in world.cases() if one["id"] == forged)
    yield Try(WHO, "changes a result on its way", "the hub took it" if case["rank"] == 0 else "")
    try:
        world.wait("what was forged", world.aside, 10)
    except RuntimeError:
        yield Try(WHO, "control: what it forged is kept aside at the hub", "no trace of it")
    else:
        yield Try(WHO, "control: what it forged is kept aside at the hub")


def _forge_down(world: World, broker: Intruder, seen: Heard) -> None:
    """Unsigned, signed with a key of its own, and signed by another box."""
    result = messages.decode(seen[1], Result)
    item = ReceiptItem(id=result.id, sha256=messages.sha256(seen[1]), status="stored")
    review = ReviewMessage(
        id=make_id("review", "forged"),
        capture_id=result.capture.id,
        decision="reject",
        reviewer="Nobody",
        reviewed_at="2026-01-01T00:00:00Z",
    )
    command = Command(id=make_id("command", "forged"), kind="acknowledged", capture_id=result.capture.id)
    for leaf, message in (("receipt", Receipt(items=[item])), ("review", review), ("command", command)):
        topic, payload = f"{ROOT}/{BOX}/down/{leaf}", messages.encode(message)
        said = statement(topic, payload)
        for properties in ([], proof(KeySigner(bytes(32)), said), proof(identity(world, OTHER).signer, said), seen[2]):
            broker.say(topic, payload, properties)


def _forge_up(broker: Intruder, seen: Heard) -> str:
    """The box's own result with another urgency, with and without the box's proof; the capture's id."""
    topic, payload, properties, said = seen
    changed = payload.replace(b'"triage":"routine"', b'"triage":"critical"').replace(b'"revision":0', b'"revision":9')
    for proofs in (properties, (), proof(KeySigner(bytes(32)), statement(topic, changed))):
        broker.say(topic, changed, proofs, said)
    return messages.decode(payload, Result).capture.id

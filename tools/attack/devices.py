"""The rogue device: holds the certificate and key of another enrolled box, or one that should no longer be good."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from appliance.protocol.topics import ROOT, Address
from appliance.store.credentials import Identity, identity_of
from appliance.store.keys import CREDENTIAL, BoxKey
from hub.authority import Authority, make_authority
from tools.attack.mqtt import Intruder, context
from tools.attack.report import Try
from tools.attack.world import BOX, OTHER, World

WHO = "rogue device"
_SENT_AGAIN = 25.0
"""Seconds after which a box sends again what was not confirmed: 30, and some for the way."""


def identity(world: World, box: str) -> Identity:
    """The whole identity of a box that was stolen running."""
    found = identity_of(world.state(box), BoxKey((world.folder / "credentials" / CREDENTIAL).read_bytes()))
    if found is None:
        raise RuntimeError(f"{box} is not enrolled")
    return found


def stolen(world: World, box: str = OTHER) -> ssl.SSLContext:
    """TLS with the certificate and key of a box."""
    found = identity(world, box)
    return context(found.authority, found.chain, found.chain, found.password)


def attack(world: World) -> Iterator[Try]:
    """Listen where it may not, speak in another's name, push another out, come with what is no longer good."""
    own, foreign = f"{ROOT}/{OTHER}/", f"{ROOT}/{BOX}/"
    with Intruder(world.boxes_port, stolen(world), "clinic-a/box-1") as intruder:
        yield Try(WHO, "control: connects as the box whose certificate it has", intruder.problem)
        intruder.listen(
            "#", f"{ROOT}/+/+/up/#", f"{foreign}down/#", f"$share/ingest/{ROOT}/+/+/up/result", f"{own}down/#"
        )
        said = [intruder.say(f"{foreign}{leaf}", b"{}") for leaf in ("up/result", "up/blob", "up/status", "up/receipt")]
        said += [
            intruder.say(f"{foreign}down/{leaf}", b"{}") for leaf in ("receipt", "review", "command", "certificate")
        ]
        said += [intruder.say(f"{own}down/review", b"{}")]
        said += [intruder.say(f"{ROOT}/{place}/up/result", b"{}") for place in ("clinic-a/box-1x", "x/y")]
        world.speak()
        time.sleep(1.0)
        heard = [topic for topic, *_ in intruder.heard if not topic.startswith(own)]
        yield Try(WHO, "listens on the topics of all others", ", ".join(heard))
        yield Try(
            WHO, "speaks on topics of another box and of the hub", f"{sum(said)} messages taken" if any(said) else ""
        )
        yield Try(WHO, "joins the hub's group, to swallow its share", _swallowed(world))
    before = world.rejections(BOX)
    with Intruder(world.boxes_port, stolen(world), will=f"{foreign}up/result") as intruder:
        intruder.vanish()
    spoken = world.rejections(BOX) - before
    yield Try(WHO, "leaves a last will on another box's topic", f"{spoken} messages at the hub" if spoken else "")
    before = world.rejections(OTHER)
    with Intruder(world.boxes_port, stolen(world), will=f"{own}up/result") as intruder:
        intruder.vanish()
    spoken = world.rejections(OTHER) - before
    yield Try(WHO, "control: one on its own topic comes to the hub", "" if spoken else "nothing came")
    yield Try(WHO, "pushes the other box out by its client id", "" if world.is_online() else "the box lost its link")
    with Intruder(world.hub_port, stolen(world), "hub-1-ingest") as intruder:
        yield Try(WHO, "comes to the hub's own port", "" if intruder.problem else "a session there")
    yield from _no_longer_good(world)


def _swallowed(world: World) -> str:
    """With half of the messages gone, a delivery would wait for the box to send again."""
    began = time.monotonic()
    for _ in range(3):
        world.deliver()
    seconds = time.monotonic() - began
    return f"three deliveries took {seconds:.0f} s" if seconds > _SENT_AGAIN else ""


def _no_longer_good(world: World) -> Iterator[Try]:
    authority = Authority(world.authority)
    folder = world.folder / "rogue"
    folder.mkdir()
    yield _refused(world, "with a certificate that has ended", _issued(folder, "ended", authority, 0, authority.folder))
    rogue = make_authority(folder / "authority", "Bedside hub")
    yield _refused(
        world, "with one of another authority of the same name", _issued(folder, "rogue", rogue, 9, authority.folder)
    )
    yield _refused(world, "without any certificate", context(authority.folder / "ca.pem"))
    old = stolen(world)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    yield _refused(world, "with TLS 1.2", old)
    yield _refused(world, "without TLS", None)
    world.hub("ca", "revoke", OTHER)
    world.reload_broker()
    yield _refused(world, "with a certificate that was revoked", stolen(world))


def _refused(world: World, what: str, tls: ssl.SSLContext | None) -> Try:
    with Intruder(world.boxes_port, tls, patience=1.5) as intruder:
        return Try(WHO, f"comes {what}", "" if intruder.problem else "a session")


def _issued(folder: Path, name: str, authority: Authority, days: int, trusts: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, BOX)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    site, _, device = BOX.partition("/")
    issued = authority.for_device(Address(site, device), request.public_bytes(Encoding.PEM).decode(), days)
    chain = folder / f"{name}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(issued.pem.encode() + private)
    return context(trusts / "ca.pem", chain, chain)

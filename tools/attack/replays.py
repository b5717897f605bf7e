"""The replayer: has kept everything that ever went over the broker, and says it again, there and elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator

from appliance.protocol.topics import ROOT
from tools.attack.brokers import owner
from tools.attack.report import Try
from tools.attack.world import BOX, OTHER, World

WHO = "replayer"


def attack(world: World) -> Iterator[Try]:
    """Record a delivery and a review, then say all of it again: to the same box and hub, and in another box's name."""
    with owner(world) as tape:
        tape.listen(f"{ROOT}/+/+/up/#", f"{ROOT}/+/+/down/#")
        case = world.deliver()
        world.review(case)
        world.wait("the review at the box", lambda: world.counts()["inbox"])
        time.sleep(0.5)
        recorded = [one for one in tape.heard if "/up/status" not in one[0]]
        ways = {topic.partition("/up/")[1] or "/down/" for topic, *_ in recorded}
        yield Try(WHO, "control: records both ways", "" if ways == {"/up/", "/down/"} else f"only {ways}")
        before = (world.counts(), world.cases())
        for topic, payload, properties, said in recorded:
            tape.say(topic, payload, properties, said)
        time.sleep(1.0)
        after = (world.counts(), world.cases())
        yield Try(WHO, "says all of it again", "" if after == before else f"a change: {before} became {after}")
        for topic, payload, properties, said in recorded:
            tape.say(topic.replace(BOX, OTHER), payload, properties, said)
        time.sleep(1.0)
        taken = [one["id"] for one in world.cases() if one["device"] == OTHER]
        yield Try(WHO, "says a box's messages in another's name", f"cases of {OTHER}: {taken}" if taken else "")
        for topic, payload, properties, said in recorded:
            if "/up/" in topic:
                for leaf in ("receipt", "review", "command", "certificate"):
                    tape.say(f"{ROOT}/{BOX}/down/{leaf}", payload, properties, said)
        time.sleep(0.5)
        yield Try(
            WHO, "sends a box's own words back to it", "" if world.counts() == before[0] else "a change at the box"
        )

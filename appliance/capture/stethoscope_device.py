"""The sound card's side of a stethoscope: a program of its own, for each list of inputs and for each recording.

What this module keeps true: PortAudio's callback only copies into a ring that was made before; nothing waits there. PortAudio
sees the devices that are there when it is started, and may end or hang the process when one is pulled out (its list is frozen,
its errors are assertions): so it is started anew each time, in a process where nothing else is lost. What the card or
the ring could not keep is counted and told. It is killed with the thread that started it.

It is started as ``python -m appliance.capture.stethoscope_device list`` or ``… record`` by ``stethoscope_source``, never
imported by it. Messages go to standard output: 1 byte kind, 4 bytes length (big-endian), body. A recording ends when standard
input is closed.
"""

from __future__ import annotations

import ctypes
import fnmatch
import gc
import os
import re
import select
import signal
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.capture.stethoscope_messages import (
    END,
    FAILED,
    GAP,
    INPUTS,
    OPENED,
    SAMPLES,
    Counts,
    Failure,
    Input,
    Opened,
    Trouble,
    Wanted,
)
from appliance.capture.stethoscope_ring import Ring

RATES = (48000, 44100, 32000, 24000, 22050, 16000, 11025, 8000, 4000)
"""Tried in this order when the rate that a device names as its own is outside 4 to 48 kHz or is not taken."""
LOWEST, HIGHEST = 4000, 48000
_POLL_S = 0.05
_FIRST_S, _SILENT_S = 6.0, 2.0
"""A card that gives no first block, or no further one, for so long is gone."""
_BLOCK_S = 0.02
_PR_SET_PDEATHSIG = 1
_CARD = re.compile(r"\s*\(hw:[^)]*\)\s*$")
_NOT_FIRST = re.compile(r"hdmi|monitor|loopback|default|sysdefault|dmix|surround", re.IGNORECASE)

_encode = msgspec.json.encode


def main(arguments: list[str]) -> int:
    """``list``, or ``record`` with a ``Wanted`` as JSON; the last argument is the starting process's id."""
    _die_with(int(arguments[-1]))
    try:
        import sounddevice

        if arguments[0] == "list":
            _tell(INPUTS, _encode(inputs(sounddevice.query_devices())))
            return 0
        return _record(sounddevice, msgspec.json.decode(arguments[1], type=Wanted))
    except OSError as error:
        _fail("library", f"the sound library can't be used ({error})", "install libportaudio2, then try again")
    except BrokenPipeError:
        pass
    return 1


def inputs(devices: Sequence[dict[str, Any]]) -> tuple[Input, ...]:
    """What can be recorded from, in PortAudio's order; ``name`` is without the card's number, which changes."""
    return tuple(
        Input(
            index=int(device["index"]),
            name=stable_name(str(device["name"])),
            channels=int(device["max_input_channels"]),
            rate_hz=round(float(device["default_samplerate"])),
        )
        for device in devices
        if int(device["max_input_channels"]) > 0
    )


def stable_name(name: str) -> str:
    """A device's name without the number of its card (``Stethoscope: USB Audio (hw:2,0)``), which another plug changes."""
    return _CARD.sub("", name)


def choose(found: Sequence[Input], pattern: str) -> Input | None:
    """The input to record from: the first whose name has ``pattern`` in it or matches it (``*``, ``?``; case is ignored).

    Without a pattern, a USB device goes before others, and those that are no microphone at all come last.
    """
    if pattern:
        wanted = pattern.casefold()
        return next(
            (one for one in found if wanted in one.name.casefold() or fnmatch.fnmatchcase(one.name.casefold(), wanted)),
            None,
        )

    def order(one: Input) -> tuple[bool, bool]:
        return bool(_NOT_FIRST.search(one.name)), "usb" not in one.name.casefold()

    return min(found, key=order, default=None)


def _record(sounddevice: Any, wanted: Wanted) -> int:
    found = inputs(sounddevice.query_devices())
    chosen = choose(found, wanted.device)
    if chosen is None:
        if wanted.device and found:
            names = ", ".join(one.name for one in found)
            _fail(
                "not-found",
                f"no sound input is called {wanted.device!r}; there are: {names}",
                "plug the stethoscope in, or name it in stethoscope.device (bedside devices lists them)",
            )
        else:
            _fail("none", "no stethoscope is connected", "plug it in, and try again")
        return 1
    rate = _rate(sounddevice, chosen, wanted.rate_hz)
    if not rate:
        _fail("rate", f"{chosen.name} takes no sample rate from 4 to 48 kHz", "set stethoscope.rate to one that it has")
        return 1
    ring = Ring(max(round(wanted.ring_s * rate), 4096))

    def take(block: Any, frames: int, _time: Any, status: Any) -> None:
        ring.put(block, frames, overflow=status.input_overflow)

    gc.disable()  # a collection would stop the callback too
    try:
        stream = sounddevice.RawInputStream(
            samplerate=rate,
            blocksize=round(_BLOCK_S * rate),
            device=chosen.index,
            channels=1,
            dtype="int32",
            latency="high",
            callback=take,
        )
        stream.start()
    except sounddevice.PortAudioError as error:
        _fail("open", f"{chosen.name} can't be opened ({error})", "unplug it, plug it in again, and try again")
        return 1
    _tell(OPENED, _encode(Opened(device=chosen.name, rate_hz=rate)))
    gone = _pass_on(ring, rate)
    _finish(ring)
    if gone:
        _fail("gone", f"{chosen.name} stopped giving sound", "check its plug and its battery")
    os._exit(int(gone))  # the kernel closes the device; PortAudio may never return from closing one that is gone


def _pass_on(ring: Ring, rate: int) -> bool:
    """Tell what comes until standard input is closed (``False``) or the card has gone (``True``)."""
    seen, at = 0, time.monotonic()
    while True:
        closed, _, _ = select.select([0], [], [], _POLL_S)
        _tell_all(ring, rate)
        if closed:
            return False
        now, count = time.monotonic(), ring.frames + ring.lost
        if count != seen:
            seen, at = count, now
        elif now - at > (_SILENT_S if seen else _FIRST_S):
            return True


def _finish(ring: Ring) -> None:
    _tell_all(ring, ring.frames + 1, last=True)
    _tell(END, _encode(Counts(overflows=ring.overflows, lost=ring.lost)))


def _tell_all(ring: Ring, most: int, *, last: bool = False) -> None:
    for part in ring.take(most, last=last):
        if isinstance(part, int):
            _tell(GAP, struct.pack(">QI", part, ring.overflows))
        else:
            _tell(SAMPLES, part)


def _rate(sounddevice: Any, chosen: Input, wanted: int) -> int:
    candidates = (wanted,) if wanted else (chosen.rate_hz, *RATES)
    for rate in candidates:
        if LOWEST <= rate <= HIGHEST:
            try:
                sounddevice.check_input_settings(device=chosen.index, channels=1, dtype="int32", samplerate=rate)
            except sounddevice.PortAudioError:
                continue
            return rate
    return 0


def _fail(code: Trouble, what: str, remedy: str) -> None:
    _tell(FAILED, _encode(Failure(code=code, what=what, remedy=remedy)))


def _tell(kind: int, body: bytes) -> None:
    view = memoryview(struct.pack(">BI", kind, len(body)) + body)
    while view:
        view = view[os.write(1, view) :]


def _die_with(parent: int) -> None:
    """Be killed when the starting thread ends; leave at once when it ended before this was set."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

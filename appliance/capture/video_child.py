"""The process that decodes video: reads the source, finds the picture area, cuts it out, judges it, writes the ring.

What this module keeps true: a driver or a decoder that crashes or hangs takes nothing else along; of each frame only what
lies inside the known region gets into the ring; a frame that came while this process was busy is counted, not waited for.

It is started as ``python -m appliance.capture.video_child`` by ``video_process``, never imported by it.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import queue
import resource
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import jpeg_ls
import msgspec
import numpy as np
import numpy.typing as npt

from appliance.capture import video_region
from appliance.capture.video_area import CHANGED, DISK, NO_PICTURE, SEARCHING, Region, rectangle
from appliance.capture.video_messages import Gone, Heard, Order, Picture, Ready, Settings, send
from appliance.capture.video_quality import Meter
from appliance.capture.video_region import Cutter, Found
from appliance.capture.video_ring import RingFrame, RingWriter, Span
from appliance.capture.video_source import Source, SourceGone
from appliance.capture.video_time import Timeline
from appliance.store.files import RealFiles

_QUEUE = 4
_MEMORY = 1536 << 20
_REPORT_S = 0.2
_SEARCH_EVERY_S = 0.5
_CHANGED_FOR_S = 3.0
_JPEG_QUALITY = 72
_COLOURED = 0.004
_PR_SET_PDEATHSIG = 1

Grabbed = tuple[npt.NDArray[np.uint8], int, int, int]


class _Grabber(threading.Thread):
    """Reads the source as fast as it gives and stamps each frame; what nobody takes in time is dropped and counted."""

    def __init__(self, source: Source, rate_limit: float) -> None:
        super().__init__(name="grabber", daemon=True)
        self._source = source
        self._timeline = Timeline(source.opened.rate, rate_limit)
        self.frames: queue.Queue[Grabbed] = queue.Queue(_QUEUE)
        self.lost = self.dropped = 0
        self.ended = ""

    def run(self) -> None:
        """Until the source ends."""
        number = missing = 0
        try:
            while True:
                frame, now, source_ns = self._source.read()
                stamp = self._timeline.stamp(now, source_ns)
                self.lost += stamp.lost
                missing += stamp.lost
                if not stamp.take:
                    continue
                number += 1
                try:
                    self.frames.put_nowait((frame, number, stamp.t_ns, missing))
                    missing = 0
                except queue.Full:
                    self.dropped += 1
                    missing += 1
        except (SourceGone, cv2.error) as error:
            self.ended = str(error) if isinstance(error, SourceGone) else f"the picture can't be decoded ({error.err})"


class _Area:
    """The picture area: as remembered or fixed, or looked for until found; let go of when the screen has changed."""

    def __init__(self, settings: Settings, opened: Any) -> None:
        self._size = (opened.height, opened.width)
        self._recent: collections.deque[Any] = collections.deque(maxlen=video_region.FRAMES)
        self._searched = self._changed = 0.0
        self._held: Region | None = None
        self.cutter: Cutter | None = None
        self.reason = SEARCHING
        known = settings.regions.get(opened.id)
        if settings.fixed is not None:
            known = rectangle(*self._size, settings.fixed)
        if known is not None and (known.rows, known.columns) == self._size:
            self.hold(known)

    def hold(self, region: Region | None) -> None:
        """Take a person's area, or look anew."""
        self._held = region
        self._recent.clear()
        self.cutter = None if region is None else Cutter(region)
        self.reason = "" if region is not None else SEARCHING

    def see(self, frame: npt.NDArray[np.uint8], t_ns: int, *, free: bool) -> npt.NDArray[np.uint8] | None:
        """The picture cut out of a frame, or ``None`` with ``reason``; ``free``: the area may be looked for anew."""
        if frame.shape[:2] != self._size:
            self.reason = NO_PICTURE
            return None
        small = video_region.reduced(frame)
        now = t_ns / 1e9
        if self.cutter is not None and self.cutter.same_screen(small):
            self._changed = now
            self.reason = ""
            return self.cutter.cut(frame)
        if self.cutter is not None:
            self.reason = CHANGED
            if now - self._changed > _CHANGED_FOR_S and free:
                self.hold(self._held if self._held is not None and self._held.confirmed else None)
            return None
        self._recent.append(small)
        if len(self._recent) == video_region.FRAMES and now - self._searched > _SEARCH_EVERY_S:
            self._searched = now
            found = self._find(frame)
            self.reason = found.reason
            if found.region is not None:
                self.cutter, self._changed = Cutter(found.region), now
                self.cutter.same_screen(small)
        return None

    def _find(self, frame: npt.NDArray[np.uint8]) -> Found:
        return video_region.find(list(self._recent), *self._size, video_region.coloured(frame))


class Decoder:
    """The work between the source and the ring."""

    def __init__(self, link: Connection, settings: Settings) -> None:
        self._link = link
        self._settings = settings
        self._source = Source(settings.source, settings.rate_limit)
        opened = self._source.opened
        if min(opened.width, opened.height) < 64:
            raise SourceGone("the source gives no usable picture size: choose another output of the machine")
        self._area = _Area(settings, opened)
        self._ring = RingWriter(
            Path(settings.folder), settings.key, RealFiles(), keep_s=settings.keep_s, most=settings.most
        )
        self._meter = Meter()
        self._order = Order()
        self._kept = self._refused = 0
        self._durable = True
        self._missing = 0
        self._arrivals: collections.deque[int] = collections.deque(maxlen=30)
        self._reported = 0.0
        self._look, self._raw = 0, False
        send(link, Ready(**opened._asdict()))

    def run(self) -> None:
        """Until the source or the daemon ends."""
        grabber = _Grabber(self._source, self._settings.rate_limit)
        grabber.start()
        while True:
            self._obey()
            try:
                frame, number, t_ns, missing = grabber.frames.get(timeout=0.1)
            except queue.Empty:
                if grabber.ended:
                    break
                continue
            self._take(frame, number, t_ns, missing)
            if time.monotonic() - self._reported >= _REPORT_S:
                self._report(number, t_ns, grabber)
        with contextlib.suppress(OSError):
            self._ring.close()
        send(self._link, Gone(reason=grabber.ended))

    def close(self) -> None:
        """Make durable what there is."""
        with contextlib.suppress(OSError):
            self._ring.close()

    def _obey(self) -> None:
        while self._link.poll():
            order = msgspec.msgpack.decode(self._link.recv_bytes(), type=Order)
            if order.region is not None and order.region != self._order.region:
                self._area.hold(order.region)
            elif order.search != self._order.search:
                self._area.hold(None)
            self._ring.pin(Span(*pin) for pin in order.pins)
            if order.look:
                self._look, self._raw = order.look, order.raw
            closed = any(not pin[1] for pin in self._order.pins) and not any(not pin[1] for pin in order.pins)
            self._order = order
            if closed:
                self._flush()

    def _flush(self) -> None:
        try:
            self._ring.flush()
        except OSError:
            self._durable = False

    def _take(self, frame: npt.NDArray[np.uint8], number: int, t_ns: int, missing: int) -> None:
        self._arrivals.append(t_ns)
        recording = any(not pin[1] for pin in self._order.pins)
        picture = self._area.see(frame, t_ns, free=not recording)
        self._missing += missing
        if picture is None:
            self._refused += 1
            self._missing += 1
        else:
            self._meter.add(picture, t_ns)
            self._keep(picture, number, t_ns)
        if self._look:
            self._show(frame if picture is None else picture, number, t_ns, whole=picture is None)

    def _keep(self, picture: npt.NDArray[np.uint8], number: int, t_ns: int) -> None:
        if not self._order.spool or self._ring.full:
            self._durable = False
            self._missing += 1
            return
        pixels = _plain(picture)
        data = bytes(jpeg_ls.encode_array(pixels, interleave_mode=2 if pixels.ndim == 3 else None))
        rows, columns = pixels.shape[:2]
        channels = 3 if pixels.ndim == 3 else 1
        try:
            self._ring.add(RingFrame(number, t_ns, self._missing, rows, columns, channels, data))
        except OSError:
            self._durable = False
            self._missing += 1
        else:
            self._durable = True
            self._kept += 1
            self._missing = 0

    def _show(self, shown: npt.NDArray[np.uint8], number: int, t_ns: int, *, whole: bool) -> None:
        width, self._look = self._look, 0
        scale = min(1.0, width / shown.shape[1])
        size = (max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale)))
        small = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
        ok, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        if not ok:
            return
        raw = small if self._raw and not whole else None
        grey = None if raw is None else cv2.cvtColor(raw, cv2.COLOR_BGR2GRAY) if raw.ndim == 3 else raw
        send(
            self._link,
            Picture(
                number=number,
                t_ns=t_ns,
                jpeg=jpeg.tobytes(),
                whole=whole,
                rows=small.shape[0],
                columns=small.shape[1],
                pixels=b"" if grey is None else np.ascontiguousarray(grey).tobytes(),
            ),
        )

    def _report(self, number: int, t_ns: int, grabber: _Grabber) -> None:
        self._reported = time.monotonic()
        span = self._arrivals[-1] - self._arrivals[0]
        cutter = self._area.cutter
        send(
            self._link,
            Heard(
                number=number,
                t_ns=t_ns,
                kept=self._kept,
                lost=grabber.lost,
                dropped=grabber.dropped,
                refused=self._refused,
                rate=round((len(self._arrivals) - 1) * 1e9 / span, 2) if span else 0.0,
                quality=self._meter.latest,
                reason=self._area.reason or ("" if self._durable else DISK),
                region=None if cutter is None else cutter.region,
                durable=self._durable,
            ),
        )


def _plain(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Grey where the picture is grey (a grabber's colour noise apart), else RGB."""
    if picture.ndim == 2:
        return picture
    if video_region.coloured(picture) < _COLOURED:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
    return np.ascontiguousarray(picture[..., ::-1])


def main(arguments: list[str]) -> int:
    """Decode until the source or the daemon ends; ``arguments``: the socket's descriptor and the daemon's process id."""
    descriptor, parent = arguments
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cv2.setNumThreads(1)
    link = Connection(int(descriptor))
    try:
        settings = msgspec.msgpack.decode(link.recv_bytes(), type=Settings)
        decoder = Decoder(link, settings)
        try:
            decoder.run()
        finally:
            decoder.close()
    except SourceGone as error:
        send(link, Gone(reason=str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the daemon closed the link: it wants no more
        return 0
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(sys.argv[1:]))  # a decoder that hangs in its own threads must not keep the process

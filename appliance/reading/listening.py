"""Listening along while a heart or lung sound is recorded: what to tell the person, and when enough has been heard.

What this module keeps true: the sound is resampled once, as it comes; quality is what a reading would call it (the same
functions); what has been counted as clean stays counted, what is noise now never takes it back. Each half second is judged
once, a second after it came, in the light of the five to ten seconds around it.

Contact noise (the bell slides, a cable knocks) is a frame of 50 ms far above the median frame, as a whole and above 400 Hz:
heart sounds have little there, and breath and crackles do not stand out that far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import soxr

from appliance.capture.stethoscope_judge import Heard, Judge
from appliance.reading import heart_features, sound_quality
from appliance.reading.auscultation import CONVINCING, heart_signal_quality, lung_signal_quality
from appliance.reading.spectral import Floats, bands, power
from appliance.records import Modality

HEART_RATE_HZ, LUNG_RATE_HZ = heart_features.RATE_HZ, 4000
SLOT_S = 0.5
BEATS, BREATHS = 12, 3
"""Clean ones that are enough; the networks look at windows of 3.2 and more seconds, and two of them beat one."""
LEAST_HEART_S, LEAST_LUNG_S = 8.0, 12.0
UNCOUNTED_LUNG_S = 25.0
"""So many clean seconds are enough where breathing is too even or too faint to be counted."""
HEART_WINDOW_S, LUNG_WINDOW_S = 6.0, 15.0
CLEAN, PERIODIC = 0.52, 0.33
"""Signal quality and periodicity of 6 s from which beats are taken for clean: 95 of 100 pieces of mere noise lie below both,
nine of ten recordings of PhysioNet/CinC 2016 above."""
LEAST_WINDOW_S = 4.0
"""Before so much is in, nothing is counted: in less, noise beats by chance."""
LUNG_CLEAN = 0.2
QUIET_DB, SILENT_DB = -62.0, -90.0
CLIPPED = 0.002
HEART_KNOCK_DB, LUNG_KNOCK_DB, KNOCK_HIGH_DB = 10.0, 20.0, 18.0
BROAD_DB = 12.0
"""A knock has at least so little less above 400 Hz than in all: a denoised recording has next to nothing there."""
HUM = 0.5
"""Share of power in steady lines that is hum."""
BREATH_LAGS_S = (1.2, 8.0)


def listener(modality: Modality, rate_hz: int) -> Judge:
    """The judge for a recording of this kind, as it comes from the device."""
    return _Heart(rate_hz) if modality is Modality.HEART_SOUND else _Lung(rate_hz)


class Slot(NamedTuple):
    """One half second, as it was recorded."""

    level_db: float
    clipped: float


class _Along:
    """What heart and lung share: samples at the models' rate, slots, and what is wrong now."""

    window_s: float
    rate: int

    def __init__(self, source_hz: int, rate: int, window_s: float) -> None:
        self.rate, self.window_s = rate, window_s
        self._resampler = soxr.ResampleStream(source_hz, rate, 1, dtype="float32", quality="MQ")
        self._slot_raw = max(1, round(SLOT_S * source_hz))
        self._raw = np.zeros(0, np.float32)
        self._slots: list[Slot] = []
        self._wave = np.zeros(0, np.float32)
        self._first = 0  # number of the first sample held
        self._judged = 0  # slots
        self.clean_s = 0.0
        self.heard = Heard()

    def feed(self, samples: Floats) -> Heard:
        """See ``capture.stethoscope_judge.Judge``."""
        self._raw = np.concatenate([self._raw, samples])
        while self._raw.size >= self._slot_raw:
            slot, self._raw = self._raw[: self._slot_raw], self._raw[self._slot_raw :]
            self._slots.append(Slot(sound_quality.level_db(slot), sound_quality.clipped_share(slot)))
        fresh = np.asarray(self._resampler.resample_chunk(samples), np.float32)
        self._wave = np.concatenate([self._wave, fresh])
        spare = self._wave.size - int(self.window_s * self.rate)
        if spare > 0:
            self._wave = self._wave[spare:]
            self._first += spare
        if self._wave.size >= LEAST_WINDOW_S * self.rate:
            if self._judged < len(self._slots) - 1:
                self._judge()
        elif self._slots:
            self.heard = self._said(self._wrong() or "listening", 0.0, None)
        return self.heard

    def _judge(self) -> None:
        raise NotImplementedError

    def _said(self, guidance: str, quality: float, rate: float | None) -> Heard:
        raise NotImplementedError

    def _wrong(self) -> str:
        """What is wrong with the last second and a half, as a code; empty when nothing is."""
        recent = self._slots[-3:]
        level = max(slot.level_db for slot in recent)
        if level < SILENT_DB:
            return "no-signal"
        if max(slot.clipped for slot in recent) > CLIPPED:
            return "too-loud"
        return "too-quiet" if level < QUIET_DB else ""

    def _unit(self) -> Floats:
        wave = self._wave - np.mean(self._wave)
        return np.asarray(wave / (np.sqrt(np.mean(wave**2)) + 1e-12), np.float32)

    def _due(self, knocks: Floats) -> list[int]:
        """The slots to judge now (numbers) that are clean as recorded; all up to a second ago are judged with this."""
        until = len(self._slots) - 1
        due, self._judged = range(self._judged, until), until
        clean = []
        for number in due:
            at = number * SLOT_S - self._first / self.rate
            slot = self._slots[number]
            near = np.any((knocks > at - 0.15) & (knocks < at + SLOT_S + 0.15))
            if not near and slot.clipped <= CLIPPED and slot.level_db >= QUIET_DB:
                clean.append(number)
        self.clean_s += len(clean) * SLOT_S
        return clean

    def _seconds(self) -> float:
        return len(self._slots) * SLOT_S


class _Heart(_Along):
    def __init__(self, source_hz: int) -> None:
        super().__init__(source_hz, HEART_RATE_HZ, HEART_WINDOW_S)
        self._beats = 0

    def _judge(self) -> None:
        wave = self._unit()
        found = heart_features.spectra(wave)
        beats = heart_features.find_beats(found.envelope)
        values = heart_features.features(wave, found, beats)
        height = float(values[heart_features.FEATURES.index("z-S1")])
        clipped = max(slot.clipped for slot in self._slots[-int(self.window_s / SLOT_S) :])
        quality = heart_signal_quality(beats.periodicity, height, clipped, 0.0)
        knocks = find_knocks(wave, self.rate, HEART_KNOCK_DB)
        clean = self._due(knocks)
        at = beats.first / heart_features.FRAMES_PER_S + self._first / self.rate
        beating = quality >= CLEAN and beats.periodicity >= PERIODIC
        if beating:
            self._beats += sum(
                int(np.count_nonzero((at >= number * SLOT_S) & (at < (number + 1) * SLOT_S))) for number in clean
            )
        now = self._wave.size / self.rate
        guidance = self._wrong()
        if not guidance and np.any(knocks > now - 1.5):
            guidance = "contact-noise"
        if not guidance and not beating:
            guidance = "hum" if hums(wave, self.rate) else "searching"
        sure = beating and beats.periodicity >= CONVINCING
        self.heard = self._said(guidance or "good", quality, beats.rate_per_minute if sure else None)

    def _said(self, guidance: str, quality: float, rate: float | None) -> Heard:
        enough = self._beats >= BEATS and self._seconds() >= LEAST_HEART_S
        return Heard(
            level_db=round(max(self._slots[-1].level_db, -200.0), 1),
            quality=round(quality, 2),
            guidance="enough" if enough else guidance,
            clean=float(self._beats),
            needed=float(BEATS),
            unit="beats",
            rate_per_minute=None if rate is None else round(rate),
            enough=enough,
        )


class _Lung(_Along):
    def __init__(self, source_hz: int) -> None:
        super().__init__(source_hz, LUNG_RATE_HZ, LUNG_WINDOW_S)
        self._breaths = 0.0

    def _judge(self) -> None:
        wave = self._unit()
        knocks = find_knocks(wave, self.rate, LUNG_KNOCK_DB)
        clipped = max(slot.clipped for slot in self._slots[-int(self.window_s / SLOT_S) :])
        quality = lung_signal_quality(sound_quality.indices(wave, self.rate), clipped, 0.0)
        period = breath_period(wave, self.rate)
        clean = self._due(knocks)
        if period is not None and quality >= LUNG_CLEAN:
            self._breaths += len(clean) * SLOT_S / period
        now = self._wave.size / self.rate
        guidance = self._wrong()
        if not guidance and np.any(knocks > now - 1.5):
            guidance = "contact-noise"
        if not guidance and quality < LUNG_CLEAN:
            guidance = "hum" if hums(wave, self.rate) else "breathe"
        self.heard = self._said(guidance or "good", quality, None if period is None else 60.0 / period)

    def _said(self, guidance: str, quality: float, rate: float | None) -> Heard:
        counted = self._breaths >= BREATHS and self._seconds() >= LEAST_LUNG_S
        enough = counted or self.clean_s >= UNCOUNTED_LUNG_S
        clean = max(self._breaths, BREATHS * self.clean_s / UNCOUNTED_LUNG_S)
        return Heard(
            level_db=round(max(self._slots[-1].level_db, -200.0), 1),
            quality=round(quality, 2),
            guidance="enough" if enough else guidance,
            clean=round(min(clean, 99.0), 1),
            needed=float(BREATHS),
            unit="breaths",
            rate_per_minute=None if rate is None else round(rate),
            enough=enough,
        )


def find_knocks(wave: Floats, rate_hz: int, above_db: float) -> Floats:
    """Seconds of the frames that are contact noise in ``wave`` (unit RMS, at least 2.5 s)."""
    frame = rate_hz // 20
    raw = power(wave, frame, frame // 2)
    high = raw @ bands(rate_hz, frame, (400.0, 0.48 * rate_hz))
    level = 10.0 * np.log10(np.sum(raw, axis=1) + 1e-9)
    high_db = 10.0 * np.log10(high[:, 0] + 1e-9)
    broad = (high_db > np.median(high_db) + KNOCK_HIGH_DB) & (high_db > level - BROAD_DB)
    knock = broad & (level > np.median(level) + above_db)
    return np.asarray(np.flatnonzero(knock) * (frame // 2) / rate_hz, np.float32)


def hums(wave: Floats, rate_hz: int) -> bool:
    """Whether steady lines (mains hum, a fan) hold most of the power."""
    share = sound_quality.indices(wave, rate_hz)[sound_quality.INDICES.index("tone-share")]
    return bool(share > HUM)


def breath_period(wave: Floats, rate_hz: int) -> float | None:
    """Seconds from breath to breath, by the autocorrelation of the log level of 150 to 1000 Hz; ``None`` when not sure."""
    frame = rate_hz // 20
    raw = power(wave, frame, frame // 2)
    level = np.log(raw @ bands(rate_hz, frame, (150.0, 1000.0)) + 1e-9)[:, 0]
    kernel = np.hanning(15)
    smooth = np.convolve(level, kernel / kernel.sum(), mode="valid")
    per_s = rate_hz / (frame // 2)
    low, high = round(BREATH_LAGS_S[0] * per_s), min(round(BREATH_LAGS_S[1] * per_s), int(0.6 * smooth.size))
    if high <= low + 2 or np.std(smooth) < 0.1:
        return None
    correlation = heart_features.autocorrelation(np.asarray(smooth, np.float32), high + 1)
    inner = correlation[low:high]
    peaks = 1 + np.flatnonzero((inner[1:-1] >= inner[:-2]) & (inner[1:-1] >= inner[2:]))
    if not peaks.size:
        return None
    highest = float(np.max(inner[peaks]))
    if highest <= 0.25:
        return None
    first = int(peaks[np.flatnonzero(inner[peaks] >= 0.7 * highest)[0]])  # two breaths are as alike as one
    return (low + first) / per_s

// A recording: its waveform and spectrogram, drawn from the recording itself, and filters for the heart's and the lung's band.
"use strict";

(() => {
  const audio = document.querySelector(".sound audio");
  const wave = document.getElementById("wave"), spectrum = document.getElementById("spectrum");
  if (!audio || !wave) return;
  const RATE = 8000, SIZE = 512, TOP = 2000;
  let sound = null, pictures = null;

  const transform = (real, imaginary) => {  // radix-2, in place (Cooley and Tukey 1965)
    const count = real.length;
    for (let i = 1, j = 0; i < count; i += 1) {
      let bit = count >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) { [real[i], real[j]] = [real[j], real[i]]; [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]]; }
    }
    for (let span = 2; span <= count; span <<= 1) {
      const angle = -2 * Math.PI / span;
      for (let start = 0; start < count; start += span) {
        for (let k = 0; k < span / 2; k += 1) {
          const c = Math.cos(angle * k), s = Math.sin(angle * k), a = start + k, b = a + span / 2;
          const r = real[b] * c - imaginary[b] * s, i = real[b] * s + imaginary[b] * c;
          real[b] = real[a] - r; imaginary[b] = imaginary[a] - i;
          real[a] += r; imaginary[a] += i;
        }
      }
    }
  };
  const drawWave = () => {
    const { width, height } = wave, context = wave.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    context.fillStyle = "#5eead4";
    const loudest = sound.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);
    for (let column = 0; column < width; column += 1) {
      let low = 0, high = 0;
      const end = Math.max(Math.floor((column + 1) * sound.length / width), Math.floor(column * sound.length / width) + 1);
      for (let at = Math.floor(column * sound.length / width); at < end && at < sound.length; at += 1) {
        low = Math.min(low, sound[at]); high = Math.max(high, sound[at]);
      }
      const top = (1 - high / loudest) * height / 2, bottom = (1 - low / loudest) * height / 2;
      context.fillRect(column, top, 1, Math.max(1, bottom - top));
    }
  };
  const drawSpectrum = () => {
    const { width, height } = spectrum, context = spectrum.getContext("2d"), image = context.createImageData(width, height);
    const bins = Math.floor(SIZE * TOP / RATE), levels = new Float32Array(width * bins);
    let loudest = -200;
    for (let column = 0; column < width; column += 1) {
      const real = new Float32Array(SIZE), imaginary = new Float32Array(SIZE);
      const middle = (column + 0.5) * sound.length / width;
      for (let at = 0; at < SIZE; at += 1) {
        const value = sound[Math.floor(middle) - SIZE / 2 + at] ?? 0;
        real[at] = value * (0.5 - 0.5 * Math.cos(2 * Math.PI * at / SIZE));
      }
      transform(real, imaginary);
      for (let bin = 0; bin < bins; bin += 1) {
        const level = 10 * Math.log10(real[bin] ** 2 + imaginary[bin] ** 2 + 1e-12);
        levels[column * bins + bin] = level;
        loudest = Math.max(loudest, level);
      }
    }
    for (let row = 0; row < height; row += 1) {
      const bin = Math.min(bins - 1, Math.floor((1 - (row + 0.5) / height) * bins));
      for (let column = 0; column < width; column += 1) {
        const share = Math.min(1, Math.max(0, (levels[column * bins + bin] - loudest + 70) / 70)), at = (row * width + column) * 4;
        image.data[at] = 255 * Math.min(1, share * 1.6);
        image.data[at + 1] = 255 * Math.max(0, share * 1.7 - 0.55);
        image.data[at + 2] = 255 * Math.max(0, 0.45 * Math.sin(Math.PI * share) + Math.max(0, share * 4 - 3));
        image.data[at + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    context.fillStyle = "#fff";
    context.font = "12px sans-serif";
    for (const frequency of [500, 1000, 1500]) context.fillText(`${frequency} Hz`, 4, height * (1 - frequency / TOP) + 4);
  };
  const mark = () => {
    for (const canvas of [wave, spectrum]) {
      const context = canvas.getContext("2d");
      context.putImageData(pictures.get(canvas), 0, 0);
      context.fillStyle = "#fde047";
      context.fillRect(Math.round(canvas.width * audio.currentTime / (audio.duration || 1)), 0, 2, canvas.height);
    }
  };
  const follow = () => { mark(); if (!audio.paused) requestAnimationFrame(follow); };
  const load = async () => {
    const answer = await fetch(audio.src);
    if (!answer.ok) return;
    const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await answer.arrayBuffer());
    sound = decoded.getChannelData(0);
    document.getElementById("sound").hidden = false;
    for (const canvas of [wave, spectrum]) canvas.width = Math.max(300, Math.min(1200, canvas.clientWidth));
    drawWave();
    drawSpectrum();
    pictures = new Map([wave, spectrum].map((one) => [one, one.getContext("2d").getImageData(0, 0, one.width, one.height)]));
    for (const canvas of [wave, spectrum]) {
      canvas.addEventListener("click", (event) => {
        audio.currentTime = audio.duration * event.offsetX / canvas.clientWidth;
        mark();
      });
    }
    for (const kind of ["seeked", "pause", "play"]) audio.addEventListener(kind, follow);
  };
  load();

  // Butterworth of fourth order at each end: two sections with these Q.
  const sections = [0.541, 1.307];
  let context = null, source = null, chain = [];
  const through = (low, high) => {
    if (!context) {
      context = new AudioContext();
      source = context.createMediaElementSource(audio);
    }
    context.resume();
    source.disconnect();
    for (const part of chain) part.disconnect();
    chain = [];
    for (const [kind, frequency] of [["highpass", low], ["lowpass", high]]) {
      if (!frequency) continue;
      for (const q of sections) {
        const filter = context.createBiquadFilter();
        filter.type = kind;
        filter.frequency.value = frequency;
        filter.Q.value = 20 * Math.log10(q);  // for these kinds Q is in dB (Web Audio 1.1)
        chain.push(filter);
      }
    }
    [source, ...chain, context.destination].reduce((from, to) => from.connect(to));
  };
  const bands = [...document.querySelectorAll(".band")];
  for (const button of bands) {
    button.addEventListener("click", () => {
      through(Number(button.dataset.low), Number(button.dataset.high));
      for (const one of bands) one.setAttribute("aria-pressed", one === button);
    });
  }
})();

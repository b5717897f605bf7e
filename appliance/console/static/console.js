// Refreshes the page's live regions, moves the overlay, draws the sound. Everything else works without it.
"use strict";

const EVERY_MS = 3000;
let tag = null;
let failures = 0;
let touched = false; // whether somebody was at the screen since it was last asked for
for (const event of ["pointerdown", "keydown", "scroll"]) addEventListener(event, () => { touched = true; }, { passive: true, capture: true });

// ---- live regions: the page is asked for again; it answers 304 until something has changed

function adopt(old, fresh) {
  const open = new Set([...old.querySelectorAll("details[open]")].map((one) => one.id || one.className));
  const focused = document.activeElement && old.contains(document.activeElement) ? document.activeElement.id : "";
  for (const details of fresh.querySelectorAll("details")) details.open = open.has(details.id || details.className);
  old.replaceWith(fresh);
  prepare(fresh);
  if (focused) document.getElementById(focused)?.focus();
}

// An answer that only changed around the picture keeps its picture (zoom, sliders, a sound that plays).
function keepMedia(old, fresh) {
  if (old.dataset.stage !== fresh.dataset.stage) return;
  for (const selector of [".picture", ".card:has(audio)"]) {
    const before = old.querySelector(selector), after = fresh.querySelector(selector);
    if (before && after) after.replaceWith(before);
  }
}

const served = new Map();

async function refresh() {
  if (document.hidden) return;
  try {
    const headers = { "X-Refresh": touched ? "touched" : "by itself" };
    if (tag) headers["If-None-Match"] = tag;
    touched = false;
    const answer = await fetch(location.pathname + location.search, { headers, cache: "no-store", credentials: "same-origin" });
    failures = 0;
    if (answer.status === 401) location.reload(); // the screen is locked: nothing of a patient stays on it
    if (answer.status === 200) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.title = fresh.title;
      for (const region of fresh.querySelectorAll("[data-live]")) {
        const name = region.dataset.live, before = served.get(name);
        const old = document.querySelector(`[data-live="${name}"]`);
        served.set(name, region.outerHTML);
        if (!old || before === region.outerHTML) continue;
        const adopted = document.importNode(region, true);
        if (name === "answer") keepMedia(old, adopted);
        adopt(old, adopted);
      }
      tag = answer.headers.get("ETag");
    }
  } catch {
    failures += 1;
  }
  document.getElementById("gone").hidden = failures < 2;
}

function live() {
  const regions = document.querySelectorAll("[data-live]");
  if (!regions.length) return;
  for (const region of regions) served.set(region.dataset.live, region.outerHTML);
  setInterval(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", refresh);
}

// ---- the picture: zoomed, moved, and windowed over all its stored values once somebody asks for more than the preview

async function stored(url) {
  const answer = await fetch(url, { credentials: "same-origin" });
  if (!answer.ok) throw new Error("no stored values");
  const head = (name) => answer.headers.get(name);
  const [low, high] = head("X-Window").split(" ").map(Number);
  const bytes = await answer.arrayBuffer();
  const values = new Uint16Array(bytes); // little-endian, as every machine with a browser is
  return { rows: Number(head("X-Rows")), columns: Number(head("X-Columns")), offset: Number(head("X-Offset")), low, high, invert: head("X-Invert") === "1", values };
}

function windowed(canvas, grey, centre, width) {
  const table = new Uint8ClampedArray(65536), low = centre - width / 2;
  for (let value = 0; value < 65536; value += 1) {
    const shown = (value + grey.offset - low) / width * 255;
    table[value] = grey.invert ? 255 - Math.min(255, Math.max(0, shown)) : shown;
  }
  const pen = canvas.getContext("2d"), picture = pen.createImageData(grey.columns, grey.rows);
  const out = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < grey.values.length; i += 1) out[i] = 0xff000000 | table[grey.values[i]] * 0x010101;
  pen.putImageData(picture, 0, 0);
}

function picture(card) {
  const sheet = card.querySelector(".sheet"), stage = card.querySelector(".stage");
  const photo = card.querySelector(".photo"), overlay = card.querySelector(".overlay");
  const look = { brightness: 100, contrast: 100 };
  let canvas = null, grey = null, asked = false, drawing = false;

  const draw = () => {
    drawing = false;
    if (!grey) {
      photo.style.filter = `brightness(${look.brightness}%) contrast(${Math.min(look.contrast, 300)}%)`;
      return;
    }
    const whole = grey.high - grey.low, up = grey.invert ? 1 : -1;
    windowed(canvas, grey, (grey.low + grey.high) / 2 + up * whole * (look.brightness - 100) / 100, Math.max(1, whole * 100 / look.contrast));
  };
  const redraw = () => {
    if (stage.dataset.pixels && !asked) {
      asked = true;
      stored(stage.dataset.pixels).then((found) => {
        canvas = document.createElement("canvas");
        canvas.width = found.columns; canvas.height = found.rows;
        canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", photo.alt);
        canvas.style.width = photo.clientWidth && !sheet.classList.contains("zoomed") ? `${photo.clientWidth}px` : "";
        grey = found; draw(); photo.replaceWith(canvas);
      }).catch(() => {}); // the preview's brightness does then
    }
    if (!drawing) { drawing = true; requestAnimationFrame(draw); }
  };
  const set = {
    opacity: (value) => { if (overlay) overlay.style.opacity = value / 100; },
    zoom: (value) => {
      const x = (stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth;
      const y = (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight;
      if (!sheet.dataset.width && sheet.clientWidth) sheet.dataset.width = sheet.clientWidth;
      sheet.classList.toggle("zoomed", value > 100);
      stage.classList.toggle("grab", value > 100);
      sheet.style.width = value > 100 ? `${sheet.dataset.width * value / 100}px` : "";
      if (canvas) canvas.style.width = value > 100 ? "" : `${sheet.dataset.width}px`;
      stage.scrollLeft = x * stage.scrollWidth - stage.clientWidth / 2;
      stage.scrollTop = y * stage.scrollHeight - stage.clientHeight / 2;
    },
    brightness: (value) => { look.brightness = value; redraw(); },
    contrast: (value) => { look.contrast = value; redraw(); },
  };
  const inputs = [...card.querySelectorAll("[data-set]")];
  const turn = (input, value) => { input.value = value; set[input.dataset.set](Number(input.value)); };
  for (const scripted of card.querySelectorAll("[data-scripted]")) scripted.hidden = false;
  for (const input of inputs) input.addEventListener("input", () => set[input.dataset.set](Number(input.value)));
  card.querySelector("[data-reset]")?.addEventListener("click", () => { for (const input of inputs) turn(input, input.defaultValue); });

  const zoom = inputs.find((input) => input.dataset.set === "zoom"), fingers = new Map();
  let apart = 0;
  const spread = () => { const [one, two] = [...fingers.values()]; return Math.hypot(one.x - two.x, one.y - two.y); };
  stage.addEventListener("wheel", (wheel) => {
    if (!wheel.ctrlKey && !wheel.altKey) return;
    wheel.preventDefault();
    turn(zoom, Number(zoom.value) - wheel.deltaY);
  }, { passive: false });
  stage.addEventListener("pointerdown", (down) => {
    fingers.set(down.pointerId, { x: down.clientX, y: down.clientY });
    if (fingers.size === 2) apart = spread() / Number(zoom.value);
    if (stage.classList.contains("grab")) { stage.setPointerCapture(down.pointerId); stage.classList.add("held"); }
  });
  stage.addEventListener("pointermove", (move) => {
    const before = fingers.get(move.pointerId);
    if (!before) return;
    fingers.set(move.pointerId, { x: move.clientX, y: move.clientY });
    if (fingers.size === 2 && apart) turn(zoom, Math.round(spread() / apart));
    else if (stage.classList.contains("grab")) { stage.scrollLeft += before.x - move.clientX; stage.scrollTop += before.y - move.clientY; }
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (up) => { fingers.delete(up.pointerId); stage.classList.remove("held"); });

  const missing = () => {
    const note = document.createElement("p");
    note.className = "missing";
    note.textContent = photo.dataset.missing;
    sheet.replaceChildren(note);
    card.querySelector(".tools")?.remove();
  };
  if (photo.complete && photo.naturalWidth === 0) missing();
  photo.addEventListener("error", missing);
}

// ---- the sound: its envelope and where it plays

async function wave(box) {
  const canvas = box.querySelector("canvas"), audio = box.parentElement.querySelector("audio");
  let peaks = [];
  const draw = () => {
    const pen = canvas.getContext("2d"), { width, height } = canvas, style = getComputedStyle(box);
    const played = audio.duration ? (audio.currentTime / audio.duration) * peaks.length : 0;
    pen.clearRect(0, 0, width, height);
    peaks.forEach((peak, x) => {
      pen.fillStyle = style.getPropertyValue(x < played ? "--accent" : "--soft");
      pen.fillRect(x, height / 2 * (1 - peak), 1, Math.max(1, height * peak));
    });
  };
  try {
    const bytes = await (await fetch(box.dataset.wave, { credentials: "same-origin" })).arrayBuffer();
    const sound = (await new OfflineAudioContext(1, 1, 44100).decodeAudioData(bytes)).getChannelData(0);
    const step = sound.length / canvas.width;
    peaks = Array.from({ length: canvas.width }, (_, x) => {
      let peak = 0;
      for (let i = Math.floor(x * step); i < (x + 1) * step && i < sound.length; i += 1) peak = Math.max(peak, Math.abs(sound[i]));
      return peak;
    });
    const loudest = Math.max(...peaks, 1e-6);
    peaks = peaks.map((peak) => peak / loudest);
    draw();
    for (const event of ["timeupdate", "seeked", "ended"]) audio.addEventListener(event, draw);
    canvas.addEventListener("click", (click) => { audio.currentTime = click.offsetX / canvas.clientWidth * audio.duration; });
  } catch {
    box.hidden = true;
  }
}

// ---- guidance aloud, where the tablet has a voice for its language

const voiceFor = (language) => speechSynthesis.getVoices().find((voice) => voice.lang.toLowerCase().split(/[-_]/)[0] === language);

function speak(button) {
  if (!("speechSynthesis" in window)) return;
  const texts = [...button.parentElement.querySelectorAll(".big, [data-spoken]")];
  const language = (one) => one.closest("[lang]").lang.split("-")[0];
  const show = () => { button.hidden = !texts.length || !texts.every((one) => voiceFor(language(one))); };
  show();
  speechSynthesis.addEventListener("voiceschanged", show);
  button.addEventListener("click", () => {
    const speaking = speechSynthesis.speaking;
    speechSynthesis.cancel();
    if (speaking) return; // a second tap ends it
    for (const one of texts) {
      const said = new SpeechSynthesisUtterance(one.textContent.trim());
      said.voice = voiceFor(language(one));
      said.lang = said.voice.lang;
      said.rate = 0.9;
      speechSynthesis.speak(said);
    }
  });
}

// ---- the PIN by finger, where the screen has no keyboard

function pad(form) {
  const box = form.querySelector(".pad"), pin = form.querySelector("#pin");
  box.hidden = false;
  for (const key of ["1", "2", "3", "4", "5", "6", "7", "8", "9", "⌫", "0"]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = key;
    if (key === "⌫") button.setAttribute("aria-label", box.dataset.back);
    button.addEventListener("click", () => { pin.value = key === "⌫" ? pin.value.slice(0, -1) : pin.value + key; });
    box.append(button);
  }
}

// ---- the bands to listen in

function filters(box) {
  const audio = box.parentElement.querySelector("audio"), plain = audio.getAttribute("src");
  box.hidden = false;
  box.addEventListener("change", (event) => {
    const at = audio.currentTime, playing = !audio.paused;
    audio.src = event.target.value ? `${plain}?filter=${event.target.value}` : plain;
    audio.addEventListener("loadedmetadata", () => { audio.currentTime = at; if (playing) audio.play(); }, { once: true });
  });
}

// ---- what any region may hold

function prepare(root) {
  for (const card of root.querySelectorAll(".picture:not([data-ready])")) { card.dataset.ready = ""; picture(card); }
  for (const box of root.querySelectorAll("[data-wave]:not([data-ready])")) { box.dataset.ready = ""; wave(box); }
  for (const box of root.querySelectorAll("[data-filters]:not([data-ready])")) { box.dataset.ready = ""; filters(box); }
  for (const button of root.querySelectorAll("[data-speak]:not([data-ready])")) { button.dataset.ready = ""; speak(button); }
  for (const button of root.querySelectorAll("[data-print]")) {
    button.hidden = false;
    button.addEventListener("click", () => print());
  }
}

document.addEventListener("DOMContentLoaded", () => {
  live();
  prepare(document);
  for (const form of document.querySelectorAll("[data-pad]")) pad(form);
  for (const select of document.querySelectorAll("[data-submit]")) select.addEventListener("change", () => select.form.submit());
  for (const button of document.querySelectorAll("[data-needless]")) button.hidden = true;
  for (const form of document.querySelectorAll("[data-busy]")) {
    form.addEventListener("submit", () => {
      const button = form.querySelector("button");
      button.disabled = true;
      button.textContent = form.dataset.busy;
    });
  }
  document.addEventListener("click", (click) => {
    for (const tile of document.querySelectorAll(".tile[open]")) if (!tile.contains(click.target)) tile.open = false;
  });
});

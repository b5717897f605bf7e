// Draws what the box's stethoscope hears, and shows the next step when there is one. The page works without it.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const box = document.getElementById("listen");
  if (!box) return;
  const { phase, recording } = box.dataset;
  const canvas = document.getElementById("wave"), ring = document.getElementById("ring"), guide = document.getElementById("guide");
  const set = (id, text) => {
    const place = document.getElementById(id);
    if (place && place.textContent !== text) place.textContent = text;
  };

  // Pairs of least and greatest sample, 50 a second, newest at the end side; scaled to the loudest, but a hush stays small.
  function draw(wave) {
    const pen = canvas.getContext("2d"), { width, height } = canvas, middle = height / 2;
    const pairs = 300, step = width / pairs, count = wave.length / 2;
    let loudest = 20;
    for (const value of wave) loudest = Math.max(loudest, Math.abs(value));
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = getComputedStyle(canvas).color;
    for (let i = 0; i < count; i += 1) {
      const top = wave[2 * i + 1] / loudest, bottom = wave[2 * i] / loudest;
      const x = (pairs - count + i) * step;
      pen.fillRect(x, middle - top * middle * 0.95, step, Math.max(1, (top - bottom) * middle * 0.95));
    }
  }
  if (canvas) draw((canvas.dataset.waveNow || "").split(",").filter(Boolean).map(Number));
  const events = new EventSource("/listen/events?refresh");
  for (const form of box.querySelectorAll("form")) {
    form.addEventListener("submit", () => {
      events.close(); // or the news of what this does would overtake its answer
      for (const button of form.querySelectorAll("button")) button.disabled = true;
    });
  }
  const gone = document.getElementById("gone");
  events.addEventListener("error", () => {
    gone.hidden = false;
    if (events.readyState === EventSource.CLOSED) location.reload(); // refused for good: signed out, most likely
  });
  events.addEventListener("message", (message) => {
    gone.hidden = true;
    const now = JSON.parse(message.data);
    const other = now.recording !== recording && !(phase === "starting" && now.phase === "starting");
    if (now.phase !== phase || (other && recording)) {
      events.close();
      location.replace(location.pathname + location.search);
      return;
    }
    if (phase !== "recording") return;
    draw(now.wave);
    set("time", now.time);
    set("count", now.count);
    set("rate", now.rate);
    set("lost", now.lost);
    set("graded", now.graded);
    set("preview", now.preview);
    document.getElementById("level").value = now.level;
    set("guide-text", now.text);
    guide.className = `guide ${now.tone}`;
    for (const icon of guide.querySelectorAll("[data-icon]")) icon.hidden = icon.dataset.icon !== now.icon;
    ring.setAttribute("class", `ring ${now.tone}`);
    ring.setAttribute("aria-label", now.count);
    ring.querySelector(".ring-fill").setAttribute("stroke-dasharray", `${Math.min(100, 100 * now.clean / now.needed)} 100`);
  });
  addEventListener("pagehide", () => events.close());
});

// Keeps the worklist fresh and its waiting times running; keys for readers who work without a mouse.
"use strict";

(() => {
  const words = (seconds) => {
    const minutes = Math.max(0, Math.floor(seconds / 60));
    if (minutes < 60) return `${minutes} min`;
    if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
    return `${Math.floor(minutes / 1440)} days`;
  };
  const runTimes = () => {
    for (const time of document.querySelectorAll("time[data-waiting]")) {
      time.textContent = words((Date.now() - Date.parse(time.dateTime)) / 1000);
    }
  };
  setInterval(runTimes, 15000);

  // Where people sign in: a page nobody touches for the idle time locks itself; one that is used tells the hub so.
  const idle = Number(document.body.dataset.idle || 0) * 1000;
  if (idle) {
    let last = Date.now(), told = last;
    const used = () => {
      last = Date.now();
      if (last - told < Math.min(60000, idle / 4)) return;
      told = last;
      fetch("/here", { method: "POST" }).then((answer) => { if (answer.status === 401) location.reload(); });
    };
    for (const kind of ["pointerdown", "pointermove", "keydown", "wheel"]) addEventListener(kind, used, { passive: true });
    setInterval(() => {
      if (Date.now() - last < idle) return;
      last = Date.now();
      fetch("/lock", { method: "POST" }).finally(() => location.reload());
    }, Math.min(5000, idle / 4));
  }

  const list = document.getElementById("worklist");
  if (!list) return;
  const live = document.getElementById("live");

  const say = (text) => { live.hidden = !text; if (live.textContent !== text) live.textContent = text; };
  let busy = false, again = false;
  const refresh = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const address = new URL(location.href);
      address.searchParams.set("fragment", "1");
      const answer = await fetch(address);
      if (answer.ok) {
        const held = document.activeElement?.getAttribute?.("href");
        list.innerHTML = await answer.text();  // the server escapes everything that came over the wire
        if (held) list.querySelector(`a[href="${CSS.escape(held)}"]`)?.focus();
      }
    } finally {
      busy = false;
      if (again) { again = false; refresh(); }
    }
  };
  const events = new EventSource("/events");
  let greeted = false;
  events.addEventListener("hello", () => { say(""); if (greeted) refresh(); greeted = true; });
  events.addEventListener("change", refresh);
  events.addEventListener("error", () => say("Not connected to the hub: what you see may be old."));

  for (const select of document.querySelectorAll("#filter select")) {
    select.addEventListener("change", () => document.getElementById("filter").submit());
  }
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); document.querySelector("#filter [name=text]")?.focus(); return; }
    const step = { j: 1, k: -1 }[event.key];
    if (!step) return;
    const links = [...list.querySelectorAll(".open-case")];
    const next = links[links.indexOf(document.activeElement) + step] ?? links[step > 0 ? 0 : links.length - 1];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  });
})();

// Draws the live picture, shows the state as it comes, sends the forms without leaving the page. The page works without it.
"use strict";

(() => {
  const scan = document.getElementById("scan"), canvas = document.getElementById("scan-canvas");
  if (!scan) return;
  const pen = canvas.getContext("2d"), one = (name) => document.getElementById(`scan-${name}`);
  const WIDTHS = [320, 480, 640, 800], SLOW_MS = 350, FAST_MS = 120, REST_MS = 700;
  let width = 2, number = -1, shown = 0, takes = null;

  // ---- the picture: the next one is asked for when this one is drawn, so that a slow link gets fewer and smaller ones

  const rest = (ms) => new Promise((done) => { setTimeout(done, ms); });

  async function next() {
    const began = performance.now();
    const answer = await fetch(`${scan.dataset.picture}&after=${number < 0 ? "" : number}&width=${WIDTHS[width]}`, { cache: "no-store" });
    if (answer.status !== 200) return answer.status === 204;
    const bitmap = await createImageBitmap(await answer.blob());
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    pen.drawImage(bitmap, 0, 0);
    bitmap.close();
    canvas.hidden = false;
    number = Number(answer.headers.get("x-number"));
    shown = answer.headers.get("x-whole") === "1" ? 0 : number;
    one("number").value = shown;
    const took = performance.now() - began;
    if (took > SLOW_MS && width > 0) width -= 1;
    else if (took < FAST_MS && width < WIDTHS.length - 1 && canvas.clientWidth > WIDTHS[width]) width += 1;
    return true;
  }

  async function draw() {
    for (;;) {
      try {
        if (document.hidden || !await next()) await rest(REST_MS);
        else await rest(30);
      } catch {
        await rest(REST_MS);
      }
    }
  }

  // ---- the state

  const text = (name, value) => { const at = one(name); if (at.textContent !== value) at.textContent = value; };

  function show(state) {
    one("state").className = `scan-state level-${state.tone}`;
    one("level").className = `level level-${state.tone}`;
    one("chip").className = `scan-chip level level-${state.tone}`;
    one("chip").lastElementChild.textContent = state.word;
    text("word", state.word);
    text("hint", state.hint);
    text("numbers", state.numbers);
    text("device", state.device);
    one("meter").parentElement.hidden = state.score === null;
    if (state.score !== null) one("meter").value = state.score;
    text("score", state.meter);
    text("reading", state.reading);
    one("preview").hidden = !state.reading;
    one("freeze").disabled = one("clip").disabled = !state.able;
    one("begin").hidden = state.recording;
    one("end").hidden = !state.recording;
    one("elapsed").hidden = !state.elapsed;
    one("elapsed").lastElementChild.textContent = state.elapsed;
    one("confirmed").hidden = !state.confirmed;
    if (takes !== null && takes !== state.takes) refresh();
    takes = state.takes;
  }

  function listen() {
    const events = new EventSource(scan.dataset.events);
    events.onmessage = (event) => show(JSON.parse(event.data));
    window.addEventListener("pagehide", () => events.close());
  }

  // ---- the buttons

  async function send(form, button) {
    const body = new URLSearchParams(new FormData(form, button));
    body.set("quiet", "1");
    button.disabled = true;
    try {
      const answer = await fetch(form.action, { method: "POST", body });
      const said = answer.headers.get("content-type")?.includes("json") ? await answer.json() : {};
      if (said.go) {
        location.href = said.go;
        return;
      }
      one("problem").hidden = answer.ok;
      if (!answer.ok) one("problem").textContent = `${said.error ?? ""} ${said.remedy ?? ""}`;
      const begun = answer.ok && form.id === "scan-begin";
      if (begun || form.id === "scan-end") {
        one("begin").hidden = begun;
        one("end").hidden = !begun;
      }
      await refresh();
      if (begun) one("end").querySelector("button").focus();
      else document.querySelector("#scan-takes .take button")?.focus();
    } finally {
      button.disabled = false;
    }
  }

  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-quiet]")) return;
    event.preventDefault();
    send(event.target, event.submitter ?? event.target.querySelector("button"));
  });

  draw();
  listen();
})();

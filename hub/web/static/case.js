// The viewer of one case: window and level on 16-bit pixels, overlay, zoom, move, measure, clips.
"use strict";

(() => {
  const root = document.querySelector("[data-case]");
  const id = root.dataset.case;
  const stage = document.getElementById("stage");
  const picture = document.getElementById("picture");
  if (!stage || !picture) return;
  const by = (name) => document.getElementById(name);
  const press = (button, on) => button.setAttribute("aria-pressed", on);

  // The frame is exactly as large as the picture, so that the overlay covers it and nothing else.
  const frame = document.createElement("div");
  frame.className = "frame";
  stage.replaceChildren(frame);
  frame.append(picture);
  const on = by("overlay-on");
  if (on) {
    const overlay = document.createElement("img");
    overlay.className = "overlay";
    overlay.alt = "";
    overlay.src = `/api/cases/${id}/overlay`;
    frame.append(overlay);
    const strength = by("overlay-strength");
    const draw = () => { overlay.hidden = !on.checked; overlay.style.opacity = strength.value / 100; };
    on.addEventListener("change", draw);
    strength.addEventListener("input", draw);
    draw();
  }
  // As large as the place allows, small previews too.
  const fit = (element, columns, rows) => {
    frame.style.width = `min(100%, ${(76 * columns / rows).toFixed(2)}vh)`;
    element.style.width = "100%";
  };
  const fitPicture = () => { if (picture.naturalWidth) fit(picture, picture.naturalWidth, picture.naturalHeight); };
  picture.addEventListener("load", fitPicture);
  fitPicture();
  for (const part of document.querySelectorAll(".js-only")) part.hidden = false;

  // Brightness and contrast.
  let grey = null, inverted = false, shown = picture, described = null;
  const centre = by("centre"), width = by("width"), invert = by("invert");
  const paint = () => {
    if (!grey || shown !== grey.canvas) { shown.style.filter = inverted ? "invert(1)" : ""; return; }
    const low = 65535 * (centre.value / 100 - width.value / 200);
    const span = 65535 * (width.value / 100);
    const table = new Uint8ClampedArray(65536);
    for (let value = 0; value < 65536; value += 1) {
      const shade = ((value - low) / span) * 255;
      table[value] = inverted ? 255 - Math.min(255, Math.max(0, shade)) : shade;
    }
    const target = new Uint32Array(grey.image.data.buffer);
    for (let at = 0; at < grey.pixels.length; at += 1) {
      const shade = table[grey.pixels[at]];
      target[at] = 0xff000000 | (shade << 16) | (shade << 8) | shade;
    }
    grey.context.putImageData(grey.image, 0, 0);
  };
  let waiting = false;
  const repaint = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; paint(); });
  };
  const defaults = () => {
    if (grey) { centre.value = grey.centre * 100; width.value = Math.min(200, grey.width * 100); }
  };
  const load = async () => {
    const answer = await fetch(`/api/cases/${id}/pixels`);
    if (!answer.ok) return;
    const columns = Number(answer.headers.get("x-columns")), rows = Number(answer.headers.get("x-rows"));
    const pixels = new Uint16Array(await answer.arrayBuffer());
    if (pixels.length !== columns * rows) return;
    const canvas = document.createElement("canvas");
    canvas.width = columns;
    canvas.height = rows;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", picture.alt);
    const context = canvas.getContext("2d");
    grey = {
      canvas, pixels, context, image: context.createImageData(columns, rows),
      centre: Number(answer.headers.get("x-window-centre")), width: Number(answer.headers.get("x-window-width")),
    };
    shown = canvas;
    defaults();
    paint();
    picture.replaceWith(canvas);
    fit(canvas, columns, rows);
    document.querySelector(".grey-only").hidden = false;
    document.querySelector(".grey-tool").hidden = false;
    centre.addEventListener("input", repaint);
    width.addEventListener("input", repaint);
    choose("window");
  };

  // Zoom and move.
  let zoom = 1, x = 0, y = 0;
  const place = () => {
    const room = { x: stage.clientWidth * zoom * 0.5, y: stage.clientHeight * zoom * 0.5 };
    x = Math.max(-room.x, Math.min(room.x, x));
    y = Math.max(-room.y, Math.min(room.y, y));
    frame.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
  };
  const scale = (factor, at) => {
    const next = Math.max(1, Math.min(16, zoom * factor));
    const box = stage.getBoundingClientRect();
    const from = at ? { x: at.clientX - box.left - box.width / 2, y: at.clientY - box.top - box.height / 2 } : { x: 0, y: 0 };
    x = from.x - (from.x - x) * (next / zoom);
    y = from.y - (from.y - y) * (next / zoom);
    zoom = next;
    if (zoom === 1) { x = 0; y = 0; }
    place();
  };
  by("larger").addEventListener("click", () => scale(1.5));
  by("smaller").addEventListener("click", () => scale(1 / 1.5));
  stage.addEventListener("wheel", (event) => { event.preventDefault(); scale(event.deltaY < 0 ? 1.2 : 1 / 1.2, event); }, { passive: false });
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (move && zoom > 1) { x += move[0]; y += move[1]; place(); } else if (event.key === "+" || event.key === "=") scale(1.5);
    else if (event.key === "-") scale(1 / 1.5);
    else if (event.key === "0") scale(1 / 16);
    else if (event.key === "i") invert.click();
    else return;
    event.preventDefault();
  });

  // Length. The scale is the file's; where it holds only at the detector, that is said.
  const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  lines.setAttribute("aria-hidden", "true");
  frame.append(lines);
  const length = by("length");
  let ends = [];
  const point = (event) => {
    const box = shown.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };
  const measured = () => {
    const columns = described?.columns ?? picture.naturalWidth, rows = described?.rows ?? picture.naturalHeight;
    const across = (ends[1].x - ends[0].x) * columns, down = (ends[1].y - ends[0].y) * rows;
    if (!described?.spacing) return `${Math.hypot(across, down).toFixed(0)} pixels (the picture has no scale)`;
    const mm = Math.hypot(across * described.spacing[1], down * described.spacing[0]);
    return `${mm.toFixed(1)} mm${described.spacing_at === "detector" ? " at the detector (larger than in the patient)" : ""}`;
  };
  const drawLine = () => {
    lines.replaceChildren();
    const element = (kind, values) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
      for (const [name, value] of Object.entries(values)) made.setAttribute(name, value);
      lines.append(made);
    };
    const percent = (share) => `${(share * 100).toFixed(3)}%`;
    for (const end of ends) element("circle", { cx: percent(end.x), cy: percent(end.y), r: 4 / zoom });
    if (ends.length === 2) {
      element("line", { x1: percent(ends[0].x), y1: percent(ends[0].y), x2: percent(ends[1].x), y2: percent(ends[1].y) });
      length.textContent = measured();
    }
  };

  // What dragging does.
  let tool = "pan", start = null;
  const tools = [...document.querySelectorAll(".tool")];
  const choose = (name) => {
    tool = name;
    for (const button of tools) press(button, button.dataset.tool === name);
    stage.classList.toggle("grab", name === "pan");
    stage.classList.toggle("cross", name === "measure");
  };
  for (const button of tools) button.addEventListener("click", () => choose(button.dataset.tool));
  choose("pan");
  stage.addEventListener("pointerdown", (event) => {
    if (tool === "measure") {
      if (ends.length !== 1) ends = [];
      ends.push(point(event));
      drawLine();
      if (ends.length === 1) length.textContent = "Now the other end";
    }
    if (tool === "window" && event.pointerType === "touch") return;
    start = { x: event.clientX, y: event.clientY, px: x, py: y, centre: Number(centre.value), width: Number(width.value), far: false };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!start) return;
    const across = event.clientX - start.x, down = event.clientY - start.y;
    if (tool === "pan") { x = start.px + across; y = start.py + down; place(); }
    if (tool === "window" && grey) {
      width.value = Math.max(1, start.width + across / 4);
      centre.value = start.centre + down / 4;
      repaint();
    }
    if (tool === "measure" && Math.hypot(across, down) > 5 && (start.far || ends.length === 1)) {
      start.far = true;
      ends[1] = point(event);
      drawLine();
    }
  });
  for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, () => { start = null; });
  stage.addEventListener("dragstart", (event) => event.preventDefault());
  invert.addEventListener("click", () => { inverted = !inverted; press(invert, inverted); repaint(); });
  by("reset").addEventListener("click", () => {
    inverted = false;
    press(invert, false);
    ends = [];
    length.textContent = "";
    drawLine();
    scale(1 / 16);
    defaults();
    repaint();
  });

  // Clips: frames come one by one; those ahead are asked for early.
  const cine = () => {
    const { frames, times_ms: times, times_said: said } = described;
    const at = by("at"), play = by("play"), cache = new Map();
    by("cine").hidden = false;
    at.max = frames - 1;
    const fetched = (number) => {
      if (!cache.has(number)) {
        const image = new Image();
        image.src = `/api/cases/${id}/frames/${number}`;
        cache.set(number, image);
        if (cache.size > 400) cache.delete(cache.keys().next().value);
      }
      return cache.get(number);
    };
    let now = 0, playing = false;
    const show = async (number) => {
      now = number;
      const image = fetched(number);
      try { await image.decode(); } catch { return; }
      if (now !== number) return;
      picture.src = image.src;
      if (shown !== picture) {
        shown.replaceWith(picture);
        shown = picture;
        document.querySelector(".grey-only").hidden = true;
        document.querySelector(".grey-tool").hidden = true;
        if (tool === "window") choose("pan");
        paint();
      }
      at.value = number;
      by("frame-time").textContent = `${number + 1} of ${frames}, ${(times[number] / 1000).toFixed(2)} s${said ? "" : " (25 a second assumed)"}`;
      for (let ahead = 1; ahead <= 6; ahead += 1) fetched((number + ahead) % frames);
    };
    const run = async () => {
      while (playing) {
        const next = (now + 1) % frames;
        const step = next ? times[next] - times[next - 1] : times[1] - times[0];
        const due = performance.now() + step / Number(by("speed").value);
        await show(next);
        await new Promise((done) => { setTimeout(done, Math.max(0, due - performance.now())); });
      }
    };
    const set = (value) => {
      playing = value;
      press(play, value);
      play.textContent = value ? "Pause" : "Play";
      if (value) run();
    };
    play.addEventListener("click", () => set(!playing));
    by("step-on").addEventListener("click", () => { set(false); show((now + 1) % frames); });
    by("step-back").addEventListener("click", () => { set(false); show((now + frames - 1) % frames); });
    at.addEventListener("input", () => { set(false); show(Number(at.value)); });
    show(0);
  };
  const begin = async () => {
    if (root.dataset.dicom !== "yes") return;
    const answer = await fetch(`/api/cases/${id}/picture`);
    if (!answer.ok) return;
    described = await answer.json();
    if (described.frames > 1) cine(); else if (described.grey) await load();
  };
  begin();
})();

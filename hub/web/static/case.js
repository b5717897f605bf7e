// The viewer of one case: overlay, window and level on 16-bit pixels, zoom; and the word that somebody is looking.
"use strict";

(() => {
  const root = document.querySelector("[data-case]");
  const id = root.dataset.case;

  if (root.dataset.acknowledged === "no" && root.dataset.person) {
    fetch(`/api/cases/${id}/acknowledge`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: "{}",
    }).then((answer) => { if (answer.ok) document.getElementById("acknowledge")?.remove(); });
  }
  document.querySelectorAll("details.modify input, details.modify select").forEach((input) => {
    input.addEventListener("change", () => { document.querySelector(".accept").disabled = true; });
  });

  const stage = document.getElementById("stage");
  const picture = document.getElementById("picture");
  if (!stage || !picture) return;

  // The frame is exactly as large as the picture, so that the overlay covers it and nothing else.
  const frame = document.createElement("div");
  frame.className = "frame";
  stage.replaceChildren(frame);
  frame.append(picture);
  const overlay = document.createElement("img");
  const on = document.getElementById("overlay-on");
  const strength = document.getElementById("overlay-strength");
  if (on) {
    overlay.className = "overlay";
    overlay.alt = "";
    overlay.src = `/api/cases/${id}/overlay`;
    frame.append(overlay);
    const draw = () => { overlay.hidden = !on.checked; overlay.style.opacity = strength.value / 100; };
    on.addEventListener("change", draw);
    strength.addEventListener("input", draw);
    draw();
  }
  for (const button of document.querySelectorAll(".js-only")) button.hidden = false;

  let grey = null;
  let inverted = false;
  const centre = document.getElementById("centre");
  const width = document.getElementById("width");
  const invert = document.getElementById("invert");
  const zoom = document.getElementById("zoom");

  const paint = () => {
    if (!grey) { picture.style.filter = inverted ? "invert(1)" : ""; return; }
    const low = 65535 * (centre.value / 100 - width.value / 200);
    const span = 65535 * (width.value / 100);
    const table = new Uint8ClampedArray(65536);
    for (let value = 0; value < 65536; value += 1) {
      const shade = ((value - low) / span) * 255;
      table[value] = inverted ? 255 - Math.min(255, Math.max(0, shade)) : shade;
    }
    const { pixels, image } = grey;
    const target = new Uint32Array(image.data.buffer);
    for (let at = 0; at < pixels.length; at += 1) {
      const shade = table[pixels[at]];
      target[at] = 0xff000000 | (shade << 16) | (shade << 8) | shade;
    }
    grey.context.putImageData(image, 0, 0);
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
      pixels, context, image: context.createImageData(columns, rows),
      centre: Number(answer.headers.get("x-window-centre")), width: Number(answer.headers.get("x-window-width")),
    };
    defaults();
    paint();
    picture.replaceWith(canvas);
    document.querySelector(".grey-only").hidden = false;
    centre.addEventListener("input", repaint);
    width.addEventListener("input", repaint);
    let start = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (stage.classList.contains("zoomed") || event.pointerType === "touch") return;
      start = { x: event.clientX, y: event.clientY, centre: Number(centre.value), width: Number(width.value) };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!start) return;
      width.value = Math.max(1, start.width + (event.clientX - start.x) / 4);
      centre.value = start.centre + (event.clientY - start.y) / 4;
      repaint();
    });
    canvas.addEventListener("pointerup", () => { start = null; });
    document.getElementById("view-note").textContent += " Drag over it for brightness and contrast.";
  };
  load();

  invert.addEventListener("click", () => {
    inverted = !inverted;
    invert.setAttribute("aria-pressed", inverted);
    repaint();
  });
  zoom.addEventListener("click", () => {
    const zoomed = stage.classList.toggle("zoomed");
    zoom.setAttribute("aria-pressed", zoomed);
  });
  document.getElementById("reset").addEventListener("click", () => {
    inverted = false;
    invert.setAttribute("aria-pressed", false);
    stage.classList.remove("zoomed");
    zoom.setAttribute("aria-pressed", false);
    defaults();
    repaint();
  });
})();

// Controls: sections that draw themselves when an input, the theme or the width changes; play buttons; points to place.

const DATA = JSON.parse(document.getElementById("figure-data").textContent);

/** What the tests read: the data, the figures by name, and the readings that the page shows. */
window.figures = { data: DATA, byName: {}, readings: {} };

const byId = (id) => document.getElementById(id);
const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");
const pair = (point, digits = 2) => `(${point.map((v) => fixed(v, digits)).join(", ")})`;

/** Show values beside the controls of a figure; numbers are kept for the tests, texts are what a person reads. */
function show(name, values) {
  const readings = {};
  for (const [key, [value, text]] of Object.entries(values)) {
    readings[key] = value;
    const output = byId(`${name}-${key}`);
    if (output.textContent !== text) output.textContent = text;
  }
  window.figures.readings[name] = readings;
}

/** Show the value of an input in words, to everyone and to a screen reader. */
function label(input, text) {
  byId(`${input.id}-value`).textContent = text;
  input.setAttribute("aria-valuetext", text);
}

/** Describe a canvas to a screen reader. */
function describe(canvas, text) {
  canvas.setAttribute("aria-label", text);
}

/** Register a figure: `draw` runs now, after each change of an input of the section, its width or the theme. */
function figure(name, draw, functions = {}) {
  const section = byId(name);
  let waiting = false;
  const redraw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
  section.addEventListener("input", redraw);
  darkMode.addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(section);
  section.querySelectorAll("button[data-play]").forEach((button) => playButton(section, button, byId(button.dataset.play)));
  draw();
  window.figures.byName[name] = { draw, ...functions };
  return redraw;
}

/** Set an input as a person would. */
function move(input, value) {
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}

/**
 * A button that moves a slider from its lower to its upper end.
 *
 * With reduced motion a press moves it by one twentieth, and nothing moves by itself.
 */
function playButton(section, button, input) {
  let playing = false;
  const caption = () => {
    button.textContent = reducedMotion.matches ? "Step" : playing ? "Pause" : "Play";
    section.querySelector(".readings").setAttribute("aria-live", playing ? "off" : "polite");
  };
  const stop = () => {
    playing = false;
    caption();
  };
  const play = () => {
    playing = true;
    caption();
    const [low, high] = [Number(input.min), Number(input.max)];
    const from = Number(input.value) >= high ? low : Number(input.value);
    const start = performance.now();
    const frame = (now) => {
      if (!playing) return;
      const value = from + ((now - start) / 5000) * (high - low);
      move(input, Math.round(Math.min(value, high)));
      if (value >= high) stop();
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  };
  const step = () => {
    const [low, high, value] = [input.min, input.max, input.value].map(Number);
    move(input, value >= high ? low : Math.min(high, value + Math.max(1, Math.round((high - low) / 20))));
  };
  button.addEventListener("click", () => {
    if (playing) stop();
    else if (reducedMotion.matches) step();
    else play();
  });
  reducedMotion.addEventListener("change", stop);
  input.addEventListener("pointerdown", stop);
  caption();
}

/** Place a point by pointer or arrow keys on a canvas; two sliders, `inputs`, hold its coordinates in hundredths. */
function placeable(plot, inputs) {
  const { canvas } = plot;
  const place = (point) => {
    inputs.forEach((input, d) => {
      input.value = Math.round(100 * point[d]);
    });
    inputs[0].dispatchEvent(new Event("input", { bubbles: true }));
  };
  const follow = (event) => {
    const box = canvas.getBoundingClientRect();
    place(plot.toData(event.clientX - box.left, event.clientY - box.top));
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    follow(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && follow(event));
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const direction = moves[event.key];
    if (!direction) return;
    event.preventDefault();
    const size = event.shiftKey ? 0.25 : 0.05;
    place(inputs.map((input, d) => Number(input.value) / 100 + size * direction[d]));
  });
}

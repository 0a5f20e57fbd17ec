// Drawing: packed arrays, colours of the theme, and a plot on a canvas with axes in data units.

/** The array of packing.py as {shape, values}, where values is a flat Float64Array in C order. */
function decode(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const integers = packed.dtype === "int8" ? new Int8Array(bytes.buffer) : new Int16Array(bytes.buffer);
  return { shape: packed.shape, values: Float64Array.from(integers, (v) => v * packed.scale) };
}

/** Row i of a decoded array whose rows have `size` numbers. */
function row(array, i, size) {
  return array.values.subarray(i * size, (i + 1) * size);
}

/** A colour of the page's theme, such as colour("data") for --data. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** [red, green, blue] of a colour written as #rrggbb. */
function channels(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

const darkMode = matchMedia("(prefers-color-scheme: dark)");
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** The colour of a point at `place` in [0, 1) along a closed curve. */
function colourAlong(place) {
  return `hsl(${Math.round(360 * place + 200) % 360} 68% ${darkMode.matches ? 64 : 46}%)`;
}

/** Numbers at round distances in [low, high], about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const result = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) {
    result.push(Math.abs(v) < 1e-9 * step ? 0 : v);
  }
  return { values: result, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";

/**
 * A plot on a canvas. Coordinates of its methods are in data units.
 *
 * options: x and y, the ranges [first, last] of the axes, where first may be the larger one; square: whether both axes
 * have one scale, so that the range of x follows from y and the shape of the canvas; xLabel, yLabel; axes: false to
 * leave the axes out; ratio: height / width, narrowRatio the same on a phone.
 */
class Plot {
  constructor(canvas, options) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.options = options;
  }

  /** Fit the canvas to its width and the device's pixels, clear it and compute the scales. */
  begin() {
    const { canvas, options } = this;
    this.width = Math.max(canvas.clientWidth, 200);
    this.narrow = this.width < 480;
    const ratio = (this.narrow && options.narrowRatio) || options.ratio;
    this.height = Math.round(this.width * ratio);
    canvas.style.height = `${this.height}px`;
    const density = window.devicePixelRatio || 1;
    canvas.width = Math.round(this.width * density);
    canvas.height = Math.round(this.height * density);
    this.context.setTransform(density, 0, 0, density, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    this.context.lineCap = this.context.lineJoin = "round";
    const bare = options.axes === false;
    this.box = bare
      ? { left: 0, right: this.width, top: 0, bottom: this.height }
      : { left: 46, right: this.width - 10, top: 12, bottom: this.height - 40 };
    this.y = options.y;
    this.x = options.square ? this.squareRange() : options.x;
    return this;
  }

  squareRange() {
    const { left, right, top, bottom } = this.box;
    const half = ((this.y[1] - this.y[0]) / 2) * ((right - left) / (bottom - top));
    return [-half, half];
  }

  px(x) {
    return this.box.left + ((x - this.x[0]) / (this.x[1] - this.x[0])) * (this.box.right - this.box.left);
  }

  py(y) {
    return this.box.bottom - ((y - this.y[0]) / (this.y[1] - this.y[0])) * (this.box.bottom - this.box.top);
  }

  /** The data units of a position in CSS pixels from the top left corner of the canvas. */
  toData(px, py) {
    const { left, right, top, bottom } = this.box;
    const u = (px - left) / (right - left);
    const v = (bottom - py) / (bottom - top);
    return [this.x[0] + u * (this.x[1] - this.x[0]), this.y[0] + v * (this.y[1] - this.y[0])];
  }

  /** Grid lines, numbers and labels of the axes. */
  axes() {
    const { box, options } = this;
    for (const v of this.tickList(this.x, this.narrow ? 5 : 8)) {
      this.rule(this.px(v.value), box.top, this.px(v.value), box.bottom);
      this.text(v.text, this.px(v.value), box.bottom + 14, { align: "center", size: 12 });
    }
    for (const v of this.tickList(this.y, 5)) {
      this.rule(box.left, this.py(v.value), box.right, this.py(v.value));
      this.text(v.text, box.left - 6, this.py(v.value), { align: "right", size: 12 });
    }
    this.text(options.xLabel, (box.left + box.right) / 2, this.height - 10, { align: "center" });
    this.context.save();
    this.context.translate(11, (box.top + box.bottom) / 2);
    this.context.rotate(-Math.PI / 2);
    this.text(options.yLabel, 0, 0, { align: "center" });
    this.context.restore();
    return this;
  }

  tickList(range, count) {
    const { values, digits } = ticks(Math.min(...range), Math.max(...range), count);
    return values.map((value) => ({ value, text: value.toFixed(digits).replace("-", "−") }));
  }

  rule(x1, y1, x2, y2) {
    const c = this.context;
    c.strokeStyle = colour("grid");
    c.lineWidth = 1;
    c.beginPath();
    c.moveTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
    c.lineTo(Math.round(x2) + 0.5, Math.round(y2) + 0.5);
    c.stroke();
  }

  /** Text at a position in pixels, vertically centred. */
  text(text, px, py, { align = "left", size = 13, fill = "muted", bold = false } = {}) {
    const c = this.context;
    c.font = `${bold ? "600 " : ""}${size}px ${FONT}`;
    c.textAlign = align;
    c.textBaseline = "middle";
    c.fillStyle = colour(fill);
    c.fillText(text, px, py);
  }

  /** Run `draw` with everything outside the axes cut off. */
  clipped(draw) {
    const c = this.context;
    const { left, right, top, bottom } = this.box;
    c.save();
    c.beginPath();
    c.rect(left, top, right - left, bottom - top);
    c.clip();
    draw();
    c.restore();
    return this;
  }

  disc(x, y, radius, fill, opacity = 1) {
    const c = this.context;
    c.globalAlpha = opacity;
    c.fillStyle = fill;
    c.beginPath();
    c.arc(this.px(x), this.py(y), radius, 0, 2 * Math.PI);
    c.fill();
    c.globalAlpha = 1;
  }

  ring(x, y, radius, stroke, width = 1.5) {
    const c = this.context;
    c.strokeStyle = stroke;
    c.lineWidth = width;
    c.beginPath();
    c.arc(this.px(x), this.py(y), radius, 0, 2 * Math.PI);
    c.stroke();
  }

  /** A line through points [[x, y], ...]. */
  line(points, stroke, { width = 1.5, opacity = 1, dash = [] } = {}) {
    const c = this.context;
    c.globalAlpha = opacity;
    c.strokeStyle = stroke;
    c.lineWidth = width;
    c.setLineDash(dash);
    c.beginPath();
    points.forEach(([x, y], i) => (i ? c.lineTo(this.px(x), this.py(y)) : c.moveTo(this.px(x), this.py(y))));
    c.stroke();
    c.setLineDash([]);
    c.globalAlpha = 1;
  }

  /** An arrow from [x, y] to [x, y]. */
  arrow(from, to, stroke, { width = 1.5, opacity = 1, head = 5 } = {}) {
    const [x1, y1, x2, y2] = [this.px(from[0]), this.py(from[1]), this.px(to[0]), this.py(to[1])];
    const length = Math.hypot(x2 - x1, y2 - y1);
    if (length < 1e-6) return;
    this.line([from, to], stroke, { width, opacity });
    const size = Math.min(head, length * 0.6);
    const [u, v] = [(x2 - x1) / length, (y2 - y1) / length];
    const c = this.context;
    c.globalAlpha = opacity;
    c.fillStyle = stroke;
    c.beginPath();
    c.moveTo(x2 + u, y2 + v);
    c.lineTo(x2 - size * u - size * 0.6 * v, y2 - size * v + size * 0.6 * u);
    c.lineTo(x2 - size * u + size * 0.6 * v, y2 - size * v - size * 0.6 * u);
    c.fill();
    c.globalAlpha = 1;
  }

  /** A shading of the axes' area: opacity(x, y) in [0, 1] of one colour, at columns by rows places. */
  shade(columns, rows, opacity, name) {
    const image = new ImageData(columns, rows);
    const [red, green, blue] = channels(colour(name));
    for (let j = 0; j < rows; j++) {
      for (let i = 0; i < columns; i++) {
        const x = this.x[0] + ((i + 0.5) / columns) * (this.x[1] - this.x[0]);
        const y = this.y[1] - ((j + 0.5) / rows) * (this.y[1] - this.y[0]);
        image.data.set([red, green, blue, Math.round(255 * opacity(x, y))], 4 * (j * columns + i));
      }
    }
    this.picture(image, this.box.left, this.box.top, this.box.right - this.box.left, this.box.bottom - this.box.top);
  }

  /** ImageData stretched over a rectangle in pixels. */
  picture(image, left, top, width, height, smooth = true) {
    const small = document.createElement("canvas");
    small.width = image.width;
    small.height = image.height;
    small.getContext("2d").putImageData(image, 0, 0);
    this.context.imageSmoothingEnabled = smooth;
    this.context.drawImage(small, left, top, width, height);
  }

  /** A grey picture of `values`, from low (black) to high (white), with a frame and a caption above it. */
  greys(values, size, left, top, width, { low = -1, high = 1, caption = "" } = {}) {
    const image = new ImageData(size, size);
    values.forEach((v, i) => {
      const grey = Math.max(0, Math.min(255, Math.round((255 * (v - low)) / (high - low))));
      image.data.set([grey, grey, grey, 255], 4 * i);
    });
    this.picture(image, left, top, width, width, false);
    this.context.strokeStyle = colour("grid");
    this.context.lineWidth = 1;
    this.context.strokeRect(left + 0.5, top + 0.5, width - 1, width - 1);
    this.text(caption, left + width / 2, top - 10, { align: "center", size: 12, fill: "ink" });
  }
}

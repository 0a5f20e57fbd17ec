// Figures 1 to 4: the figure-8 in the plane.

const PLANE = DATA.plane;
const VIEW = { y: [-2, 2], square: true, ratio: 0.58, narrowRatio: 0.8, xLabel: "x₁", yLabel: "x₂" };

function drawData(plot, alpha = 1, opacity = 0.35) {
  const line = [...PLANE.means, PLANE.means[0]].map((m) => m.map((v) => alpha * v));
  plot.line(line, colour("data"), { opacity, width: 2 });
}

// ------------------------------------------------------------------------------------------------ 1. forward

(function forward() {
  const x0 = decode(DATA.forward.x0);
  const eps = decode(DATA.forward.eps);
  const plot = new Plot(byId("forward-canvas"), { ...VIEW, y: [-2.3, 2.3] });
  const marked = 153;

  /** x_t = alpha x0 + sigma eps of all points at position i of the slider. */
  function points(i) {
    const { alpha, sigma } = levelAt(DATA.levels.cosine, i);
    const x = Array.from(x0.values, (v, k) => alpha * v + sigma * eps.values[k]);
    return DATA.forward.place.map((_, k) => [x[2 * k], x[2 * k + 1]]);
  }

  function draw() {
    const input = byId("forward-t");
    const i = Number(input.value);
    const { alpha, sigma, logSnr } = levelAt(DATA.levels.cosine, i);
    label(input, fixed(i / DATA.steps, 2));
    plot.begin().axes();
    plot.clipped(() => {
      drawData(plot, alpha, 0.25);
      const all = points(i);
      all.forEach((p, k) => plot.disc(...p, 2.6, colourAlong(DATA.forward.place[k]), 0.8));
      const signal = Array.from(row(x0, marked, 2), (v) => alpha * v);
      plot.arrow([0, 0], signal, colour("data"), { width: 2.5, head: 9 });
      plot.arrow(signal, all[marked], colour("noise"), { width: 2.5, head: 9 });
      plot.ring(...all[marked], 6, colour("ink"), 2);
    });
    show("forward", {
      alpha: [alpha, fixed(alpha, 3)],
      sigma: [sigma, fixed(sigma, 3)],
      snr: [logSnr, fixed(logSnr, 2)],
    });
    const shape = i < 25 ? "The figure-8 is visible." : i < 70 ? "The figure-8 is blurred." : "The points look like noise.";
    describe(plot.canvas, `288 points x_t at t = ${fixed(i / DATA.steps, 2)}. ${shape}`);
  }
  figure("forward", draw, { points });
})();

// ------------------------------------------------------------------------------------------------ 2. reverse

(function reverse() {
  const runs = DATA.reverse.runs;
  const states = Object.fromEntries(Object.entries(runs).map(([name, run]) => [name, decode(run.states)]));
  const plot = new Plot(byId("reverse-canvas"), { ...VIEW, y: [-2.3, 2.3] });

  /** The points of a run after k moves. */
  function points(name, k) {
    const count = states[name].shape[1];
    const values = row(states[name], k, 2 * count);
    return Array.from({ length: count }, (_, n) => [values[2 * n], values[2 * n + 1]]);
  }

  function draw() {
    const name = byId("reverse-run").value;
    const run = runs[name];
    const input = byId("reverse-step");
    const moves = run.times.length - 1;
    if (Number(input.max) !== moves) {
      const part = Number(input.value) / Number(input.max);
      input.max = moves;
      input.value = Math.round(part * moves);
    }
    const k = Number(input.value);
    const t = run.times[k];
    label(input, `${k} of ${moves}`);
    plot.begin().axes();
    plot.clipped(() => {
      drawData(plot);
      const last = points(name, moves);
      for (let n = 0; n < 24; n++) {
        const path = Array.from({ length: k + 1 }, (_, j) => Array.from(row(states[name], j, 240).subarray(2 * n, 2 * n + 2)));
        plot.line(path, colour("muted"), { width: 1, opacity: 0.45 });
      }
      points(name, k).forEach((p, n) => plot.disc(...p, 3, colourAlong(placeOf(last[n])), 0.9));
    });
    show("reverse", {
      t: [t, fixed(t, 3)],
      distance: [run.distance, fixed(run.distance, 3)],
      data: [DATA.reverse.data_distance, fixed(DATA.reverse.data_distance, 3)],
    });
    describe(plot.canvas, `120 points of ${run.label} after ${k} moves, at t = ${fixed(t, 3)}. They start as noise and end near the figure-8.`);
  }

  /** The place along the curve, in [0, 1), of the nearest component. */
  function placeOf(point) {
    const distances = PLANE.means.map((m) => Math.hypot(m[0] - point[0], m[1] - point[1]));
    return distances.indexOf(Math.min(...distances)) / PLANE.means.length;
  }
  byId("reverse-run").replaceChildren(...Object.entries(runs).map(([name, run]) => new Option(run.label, name)));
  byId("reverse-run").value = "ddim_20";
  figure("reverse", draw, { points });
})();

// ------------------------------------------------------------------------------------------------ 3. compass

(function compass() {
  const levels = DATA.levels.compass;
  const centre = [0, 1].map((d) => PLANE.means.reduce((sum, m, k) => sum + PLANE.weights[k] * m[d], 0));
  const plot = new Plot(byId("compass-canvas"), VIEW);
  const inputs = [byId("compass-x"), byId("compass-y")];

  /** The estimate of a denoiser of accuracy a in [0, 1]: (1 - a) E[x0] + a E[x0 | x]. alpha is 1. */
  function estimate(x, sigma, accuracy) {
    const exact = posterior(PLANE, x, { alpha: 1, sigma });
    const x0 = exact.x0.map((v, d) => (1 - accuracy) * centre[d] + accuracy * v);
    return { x0, eps: noiseOf(x, x0, { alpha: 1, sigma }), weights: exact.weights };
  }

  /** The states of DDIM from x at position i of the slider to t = 0, in 20 steps evenly spaced in log sigma. */
  function path(x, i, accuracy) {
    const [low, high] = [levels.sigma[0], levels.sigma[DATA.steps]];
    const sigma = (k) => low * (high / low) ** ((i / DATA.steps) * (1 - k / 20));
    const result = [x];
    for (let k = 0; k < 20; k++) {
      const { eps } = estimate(result[k], sigma(k), accuracy);
      result.push(result[k].map((v, d) => v + (sigma(k + 1) - sigma(k)) * eps[d]));
    }
    return result;
  }

  function drawNeedle(x, eps) {
    const length = Math.hypot(...eps) || 1;
    const radius = plot.narrow ? 22 : 32;
    const size = (radius - 2) / (plot.px(1) - plot.px(0));
    const tip = x.map((v, d) => v - (size * eps[d]) / length);
    const tail = x.map((v, d) => v + (size * eps[d]) / length);
    plot.ring(...x, radius, colour("muted"), 1.5);
    for (let k = 0; k < 12; k++) {
      const [c, s] = [Math.cos((k * Math.PI) / 6), Math.sin((k * Math.PI) / 6)];
      const at = (r) => [x[0] + r * size * c, x[1] + r * size * s];
      plot.line([at(1.07), at(k % 3 ? 0.97 : 0.88)], colour("muted"), { width: 1.2 });
    }
    plot.line([x, tail], colour("noise"), { width: 4 });
    plot.arrow(x, tip, colour("estimate"), { width: 4, head: 10 });
    plot.disc(...x, 5, colour("ink"));
  }

  function drawWeights(x, weights) {
    const largest = Math.max(...weights);
    PLANE.means.forEach((m, k) => {
      const share = weights[k] / largest;
      if (share > 0.02) plot.line([x, m], colour("data"), { width: 1, opacity: 0.4 * share });
      plot.disc(...m, 2.2 + 4.5 * Math.sqrt(share), colour("data"), 0.35 + 0.55 * share);
    });
  }

  function draw() {
    const i = Number(byId("compass-t").value);
    const accuracy = Number(byId("compass-accuracy").value) / 100;
    const x = inputs.map((input) => Number(input.value) / 100);
    const sigma = levels.sigma[i];
    const { x0, eps, weights } = estimate(x, sigma, accuracy);
    const states = path(x, i, accuracy);
    const end = states.at(-1);
    const effective = 1 / weights.reduce((sum, w) => sum + w * w, 0);
    const miss = Math.min(...PLANE.means.map((m) => Math.hypot(m[0] - end[0], m[1] - end[1])));
    label(byId("compass-t"), `σ = ${fixed(sigma, 2)}`);
    label(byId("compass-accuracy"), `${fixed(100 * accuracy, 0)} %`);
    inputs.forEach((input, d) => label(input, fixed(x[d], 2)));
    plot.begin().axes();
    plot.clipped(() => {
      drawWeights(x, weights);
      plot.line(states, colour("accent"), { width: 1.5, dash: [2, 4] });
      states.slice(1).forEach((p) => plot.disc(...p, 2.2, colour("accent")));
      plot.ring(...end, 7, colour("accent"), 2);
      drawNeedle(x, eps);
      plot.line([x, x0], colour("estimate"), { width: 1.5, opacity: 0.8 });
      plot.disc(...x0, 6, colour("estimate"));
    });
    show("compass", {
      x0: [x0, pair(x0)],
      eps: [eps, pair(eps)],
      effective: [effective, fixed(effective, 1)],
      end: [end, pair(end)],
      miss: [miss, fixed(miss, 2)],
    });
    describe(plot.canvas, `Compass at x_t = ${pair(x)}, noise level ${fixed(sigma, 2)}. It points to the estimate ${pair(x0)}. Arrow keys move it.`);
  }
  placeable(plot, inputs);
  figure("compass", draw, { estimate, path });
})();

// ------------------------------------------------------------------------------------------------ 4. score

const FIELD = VIEW;

/** Draw sigma times a score field as arrows on a lattice; field: x -> eps, and the arrow is -eps. */
function drawField(plot, field, stroke) {
  const gap = plot.narrow ? 0.42 : 0.3;
  const [columns, rows] = [Math.floor(plot.x[1] / gap), Math.floor(plot.y[1] / gap)];
  for (let i = -columns; i <= columns; i++) {
    for (let j = -rows; j <= rows; j++) {
      const x = [i * gap, j * gap];
      const eps = field(x);
      const size = (0.85 * gap) / Math.max(1.2, Math.hypot(...eps));
      plot.arrow(x, x.map((v, d) => v - size * eps[d]), stroke, { width: 1.3, head: 4 });
    }
  }
}

/** Shade the density p_t of a mixture. */
function drawDensity(plot, mixture, level, columns = 90) {
  const rows = Math.round((columns * plot.height) / plot.width);
  const peak = Math.max(...mixture.means.map((m) => logProb(mixture, m.map((v) => level.alpha * v), level)));
  plot.shade(columns, rows, (x, y) => 0.5 * Math.exp(0.6 * (logProb(mixture, [x, y], level) - peak)), "data");
}

(function scoreField() {
  const plot = new Plot(byId("score-canvas"), FIELD);
  const inputs = [byId("score-x"), byId("score-y")];

  /** {score, logProb} at x and position i of the slider. */
  function at(x, i) {
    const level = levelAt(DATA.levels.cosine, i);
    return { score: score(PLANE, x, level), logProb: logProb(PLANE, x, level) };
  }

  function draw() {
    const i = Number(byId("score-t").value);
    const level = levelAt(DATA.levels.cosine, i);
    const x = inputs.map((input) => Number(input.value) / 100);
    const here = at(x, i);
    label(byId("score-t"), fixed(i / DATA.steps, 2));
    inputs.forEach((input, d) => label(input, fixed(x[d], 2)));
    plot.begin();
    plot.clipped(() => drawDensity(plot, PLANE, level));
    plot.axes().clipped(() => {
      drawField(plot, (p) => noiseOf(p, posterior(PLANE, p, level).x0, level), colour("ink"));
      const tip = x.map((v, d) => v + 0.5 * level.sigma * here.score[d]);
      plot.arrow(x, tip, colour("noise"), { width: 3.5, head: 11 });
      plot.disc(...x, 5, colour("noise"));
    });
    show("score", {
      sigma: [level.sigma, fixed(level.sigma, 3)],
      score: [here.score, pair(here.score)],
      logp: [here.logProb, fixed(here.logProb, 2)],
    });
    describe(plot.canvas, `Score field at t = ${fixed(i / DATA.steps, 2)}. At ${pair(x)} the score is ${pair(here.score)}. Arrow keys move the point.`);
  }
  placeable(plot, inputs);
  figure("score", draw, { at });
})();

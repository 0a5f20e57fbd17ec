// Figures 5 to 7: paths on a line, schedules, Langevin dynamics.

// ------------------------------------------------------------------------------------------------ 5. paths

(function paths() {
  const { etas, times, upper, std, data_std: dataStd } = DATA.paths;
  const all = decode(DATA.paths.paths);
  const [, length, count] = all.shape;
  const plot = new Plot(byId("paths-canvas"), {
    x: [1, 0],
    y: [-2.4, 2.4],
    ratio: 0.52,
    narrowRatio: 0.85,
    xLabel: "time t: noise on the left, data on the right",
    yLabel: "x",
  });

  /** Path n of the eta with index e, as points [t, x]. */
  function path(e, n) {
    return times.map((t, k) => [t, all.values[(e * length + k) * count + n]]);
  }

  function drawDensityOverTime() {
    const level = (t) => levelAt(DATA.levels.linear, Math.round(t * DATA.steps));
    const density = (t, x) => Math.exp(logProb(DATA.line, [x], level(t)));
    plot.shade(101, 90, (t, x) => 0.55 * (1 - Math.exp(-1.6 * density(Math.max(t, 0.01), x))), "data");
  }

  function draw() {
    const e = Number(byId("paths-eta").value);
    const reached = 1 - Number(byId("paths-t").value) / 100;
    label(byId("paths-eta"), `η = ${etas[e]}${e === 0 ? " (ODE)" : e === 4 ? " (SDE)" : ""}`);
    label(byId("paths-t"), `t = ${fixed(reached, 2)}`);
    plot.begin();
    plot.clipped(drawDensityOverTime);
    plot.axes().clipped(() => {
      for (let n = 0; n < count; n++) {
        const points = path(e, n).filter(([t]) => t >= reached - 1e-6);
        const stroke = colourAlong(n / count);
        plot.line(points, stroke, { width: 1.4, opacity: 0.85 });
        plot.disc(...points.at(-1), 3, stroke);
      }
    });
    show("paths", {
      upper: [upper[e], `${fixed(100 * upper[e], 1)} %`],
      exact: [0.3, "30 %"],
      std: [std[e], `${fixed(std[e], 3)} (data: ${fixed(dataStd, 3)})`],
    });
    const kind = e === 0 ? "smooth paths of the ODE, which do not cross" : "rough paths of an SDE, which cross";
    describe(plot.canvas, `${count} ${kind}, from noise at t = 1 to t = ${fixed(reached, 2)}.`);
  }
  figure("paths", draw, { path });
})();

// ------------------------------------------------------------------------------------------------ 6. schedules

(function schedules() {
  const kinds = [
    ["linear", "noise", []],
    ["cosine", "data", []],
    ["table", "estimate", [7, 5]],
  ];
  const values = {
    signal: { of: (level) => level.alpha ** 2, y: [0, 1], yLabel: "α²" },
    snr: { of: (level) => level.logSnr, y: [-12, 12], yLabel: "log-SNR" },
  };
  const base = { x: [0, 1], ratio: 0.46, narrowRatio: 0.8, xLabel: "time t" };
  const plot = new Plot(byId("schedules-canvas"), { ...base, ...values.signal });
  const strip = new Plot(byId("schedules-strip"), { axes: false, x: [0, 1], y: [0, 1], ratio: 0.25, narrowRatio: 0.42 });
  const x0 = decode(DATA.digits.x0);
  const eps = decode(DATA.digits.eps);

  /** alpha^2 of a schedule at position i of the slider. */
  function signal(name, i) {
    return DATA.levels[name].alpha[i] ** 2;
  }

  function drawCurves(i, value) {
    const t = i / DATA.steps;
    plot.line([[t, value.y[0]], [t, value.y[1]]], colour("muted"), { width: 1, dash: [3, 4] });
    for (const [name, stroke, dash] of kinds) {
      const points = DATA.levels[name].alpha.map((_, k) => [k / DATA.steps, value.of(levelAt(DATA.levels[name], k))]);
      plot.line(points, colour(stroke), { width: 2.5, dash });
      plot.disc(t, value.of(levelAt(DATA.levels[name], i)), 5, colour(stroke));
    }
  }

  function drawStrip() {
    strip.begin();
    const count = strip.narrow ? 7 : 11;
    const left = strip.narrow ? 0 : 64;
    const size = Math.min((strip.width - left) / count - 4, strip.height / 2 - 24);
    const digit = row(x0, 3, 64);
    ["linear", "cosine"].forEach((name, j) => {
      const top = j * (strip.height / 2) + 18;
      if (!strip.narrow) strip.text(j ? "Cosine()" : "Linear()", 0, top + size / 2, { fill: "ink", size: 12 });
      for (let k = 0; k < count; k++) {
        const { alpha, sigma } = levelAt(DATA.levels[name], Math.round((100 * k) / (count - 1)));
        const x = Array.from(digit, (v, d) => alpha * v + sigma * row(eps, 3, 64)[d]);
        const caption = fixed(k / (count - 1), strip.narrow ? 2 : 1);
        strip.greys(x, 8, left + k * (size + 4), top, size, { low: -1.4, high: 1.4, caption });
      }
    });
  }

  function draw() {
    const i = Number(byId("schedules-t").value);
    const value = values[byId("schedules-axis").value];
    label(byId("schedules-t"), fixed(i / DATA.steps, 2));
    Object.assign(plot.options, value);
    plot.begin().axes().clipped(() => drawCurves(i, value));
    drawStrip();
    const text = (name) => {
      const digits = name === "cosine" ? 4 : 3;
      return [signal(name, i), fixed(signal(name, i), digits)];
    };
    show("schedules", { linear: text("linear"), cosine: text("cosine"), table: text("table") });
    const list = kinds.map(([name]) => `${name} ${fixed(signal(name, i), 3)}`).join(", ");
    describe(plot.canvas, `Three schedules over time. The share of signal at t = ${fixed(i / DATA.steps, 2)} is: ${list}.`);
  }
  figure("schedules", draw, { signal });
})();

// ------------------------------------------------------------------------------------------------ 7. Langevin

(function langevin() {
  const { runs, exact, every } = DATA.langevin;
  const options = { ...FIELD, y: [-2.2, 2.2], ratio: 0.66, narrowRatio: 0.62 };
  const panels = ["fixed", "annealed"].map((name) => ({
    name,
    states: decode(runs[name].states),
    plot: new Plot(byId(`langevin-${name}`), options),
  }));

  /** The particles of a run after k recorded moves. */
  function points(name, k) {
    const { states } = panels.find((panel) => panel.name === name);
    const count = states.shape[1];
    const values = row(states, k, 2 * count);
    return Array.from({ length: count }, (_, n) => [values[2 * n], values[2 * n + 1]]);
  }

  function draw() {
    const input = byId("langevin-step");
    const k = Number(input.value);
    label(input, `${k * every}`);
    const shown = {};
    for (const { name, plot } of panels) {
      const run = runs[name];
      const level = { alpha: 1, sigma: run.sigma[k] };
      plot.begin();
      plot.clipped(() => drawDensity(plot, DATA.islands, level, 60));
      plot.axes().clipped(() => points(name, k).forEach((p) => plot.disc(...p, 2.6, colour("noise"), 0.85)));
      const share = `${fixed(100 * run.share[k], 1)} %`;
      shown[`${name}-sigma`] = [level.sigma, fixed(level.sigma, 2)];
      shown[`${name}-share`] = [run.share[k], share];
      describe(plot.canvas, `Particles after ${k * every} steps at noise level ${fixed(level.sigma, 2)}; ${share} are on the left island.`);
    }
    shown.exact = [exact, `${fixed(100 * exact, 0)} %`];
    show("langevin", shown);
  }
  byId("langevin-step").max = panels[0].states.shape[0] - 1;
  figure("langevin", draw, { points });
})();

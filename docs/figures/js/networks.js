// Figures 8 and 9: a digit, and a small network beside the exact score.

// ------------------------------------------------------------------------------------------------ 8. digits

(function digits() {
  const data = DATA.digits;
  const arrays = Object.fromEntries(["x0", "eps", "network", "exact", "sample"].map((name) => [name, decode(data[name])]));
  const plot = new Plot(byId("digits-canvas"), { axes: false, x: [0, 1], y: [0, 1], ratio: 0.226, narrowRatio: 0.82 });

  /** The five pictures of digit n at the time with index j. */
  function pictures(n, j) {
    const { alpha, sigma } = levelAt(DATA.levels.cosine, Math.round(100 * data.times[j]));
    const clean = Array.from(row(arrays.x0, n, 64));
    const noise = row(arrays.eps, n, 64);
    const at = (name) => Array.from(row(arrays[name], j * data.labels.length + n, 64));
    return {
      clean,
      noised: clean.map((v, d) => alpha * v + sigma * noise[d]),
      network: at("network"),
      sample: at("sample"),
      exact: at("exact"),
    };
  }

  const captions = {
    clean: "x₀",
    noised: "xₜ",
    network: "network",
    sample: "one sample",
    exact: "exact denoiser",
  };

  function drawPictures(all) {
    plot.begin();
    const columns = plot.narrow ? 3 : 5;
    const size = plot.width / columns - 12;
    Object.entries(all).forEach(([name, values], k) => {
      const left = (k % columns) * (size + 12) + 6;
      const top = Math.floor(k / columns) * (size + 30) + 22;
      const range = name === "noised" ? 1.8 : 1;
      plot.greys(values, 8, left, top, size, { low: -range, high: range, caption: captions[name] });
    });
  }

  function draw() {
    const n = Number(byId("digits-digit").value);
    const j = Number(byId("digits-t").value);
    label(byId("digits-t"), fixed(data.times[j], 2));
    drawPictures(pictures(n, j));
    show("digits", {
      network: [data.network_error[j], fixed(data.network_error[j], 3)],
      exact: [data.exact_error[j], fixed(data.exact_error[j], 3)],
    });
    describe(plot.canvas, `A held-out digit ${data.labels[n]}: clean, with noise at t = ${fixed(data.times[j], 2)}, and denoised in three ways.`);
  }

  byId("digits-digit").replaceChildren(...data.labels.map((text, n) => new Option(text, n)));
  byId("digits-digit").value = "3";
  byId("digits-t").max = data.times.length - 1;
  byId("digits-train").textContent = data.train_size.toLocaleString("en");
  byId("digits-heldout").textContent = data.held_out;
  figure("digits", draw, { pictures });
})();

// ------------------------------------------------------------------------------------------------ 9. network

(function network() {
  const data = DATA.network;
  const snapshots = data.weights.map(layersOf);
  const plots = { exact: new Plot(byId("network-exact"), panel()), learned: new Plot(byId("network-learned"), panel()) };

  function panel() {
    return { ...FIELD, ratio: 0.72, narrowRatio: 0.66 };
  }

  /** x -> eps of the network of snapshot s at position i of the slider: eps = sigma x + alpha v. */
  function learned(s, i) {
    const level = levelAt(DATA.levels.cosine, i);
    const modulation = modulations(data, snapshots[s], i / DATA.steps);
    return (x) => {
      const v = networkV(data, snapshots[s], modulation, x);
      return x.map((value, d) => level.sigma * value + level.alpha * v[d]);
    };
  }

  /** x -> E[eps | x] of the mixture at position i of the slider. */
  function exact(i) {
    const level = levelAt(DATA.levels.cosine, i);
    return (x) => noiseOf(x, posterior(PLANE, x, level).x0, level);
  }

  /** The root mean square of the difference of the two fields over the points x_t of figure 1, per coordinate. */
  function error(s, i) {
    const points = window.figures.byName.forward.points(i);
    const [a, b] = [learned(s, i), exact(i)];
    const sum = points.reduce((total, p) => {
      const [u, v] = [a(p), b(p)];
      return total + (u[0] - v[0]) ** 2 + (u[1] - v[1]) ** 2;
    }, 0);
    return Math.sqrt(sum / points.length / 2);
  }

  function draw() {
    const s = Number(byId("network-steps").value);
    const i = Number(byId("network-t").value);
    const level = levelAt(DATA.levels.cosine, i);
    label(byId("network-steps"), data.steps[s].toLocaleString("en"));
    label(byId("network-t"), fixed(i / DATA.steps, 2));
    const fields = { exact: exact(i), learned: learned(s, i) };
    for (const [name, plot] of Object.entries(plots)) {
      plot.begin();
      plot.clipped(() => drawDensity(plot, PLANE, level, 70));
      plot.axes().clipped(() => drawField(plot, fields[name], colour(name === "exact" ? "ink" : "estimate")));
      const whose = name === "exact" ? "exact" : `network’s, after ${data.steps[s]} training steps`;
      describe(plot.canvas, `The ${whose} score field at t = ${fixed(i / DATA.steps, 2)}.`);
    }
    const value = error(s, i);
    show("network", { error: [value, fixed(value, 3)], sigma: [level.sigma, fixed(level.sigma, 3)] });
  }
  byId("network-steps").max = data.steps.length - 1;
  byId("network-steps").value = data.steps.length - 1;
  figure("network", draw, { learned, exact, error });
})();

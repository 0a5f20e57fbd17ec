// Closed formulas of diffax.analytic.Mixture, and the network diffax.nn.MLP. The tests compare them with diffax.

/**
 * Posterior of a mixture at x_t = x: {x0, weights, logProb}.
 *
 * gamma_k is proportional to w_k N(x; alpha m_k, c I), c = alpha^2 s^2 + sigma^2, and
 * E[x0 | x] = sum_k gamma_k (m_k + alpha s^2 / c (x - alpha m_k)).
 */
function posterior(mixture, x, level) {
  const { means, weights, std } = mixture;
  const c = level.alpha ** 2 * std ** 2 + level.sigma ** 2;
  const logs = means.map((m, k) => {
    const square = m.reduce((sum, v, d) => sum + (x[d] - level.alpha * v) ** 2, 0);
    return Math.log(weights[k]) - (square / c + x.length * Math.log(2 * Math.PI * c)) / 2;
  });
  const largest = Math.max(...logs);
  const terms = logs.map((v) => Math.exp(v - largest));
  const total = terms.reduce((a, b) => a + b);
  const gamma = terms.map((v) => v / total);
  const gain = (level.alpha * std ** 2) / c;
  const x0 = x.map((v, d) =>
    gamma.reduce((sum, g, k) => sum + g * (means[k][d] + gain * (v - level.alpha * means[k][d])), 0),
  );
  return { x0, weights: gamma, logProb: largest + Math.log(total) };
}

/** log p_t(x) of a mixture. */
function logProb(mixture, x, level) {
  return posterior(mixture, x, level).logProb;
}

/** The noise that explains x: eps = (x - alpha x0) / sigma. */
function noiseOf(x, x0, level) {
  return x.map((v, d) => (v - level.alpha * x0[d]) / level.sigma);
}

/** The score of p_t at x: (alpha x0 - x) / sigma^2 with x0 = E[x0 | x]. */
function score(mixture, x, level) {
  return noiseOf(x, posterior(mixture, x, level).x0, level).map((v) => -v / level.sigma);
}

/** The level at position i of a slider. */
function levelAt(levels, i) {
  return { alpha: levels.alpha[i], sigma: levels.sigma[i], logSnr: levels.log_snr[i] };
}

const silu = (v) => v / (1 + Math.exp(-v));

/** x W + b of a layer {kernel, bias, inputs, outputs}. */
function dense(layer, x) {
  const y = Float64Array.from(layer.bias);
  for (let i = 0; i < layer.inputs; i++) {
    for (let j = 0; j < layer.outputs; j++) y[j] += x[i] * layer.kernel[i * layer.outputs + j];
  }
  return y;
}

/** Layer normalisation with Flax's epsilon. */
function layerNorm(layer, x) {
  const mean = x.reduce((a, b) => a + b) / x.length;
  const variance = x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length;
  const scale = 1 / Math.sqrt(variance + 1e-6);
  return x.map((v, i) => (v - mean) * scale * layer.scale[i] + layer.bias[i]);
}

/** The layers of packed parameters {"name/kernel": packed}, as {name: {kernel, bias, scale, inputs, outputs}}. */
function layersOf(weights) {
  const layers = {};
  for (const [path, packed] of Object.entries(weights)) {
    const parts = path.split("/");
    const layer = (layers[parts.at(-2)] ??= {});
    layer[parts.at(-1)] = decode(packed).values;
    if (parts.at(-1) === "kernel") [layer.inputs, layer.outputs] = packed.shape;
  }
  return layers;
}

/** The shift and scale of each block at time t: the part of the MLP that does not depend on x. */
function modulations(network, layers, t) {
  const half = network.channels / 2;
  const angles = Array.from({ length: half }, (_, k) => network.time_scale * t * Math.exp((-Math.log(1e4) / (half - 1)) * k));
  const embedding = dense(layers.embedding, [...angles.map(Math.sin), ...angles.map(Math.cos)]).map(silu);
  return Array.from({ length: network.depth }, (_, i) => {
    const both = dense(layers[`block${i}_modulation`], embedding);
    return { shift: both.slice(0, 2 * half), scale: both.slice(2 * half) };
  });
}

/** The network's v at x, given the modulations of its time. */
function networkV(network, layers, modulation, x) {
  let h = dense(layers.first, x);
  modulation.forEach(({ shift, scale }, i) => {
    let inner = layerNorm(layers[`block${i}_norm1`], h).map((v, j) => silu(v * (1 + scale[j]) + shift[j]));
    inner = dense(layers[`block${i}_dense1`], inner);
    inner = layerNorm(layers[`block${i}_norm2`], inner).map(silu);
    const added = dense(layers[`block${i}_dense2`], inner);
    h = h.map((v, j) => v + added[j]);
  });
  return Array.from(dense(layers.last, layerNorm(layers.norm, h).map(silu)));
}

// Draws the figures from the JSON in the page, and copies replay commands.  The words and tables need none of this.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const shorten = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);
  // Colour never stands alone: every series has a dash pattern and a symbol as well (the legend's are in style.css).
  const dashes = { k0: null, k1: "10 3", k2: "10 3 2 3", k3: "2 3 2 8", k4: "14 3 3 3", k5: "5 3", k6: "1 3 6 3", std: "6 3", rnd: "1.5 3" };
  const symbols = { k0: "circle", k1: "diamond2", k2: "square", k3: "star", k4: "wye", k5: "triangle", k6: "cross", std: "times", rnd: "plus" };
  const styled = ([label, kind, key]) => ({
    label, kind, colour: `var(--${key})`, dash: dashes[key], symbol: symbols[key],
    short: kind === "rounded" ? "rounded" : shorten(label.split(/[:/]/).pop() || label, 10),
  });
  const series = data.series.map(styled);
  const panelNames = data.panels.map((panel) => panel.map((name) => shorten(name, 8)).join(" "));
  document.documentElement.classList.add("scripted");

  // ------------------------------------------------------------------------------------------------ numbers

  const format = (x) => {
    if (x === null || x === undefined) return "–";
    if (typeof x === "string") return x; // NaN, ∞
    const size = Math.abs(x);
    const text = x === 0 ? "0" : size >= 1e-3 && size < 1e5 ? String(+x.toPrecision(3)) : x.toExponential(1);
    return text.replaceAll("-", "−");
  };
  const finite = (x) => typeof x === "number";
  const superscript = (n) => String(n).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"["0123456789-".indexOf(c)]);
  const power = (x) => {
    const exponent = Math.round(Math.log10(x));
    return exponent >= -2 && exponent <= 3 ? format(x) : `10${superscript(exponent)}`;
  };

  const percent = (x) => {
    if (!finite(x) || x > 9.99) return ">999 %";
    if (x > 0 && x < 1e-4) return "<0.01 %";
    return `${x < 0.0995 ? +(100 * x).toPrecision(2) : Math.round(100 * x)} %`;
  };

  // Ticks of a logarithmic axis: powers of ten, thinned to fit, or 1 2 5 within less than two decades, or finer.
  const logTicks = ([low, high], most) => {
    const from = Math.ceil(Math.log10(low) - 1e-9), to = Math.floor(Math.log10(high) + 1e-9);
    if (to - from < 2) {
      const fine = d3.range(from - 1, to + 1).flatMap((e) => [1, 2, 5].map((k) => +(k * 10 ** e).toPrecision(3)));
      const inside = fine.filter((x) => x >= low * 0.999 && x <= high * 1.001);
      if (inside.length < 3) return d3.ticks(low, high, most);
      if (inside.length <= most) return inside;
      const powers = inside.filter((x) => /^0?\.?0*1/.test(String(x)));
      return powers.length > 2 || most < 5 ? powers : inside.filter((_, i) => (i - inside.indexOf(1)) % 2 === 0);
    }
    const step = Math.ceil((to - from + 1) / most);
    return d3.range(from, to + 1).filter((e) => e % step === 0).map((e) => 10 ** e);
  };
  const logAxis = (domain, most) => ({ type: "log", domain, ticks: logTicks(domain, most), label: logLabel });
  const logLabel = (x) => (Math.abs(Math.log10(x) % 1) < 1e-6 ? power(x) : format(x));
  // From the smallest to the largest positive value, but not more than `decades` down, and with air on both sides.
  const logDomain = (values, decades, include = []) => {
    const positive = values.filter((x) => finite(x) && x > 0).concat(include);
    if (!positive.length) return [0.1, 10];
    const high = d3.max(positive), low = Math.max(d3.min(positive), high * 10 ** -decades);
    return low === high ? [low / 3, high * 3] : [low / 1.15, high * 1.15];
  };
  const clamp = (x, [low, high]) => (finite(x) ? Math.min(Math.max(x, low), high) : high);

  // ------------------------------------------------------------------------------------------------ drawing

  const drawings = {}; // name -> function of an element that fills it

  // Axes are marks of their own, because Plot's built-in ones drop labels of logarithmic scales.  A scale given to
  // `plot` may have `ticks` and `label`, a function that writes a tick.
  const plot = ({ x, y, marks, ...options }) => unseen(Plot.plot({
    style: "background: none",
    ...options,
    x: { type: x.type, domain: x.domain, constant: x.constant, axis: null },
    y: { type: y.type, domain: y.domain, padding: y.padding, axis: null },
    marks: [
      Plot.gridX(x.ticks), y.ticks && Plot.gridY(y.ticks),
      Plot.axisX(x.ticks, { text: x.label, label: null, tickSize: 3 }),
      y.label && Plot.axisY(y.ticks ?? y.domain, { text: y.label, label: null, tickSize: 0 }),
      ...marks,
    ],
  }));
  // To a screen reader a drawing is one image, with its title and caption: the table has the numbers.
  const unseen = (svg) => (svg.setAttribute("aria-hidden", "true"), svg);

  // One small plot per tensor and dtype that has something: where there is room, a column per tensor and a row per
  // dtype.  `draw` gets the panel's number and the width.
  const dtypes = [...new Set(data.panels.map((panel) => panel[1]))];
  const multiples = (element, panels, draw) => {
    const columns = new Set(panels.map((panel) => data.panels[panel][0])).size;
    small(element, d3.sort(panels, (p) => dtypes.indexOf(data.panels[p][1])), columns, (panel) => data.panels[panel], draw);
  };
  const small = (element, keys, columns, titles, draw) => {
    const grid = document.createElement("div");
    grid.className = "multiples";
    grid.style.setProperty("--columns", columns);
    element.append(grid);
    for (const key of keys) {
      const cell = document.createElement("div"), title = document.createElement("p"), second = document.createElement("span");
      cell.className = "panel";
      const [name, more] = titles(key);
      second.textContent = shorten(more, 20);
      title.append(`${name} `, second);
      cell.append(title);
      grid.append(cell);
      cell.append(draw(key, cell.clientWidth, cell));
    }
  };
  // The tip of a small plot opens towards the middle of the page, so that it stays on it.
  const tip = (points, cell) => {
    const room = cell.parentElement.clientWidth;
    const middle = cell.offsetLeft - cell.parentElement.offsetLeft + cell.clientWidth / 2;
    const anchor = cell.clientWidth > 0.6 * room ? undefined : middle < 0.49 * room ? "left" : "right";
    return Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: "text", anchor }));
  };
  const distinct = (values) => d3.sort(new Set(values));

  drawings.ecdf = (element) => {
    const domain = logDomain(data.ecdf.flatMap((d) => d[7]), 7);
    multiples(element, distinct(data.ecdf.map((d) => d[0])), (panel, width, cell) => {
      const found = data.ecdf.filter((d) => d[0] === panel);
      const marks = [], hover = [];
      // the first series is drawn last, on top
      for (const [, s, n, , , , , values, shares] of found.toReversed()) {
        const start = d3.max(values, (x, i) => (x <= domain[0] ? shares[i] : 0)) ?? 0;
        const line = values.map((x, i) => [x, shares[i]]).filter(([x]) => x > domain[0]);
        const points = [[domain[0], start], ...line, [domain[1], line.length ? line.at(-1)[1] : start]];
        marks.push(Plot.line(points, {
          curve: "step-after", stroke: series[s].colour, strokeWidth: series[s].kind === "kernel" ? 2 : 1.75,
          strokeDasharray: series[s].dash, strokeLinecap: series[s].kind === "rounded" ? "round" : "butt",
        }));
        for (const [x, y] of line) hover.push({ x, y, text: `${shorten(series[s].label, 30)}\n${format(100 * y)} % of ${n} cases\nare at most ${format(x)}` });
      }
      return plot({
        width, height: 168, marginLeft: 30, marginRight: 10, marginTop: 8, marginBottom: 22,
        x: logAxis(domain, width < 200 ? 3 : 5), y: { domain: [0, 1], ticks: [0, 0.5, 1], label: format },
        marks: [Plot.ruleY([0], { strokeOpacity: 0.4 }), ...marks, tip(hover, cell)],
      });
    });
  };

  const scatterAxis = document.getElementById("scatter-axis"), scatterRegime = document.getElementById("scatter-regime");
  drawings.scatter = (element) => {
    const axis = +scatterAxis.value, regime = scatterRegime.value;
    const along = logDomain(data.cases.map((c) => c[axis]), 8);
    const errors = logDomain(data.points.flatMap((p) => [p[2], p[3]]), 9);
    multiples(element, distinct(data.points.map((p) => p[1])), (panel, width, cell) => {
      const dots = [];
      for (const [number, where, kernel, standard, failing] of data.points) {
        const [run, shape, replay, kind, logit] = data.cases[number];
        if (where !== panel || (regime && shorten(kind, 40) !== regime)) continue;
        const text = [
          shorten(series[run].label, 30), ...shape.split(" · ").map((part) => shorten(part, 40)),
          `kernel ${format(kernel)}, standard ${format(standard)}`, `largest |logit| ${format(logit)}`,
          ...(replay ? ["click to copy its replay command"] : []),
        ].join("\n");
        const x = clamp(data.cases[number][axis], along);
        if (standard !== null) dots.push({ x, y: clamp(standard, errors), s: series[data.implementations.length], number, text });
        dots.push({ x, y: clamp(kernel, errors), s: series[run], number, failing, text });
      }
      const at = { x: "x", y: "y" };
      const figure = plot({
        width, height: 190, marginLeft: 36, marginRight: 10, marginTop: 8, marginBottom: 22,
        x: logAxis(along, width < 200 ? 3 : 5), y: logAxis(errors, 5), symbol: { type: "identity" },
        marks: [
          Plot.dot(dots.filter((d) => d.s.kind === "standard"), { ...at, symbol: "times", r: 2.4, stroke: (d) => d.s.colour, strokeWidth: 1.2, strokeOpacity: 0.65 }),
          Plot.dot(dots.filter((d) => d.s.kind === "kernel"), { ...at, r: 2, symbol: (d) => d.s.symbol, fill: (d) => d.s.colour, fillOpacity: 0.65 }),
          Plot.dot(dots.filter((d) => d.failing), { ...at, r: 4.5, stroke: "var(--bad)", strokeWidth: 1.6 }),
          tip(dots, cell),
        ],
      });
      cell.classList.add("clickable");
      figure.addEventListener("click", () => {
        const recipe = figure.value && data.cases[figure.value.number];
        if (recipe?.[2]) copy(`flashproof replay ${quote(recipe[2])} ${quote(data.implementations[recipe[0]])}`);
      });
      return figure;
    });
  };

  // Rows grouped by panel: [{label, y, ...}], and where each group's label goes.
  const rows = (found, unit, gap) => {
    let y = 0;
    const placed = [], groups = [];
    for (const panel of distinct(found.map((d) => d[0]))) {
      const inside = found.filter((d) => d[0] === panel);
      y += gap;
      groups.push({ panel, y: y + (inside.length * unit) / 2, top: y });
      for (const d of inside) placed.push({ d, s: series[d[1]], y: (y += unit) - unit / 2 });
    }
    return { placed, groups, height: y + gap };
  };

  // Thin line between quantiles `ends`, thick line for the middle half, dot for the median, triangle for the hunt.
  const strips = (found, { x, ends, rule, decades }) => (element) => {
    const width = element.clientWidth;
    const { placed, groups, height } = rows(found, 12, 7);
    const everything = found.flatMap((d) => d[5].slice(ends[0], ends[1] + 1))
      .concat(found.filter((d) => series[d[1]].kind === "kernel").map((d) => d[6]));
    const scale = x(everything, decades, width);
    const at = (value) => clamp(value, scale.domain);
    const drawn = placed.filter((r) => r.d[5].length);
    const hunted = placed.filter((r) => r.s.kind === "kernel" && r.d[6] !== null);
    const text = ({ d, s }) => `${panelNames[d[0]]}, ${d[2]} cases\n${shorten(s.label, 26)}\nmedian ${format(d[5][3])}\nmiddle half ${format(d[5][2])} to ${format(d[5][4])}\n5 to 95 % ${format(d[5][1])} to ${format(d[5][5])}\nlargest ${format(d[5][6])}${d[6] === null ? "" : `, hunt ${format(d[6])}`}`;
    element.append(plot({
      width, height: height + 26, marginLeft: 74, marginRight: 14, marginTop: 4, marginBottom: 22,
      x: scale, y: { type: "linear", domain: [height, 0] },
      marks: [
        Plot.ruleY(groups.slice(1), { y: (g) => g.top - 3.5, stroke: "var(--line)" }),
        Plot.ruleX([rule], { stroke: "currentColor", strokeWidth: 1.5 }),
        Plot.text(groups, { y: "y", text: (g) => panelNames[g.panel], frameAnchor: "left", dx: -68, textAnchor: "start", fontWeight: 600 }),
        Plot.ruleY(drawn, { y: "y", x1: (r) => at(r.d[5][ends[0]]), x2: (r) => at(r.d[5][ends[1]]), stroke: (r) => r.s.colour, strokeWidth: 1.5 }),
        Plot.ruleY(drawn, { y: "y", x1: (r) => at(r.d[5][2]), x2: (r) => at(r.d[5][4]), stroke: (r) => r.s.colour, strokeWidth: 6, strokeOpacity: 0.45 }),
        Plot.dot(drawn.filter((r) => r.s.kind === "kernel"), { y: "y", x: (r) => at(r.d[5][3]), fill: (r) => r.s.colour, symbol: (r) => r.s.symbol, r: 3.2 }),
        Plot.dot(drawn.filter((r) => r.s.kind !== "kernel"), { y: "y", x: (r) => at(r.d[5][3]), stroke: (r) => r.s.colour, symbol: (r) => r.s.symbol, r: 2.6, strokeWidth: 1.7 }),
        Plot.dot(hunted, { y: "y", x: (r) => at(r.d[6]), stroke: (r) => r.s.colour, fill: "var(--paper)", symbol: "triangle", r: 3.2 }),
        Plot.tip(drawn, Plot.pointer({ y: "y", x: (r) => at(r.d[5][3]), title: text, maxRadius: 60 })),
      ],
      symbol: { type: "identity" },
    }));
  };
  const ratioScale = (values, decades, width) => logAxis(logDomain(values, decades, [1]), width < 500 ? 5 : 9);
  const signedScale = (values, _, width) => {
    const reach = Math.max(0.5, d3.max(values.filter(finite), Math.abs) ?? 0) * 1.1;
    const steps = [0.1, 1, 10, 100, 1000, 1e4, 1e5, 1e6].filter((x) => x <= reach);
    const few = width < 500 ? steps.filter((_, i) => steps.length < 4 || i % 2 === 1) : steps;
    return {
      type: "symlog", constant: 0.1, domain: [-reach, reach], ticks: [...few.map((x) => -x), 0, ...few],
      label: (x) => (x > 0 ? "+" : x < 0 ? "−" : "") + (Math.abs(x) > 1000 ? power(Math.abs(x)) : format(Math.abs(x))),
    };
  };
  drawings.bias = strips(data.bias, { x: signedScale, ends: [1, 5], rule: 0 });
  drawings.bound = strips(data.bound, { x: ratioScale, ends: [1, 6], rule: 1, decades: 5 });
  drawings.predictor = strips(data.predictor, { x: ratioScale, ends: [1, 6], rule: 1, decades: 2.5 });

  drawings.ulp = (element) => {
    const names = ["exact", "at most ½ ulp off", "½ to 1 ulp off", "1 to 2 ulp off", "more than 2 ulp off"];
    multiples(element, distinct(data.ulp.map((d) => d[0])), (panel, width, cell) => {
      const bars = [];
      for (const [, s, ...shares] of data.ulp.filter((d) => d[0] === panel)) {
        let x = 0;
        shares.forEach((share, bin) => {
          const text = `${shorten(series[s].label, 30)}\n${format(100 * share)} % of elements\n${names[bin]}`;
          if (share > 0) bars.push({ y: series[s].short, x1: x, x2: x + share, x: x + share / 2, bin, text });
          x += share;
        });
      }
      const labels = [...new Set(bars.map((b) => b.y))];
      return plot({
        width, height: labels.length * 21 + 26, marginLeft: 62, marginRight: 18, marginTop: 2, marginBottom: 22,
        x: { domain: [0, 1], ticks: [0, 0.5, 1], label: (x) => `${100 * x} %` },
        y: { domain: labels, label: (y) => y, padding: 0.22 },
        marks: [
          Plot.barX(bars, { y: "y", x1: "x1", x2: "x2", fill: (b) => `var(--u${b.bin})`, inset: 0, insetRight: 0.5 }),
          tip(bars, cell),
        ],
      });
    });
  };

  // A curve per series over the eighths of something, and a thin one for what it is compared with.
  const alongEighths = (found, { values, band = () => null, usual, top, text, label, name = String }) => (element) => {
    const high = Math.max(top, ...found.flatMap((d) => (band(d) ?? values(d).map((x) => [x, x])).map(([, x]) => x)).filter(finite));
    const step = [0.05, 0.1, 0.2, 0.5, 1].find((x) => high / x <= 4) ?? 2;
    multiples(element, distinct(found.map((d) => d[0])), (panel, width, cell) => {
      const marks = [], hover = [];
      const own = found.filter((d) => d[0] === panel);
      for (const d of own.toReversed()) { // the first series is drawn last, on top
        const s = series[d[1]], between = band(d);
        if (between) marks.push(Plot.areaY(between, { x: (_, i) => i + 1, y1: (q) => q[0], y2: (q) => q[1], fill: s.colour, fillOpacity: 0.16 }));
        marks.push(Plot.line(values(d), { x: (_, i) => i + 1, y: (y) => y, stroke: s.colour, strokeWidth: s.kind === "kernel" ? 2 : 1.75, strokeDasharray: s.dash }));
        values(d).forEach((y, i) => hover.push({ x: i + 1, y, text: `${shorten(s.label, 30)}, ${d[2]} cases\n${text(d, i)}` }));
      }
      const level = usual(own[0]);
      return plot({
        width, height: 150, marginLeft: 40, marginRight: 10, marginTop: 8, marginBottom: 22,
        x: { domain: [1, 8], ticks: width < 150 ? [1, 8] : d3.range(1, 9), label: name },
        y: { domain: [0, high * 1.04], ticks: d3.range(0, high * 1.04, step), label },
        marks: [
          Plot.ruleY([0], { strokeOpacity: 0.4 }),
          Plot.line(level, { x: (_, i) => i + 1, y: (y) => y, stroke: "var(--soft)", strokeWidth: 1 }),
          ...marks, tip(hover, cell),
        ],
      });
    });
  };
  drawings.profiles = alongEighths(data.profiles, {
    values: (d) => d[3].map((q) => q[1]), band: (d) => d[3].map((q) => [q[0], q[2]]), usual: () => Array(8).fill(1), top: 2,
    label: format,
    text: (d, i) => `eighth ${i + 1} of the rows: median ${format(d[3][i][1])}\nquartiles ${format(d[3][i][0])} to ${format(d[3][i][2])}`,
  });
  const shares = (found, name, place) => alongEighths(found, {
    values: (d) => d[3], usual: (d) => d[4], top: 0.3, label: (x) => `${Math.round(100 * x)} %`, name,
    text: (d, i) => `${place(i)}: ${percent(d[3][i])} of the cases\n${percent(d[4][i])} of the rows`,
  });
  const row = (i) => (i * data.tile) / 8; // the first of an eighth of a tile
  drawings["worst-rows"] = shares(data["worst-rows"], String, (i) => `eighth ${i + 1} of the rows`);
  drawings["worst-tiles"] = shares(data["worst-tiles"], (x) => String(row(x - 1)), (i) => `rows ${row(i)} to ${row(i + 1) - 1} of ${data.tile}`);

  drawings.cells = (element) => {
    const width = element.clientWidth, narrow = width < 620;
    const unit = narrow ? 34 : 20, margin = narrow ? 8 : 250;
    const several = data.implementations.length > 1;
    const cells = data.cells.map((c, i) => ({ ...c, y: i * unit + (narrow ? 25 : unit / 2) }));
    const scale = logAxis(logDomain(cells.flatMap((c) => [c.ratio, c.low, c.high, c.allowed]), 5, [1]), narrow ? 5 : 9);
    const at = (x) => clamp(x, scale.domain), known = (name) => cells.filter((c) => c[name] !== null);
    // one label for all of the marks of what is allowed, which stays within the drawing
    const limits = known("allowed").slice(0, 1).map((c) => ({ x: at(c.allowed), text: new Set(known("allowed").map((o) => o.allowed)).size > 1 ? "allowed" : `${format(c.allowed)} allowed` }));
    const [from, to] = scale.domain.map(Math.log);
    const side = ({ x }) => [[0.85, "end"], [0.15, "middle"]].find(([part]) => (Math.log(x) - from) / (to - from) > part)?.[1] ?? "start";
    const colour = (c) => (c.status === "fail" ? "var(--bad)" : several ? series[c.series].colour : "var(--k0)");
    const text = (c) => `${c.label.replaceAll(" · ", "\n")}${several ? `\n${shorten(series[c.series].label, 30)}` : ""}\nratio ${format(c.ratio)}\ninterval ${format(c.low)} to ${format(c.high)}\n${format(c.allowed)} allowed: ${c.status}\n${c.n} cases`;
    element.append(plot({
      width, height: cells.length * unit + 46, marginLeft: margin, marginRight: 14, marginTop: 16, marginBottom: 24,
      x: scale, y: { type: "linear", domain: [cells.length * unit + 4, 0] }, symbol: { type: "identity" },
      marks: [
        Plot.ruleX([1], { stroke: "currentColor", strokeWidth: 1.5 }),
        Plot.text(cells, { y: (c) => (narrow ? c.y - 14 : c.y), text: (c) => shorten(c.label, narrow ? Math.floor(width / 7) : 42), frameAnchor: "left", dx: narrow ? 0 : -margin + 2, textAnchor: "start", fill: "currentColor", stroke: "var(--paper)", strokeWidth: 4 }),
        Plot.ruleY(cells.filter((c) => c.low !== null && c.high !== null), { y: "y", x1: (c) => at(c.low), x2: (c) => at(c.high), stroke: colour, strokeWidth: 1.75 }),
        ...limits.map((l) => Plot.text([l], { x: "x", text: "text", frameAnchor: "top", dy: -12, textAnchor: side(l), fill: "currentColor" })),
        Plot.dot(known("allowed"), { y: "y", x: (c) => at(c.allowed), symbol: { draw: (context, size) => { const r = Math.sqrt(size); context.moveTo(0, -r); context.lineTo(0, r); } }, r: 5, stroke: "currentColor", strokeWidth: 1.75 }),
        Plot.dot(cells.filter((c) => c.status !== "fail"), { y: "y", x: (c) => at(c.ratio), stroke: colour, strokeWidth: 1.5, fill: (c) => (c.status === "predicted" ? "var(--paper)" : colour(c)), symbol: (c) => series[c.series].symbol, r: 3.6 }),
        Plot.dot(cells.filter((c) => c.status === "fail"), { y: "y", x: (c) => at(c.ratio), symbol: "times", stroke: colour, strokeWidth: 2.5, r: 4 }),
        Plot.tip(cells, Plot.pointer({ y: "y", x: (c) => at(c.ratio), title: text })),
      ],
    }));
  };

  // A distribution function with its band per run, and the line where kernel and standard attention are as far.
  drawings.ahead = (element) => {
    // but for the outermost 3 % of the cases, which are at the edges
    const ends = data.paired.map(([, , , , , , xs, shares]) => [d3.max(xs, (x, i) => (shares[i] <= 0.03 ? x : xs[0])), d3.min(xs, (x, i) => (shares[i] >= 0.97 ? x : xs.at(-1)))]);
    const domain = [Math.max(-8, Math.min(-1, ...ends.map(([low]) => low ?? -1))) - 0.1, Math.min(8, Math.max(1, ...ends.map(([, high]) => high ?? 1))) + 0.1];
    const tensors = [...new Set(data.paired.map((d) => d[1]))];
    small(element, tensors, tensors.length, (tensor) => [tensor, ""], (tensor, width, cell) => {
      const marks = [], hover = [];
      for (const [run, , n, closer, , half, xs, shares] of data.paired.filter((d) => d[1] === tensor).toReversed()) {
        const s = series[run], inside = xs.map((x, i) => [clamp(x, domain), shares[i]]);
        const first = inside.length ? inside[0][1] - 1 / n : closer / n; // those below all that are finite
        const points = [[domain[0], first], ...inside, [domain[1], inside.length ? inside.at(-1)[1] : first]];
        marks.push(
          Plot.areaY(points, { x: (p) => p[0], y1: (p) => Math.max(0, p[1] - half), y2: (p) => Math.min(1, p[1] + half), curve: "step-after", fill: s.colour, fillOpacity: 0.18 }),
          Plot.line(points, { curve: "step-after", stroke: s.colour, strokeWidth: 2, strokeDasharray: s.dash }),
        );
        inside.forEach(([x, y], i) => hover.push({ x, y, text: `${shorten(s.label, 30)}\n${percent(y)} of ${n} cases: the logarithm\nis at most ${format(xs[i])}, the ratio ${format(Math.exp(xs[i]))}` }));
      }
      return plot({
        width, height: 168, marginLeft: 46, marginRight: 10, marginTop: 8, marginBottom: 22,
        x: { domain, ticks: d3.ticks(...domain, width < 200 ? 4 : 6), label: format },
        y: { domain: [0, 1], ticks: [0, 0.5, 1], label: (y) => `${100 * y} %` },
        marks: [Plot.ruleX([0], { stroke: "currentColor", strokeWidth: 1.5 }), ...marks, tip(hover, cell)],
      });
    });
  };

  // log10 of a difference against the digits that were computed with; the dashed line is as many digits as there were.
  drawings.digits = (element) => {
    const width = element.clientWidth;
    const most = 1.06 * d3.max(data.digits, (d) => d3.max(d[3], ([n]) => n));
    const clamped = (y) => (finite(y) ? Math.min(Math.max(y, -most), 2) : y === "−∞" ? -most : 2);
    const exponent = (y) => (finite(y) ? `10${superscript(Math.round(y))}` : y === "−∞" ? "0" : "not finite");
    const lines = data.digits.map(([run, label, status, points]) => ({
      s: series[run], bad: status === "different",
      points: points.map(([n, y]) => ({ x: n, y: clamped(y), s: series[run], r: 3.5 + 2 * run, text: `${shorten(label, 60).replaceAll(" · ", "\n")}\n${n} digits: ${exponent(y)}` })),
    }));
    const dots = (bad) => lines.filter((line) => line.bad === bad).flatMap((line) => line.points);
    const step = [10, 20, 50, 100, 200, 500, 1000].find((n) => most / n <= 5) ?? most / 4;
    element.append(plot({
      width, height: 220, marginLeft: 46, marginRight: 14, marginTop: 8, marginBottom: 22, symbol: { type: "identity" }, r: { type: "identity" },
      x: { domain: [0, most], ticks: distinct([0, ...data.digits.flatMap((d) => d[3].map(([n]) => n))]), label: String },
      y: { domain: [-most, 2], ticks: d3.range(0, most, step).map((y) => -y), label: (y) => (y ? `10${superscript(y)}` : "1") },
      marks: [
        Plot.line([[0, 0], [most, -most]], { stroke: "var(--soft)", strokeWidth: 1.5, strokeDasharray: "2 3" }),
        ...lines.map((line) => Plot.line(line.points, { x: "x", y: "y", stroke: line.s.colour, strokeWidth: 2, strokeDasharray: line.s.dash })),
        Plot.dot(dots(false), { x: "x", y: "y", fill: (d) => d.s.colour, symbol: (d) => d.s.symbol, r: "r", sort: (d) => -d.r }),
        Plot.dot(dots(true), { x: "x", y: "y", stroke: "var(--bad)", symbol: "times", strokeWidth: 2.5, r: 4.5 }),
        Plot.tip(lines.flatMap((line) => line.points), Plot.pointer({ x: "x", y: "y", title: "text" })),
      ],
    }));
  };

  // A bar per tensor, dtype and run, stacked by kind of rounding site; what fits is written into it.
  drawings.sites = (element) => {
    const width = element.clientWidth, several = data.implementations.length > 1;
    const left = several ? 92 : 74, right = 56, unit = 21;
    const high = Math.min(1.5, Math.max(1.02, ...data.sites.map((d) => (finite(d[2]) ? d[2] : 0))));
    const room = (width - left - right) / high; // pixels of the whole
    const bars = [], names = [], parts = [];
    let y = 0;
    for (const [name, run, total, stack, failed] of data.sites) {
      if (name !== names.at(-1)?.name) names.push({ name, y: (y += several ? 8 : 0) + unit / 2, top: y });
      const bar = { y: y + unit / 2, s: series[run], total };
      let x = 0;
      for (const [kind, part, sites] of stack) {
        const bad = failed && data.kinds[kind] === "accumulators", from = Math.min(x, high);
        const to = Math.min((x += finite(part) ? part : high), high), share = percent(part);
        const fits = [`${bad ? "✕ " : ""}${data.kinds[kind]} ${share}`, bad ? "✕" : data.kinds[kind], ""].find((text) => text.length * 6.6 + 6 <= (to - from) * room || !text);
        parts.push({ y: bar.y, x1: from, x2: to, x: (from + to) / 2, fill: bad ? "var(--bad)" : `var(--s${kind})`, label: fits, text: `${name}${several ? `\n${shorten(bar.s.label, 30)}` : ""}\n${data.kinds[kind]} ${share}\n${sites}` });
      }
      bars.push(bar);
      y += unit;
    }
    element.append(plot({
      width, height: y + 30, marginLeft: left, marginRight: right, marginTop: 4, marginBottom: 24, symbol: { type: "identity" },
      x: { domain: [0, high], ticks: width < 500 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1], label: (x) => `${100 * x} %` },
      y: { type: "linear", domain: [y + 2, 0] },
      marks: [
        Plot.text(names, { y: "y", text: "name", frameAnchor: "left", dx: 6 - left, textAnchor: "start", fontWeight: 600 }),
        several ? Plot.dot(bars, { y: "y", frameAnchor: "left", dx: -10, symbol: (b) => b.s.symbol, fill: (b) => b.s.colour, r: 3.2 }) : null,
        Plot.rect(parts, { x1: "x1", x2: "x2", y1: (p) => p.y - 8.5, y2: (p) => p.y + 8.5, fill: "fill", insetRight: 1.5 }),
        Plot.text(parts, { x: "x", y: "y", text: "label", fill: "var(--paper)" }),
        Plot.ruleX([1], { stroke: "currentColor", strokeWidth: 1.5 }),
        Plot.text(bars, { y: "y", text: (b) => percent(b.total), frameAnchor: "right", dx: right - 8, textAnchor: "end" }),
        Plot.tip(parts, Plot.pointer({ x: "x", y: "y", title: "text", maxRadius: 60 })),
      ],
    }));
  };

  // Those of hardware.js
  Object.assign(drawings, hardwareDrawings(data.hardware, { styled, plot, small, tip, logAxis, logDomain, format, percent, finite, clamp, shorten, distinct, power }));

  // A figure that cannot be drawn says so in its place; the others, and all tables, remain.
  const draw = (element) => {
    element.replaceChildren();
    try {
      drawings[element.id.replace("-drawing", "")](element);
    } catch (error) {
      element.textContent = `This figure could not be drawn (${error.message}). Its table is below.`;
      console.error(error);
    }
  };
  let drawnAfter = 0; // ms
  const watch = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const width = Math.round(contentRect.width);
      if (width === 0 || target.drawnAt === width) continue;
      target.drawnAt = width;
      draw(target);
    }
    drawnAfter ||= performance.now();
    tellTime();
  });
  for (const element of document.querySelectorAll(".drawing")) watch.observe(element);
  for (const control of [scatterAxis, scatterRegime]) {
    control?.addEventListener("change", () => {
      const name = scatterAxis.selectedOptions[0].textContent;
      document.getElementById("scatter-name").textContent = name[0].toUpperCase() + name.slice(1);
      draw(document.getElementById("scatter-drawing"));
    });
  }
  for (const control of document.querySelectorAll("select[data-redraws]")) {
    control.addEventListener("change", () => draw(document.getElementById(control.dataset.redraws)));
  }

  // In the footer, what this page took to load and its figures to draw; where a browser cannot tell, nothing.
  function tellTime() {
    const loaded = performance.getEntriesByType?.("navigation")[0]?.loadEventEnd;
    if (!loaded) return; // not over yet, or not told
    const seconds = (ms) => `${(ms / 1000).toFixed(2)}\u00a0s`;
    const said = [`, loaded in ${seconds(loaded)}`, ...(drawnAfter ? [`figures drawn after ${seconds(drawnAfter)}`] : [])];
    document.getElementById("load").textContent = said.join(", ");
  }
  addEventListener("load", () => setTimeout(tellTime)); // the event's own end is known after it

  // ------------------------------------------------------------------------------------------------ copying

  const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
  const announce = document.getElementById("announce");

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // no permission, or a browser that trusts no local file
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    announce.textContent = "";
    announce.textContent = "Copied: " + text.slice(0, 120);
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".copy");
    if (!button) return;
    await copy(button.closest(".command").querySelector("code").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
})();

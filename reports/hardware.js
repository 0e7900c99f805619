// The figures of GPU records, by the ids of their drawings.  `page.js` gives its tools, and draws.
"use strict";
function hardwareDrawings({ benches, silicons, bins }, tools) {
  const { styled, plot, small, tip, logAxis, logDomain, format, percent, finite, clamp, shorten, distinct, power } = tools;
  const drawings = {};
  const chosen = (element) => +element.closest("figure").querySelector("select").value;

  // As many lengths as there is room for, the longest among them.
  const lengthAxis = (lengths, width) => {
    const step = Math.ceil(lengths.length / Math.max(2, Math.floor((width - 50) / 44)));
    return { type: "log", domain: [lengths[0] / 1.15, lengths.at(-1) * 1.15], ticks: lengths.filter((_, i) => (lengths.length - 1 - i) % step === 0), label: String };
  };
  // A line per implementation, with its symbol at every length.
  const curves = (points) => [
    ...d3.groups(points, (p) => p.s).toReversed().map(([s, line]) => Plot.line(d3.sort(line, (p) => p.x), { x: "x", y: "y", stroke: s.colour, strokeWidth: 1.75, strokeDasharray: s.dash })),
    Plot.dot(points, { x: "x", y: "y", symbol: (p) => p.s.symbol, fill: (p) => (filled(p.s) ? p.s.colour : "none"), stroke: (p) => (filled(p.s) ? "none" : p.s.colour), r: 2.6, strokeWidth: 1.5 }),
  ];
  const filled = (s) => s.symbol !== "times";
  const symbol = { type: "identity" };

  benches.forEach((bench, index) => {
    const series = bench.series.map(styled);
    const panels = (found) => distinct(found.map((p) => p[1]));
    const titles = (panel) => bench.panels[panel];
    const of = (found, panel) => found.filter((p) => p[1] === panel);
    const values = (panel, column) => of(bench.points, panel).filter((p) => finite(p[column])).map((p) => ({ s: series[p[0]], x: p[2], y: p[column] }));

    drawings[`bench-${index}-speed`] = (element) => {
      const pass = chosen(element);
      const all = bench.points.concat(bench.failed);
      const high = 1.06 * (d3.max(bench.points.map((p) => p[pass]).filter(finite)) ?? 1), unit = 0.075 * high;
      small(element, panels(all), bench.columns, titles, (panel, width, cell) => {
        const points = values(panel, pass).map((p) => ({ ...p, text: `${shorten(p.s.label, 30)}\nN ${p.x}: ${format(p.y)} TFLOP/s` }));
        const groups = d3.sort(d3.groups(of(bench.failed, panel), (f) => f[0]), ([s]) => s);
        const failed = groups.flatMap(([s, found], row) => found.map(([, , x, why]) => ({ s: series[s], x, y: -(row + 0.8) * unit, text: `${shorten(series[s].label, 30)}\nN ${x}: ${shorten(why, 60)}` })));
        return plot({
          width, height: 178 + 10 * groups.length, marginLeft: 34, marginRight: 16, marginTop: 8, marginBottom: 22, symbol,
          x: lengthAxis(bench.lengths, width), y: { domain: [-(groups.length ? groups.length + 0.3 : 0) * unit, high], ticks: d3.ticks(0, high, 4), label: format },
          marks: [
            Plot.ruleY([0], { strokeOpacity: 0.4 }), ...curves(points),
            Plot.dot(failed, { x: "x", y: "y", symbol: "times", stroke: (p) => p.s.colour, strokeWidth: 1.7, r: 2.8 }),
            tip(points.concat(failed), cell),
          ],
        });
      });
    };

    drawings[`bench-${index}-memory`] = (element) => {
      const domain = logDomain(bench.points.map((p) => p[6]), 7);
      small(element, panels(bench.points), bench.columns, titles, (panel, width, cell) => {
        const points = values(panel, 6).map((p) => ({ ...p, y: clamp(p.y, domain), text: `${shorten(p.s.label, 30)}\nN ${p.x}: ${format(p.y)} MiB` }));
        return plot({
          width, height: 178, marginLeft: 38, marginRight: 16, marginTop: 8, marginBottom: 22, symbol,
          x: lengthAxis(bench.lengths, width), y: { ...logAxis(domain, 5), label: power },
          marks: [...curves(points), tip(points, cell)],
        });
      });
    };

    drawings[`bench-${index}-errors`] = (element) => {
      const tensor = chosen(element);
      const known = bench.errors.filter((p) => finite(p[5]) && p[7][tensor] !== null);
      const across = logDomain(known.map((p) => p[5]), 5);
      const high = 1.12 * (d3.max(known.map((p) => p[7][tensor]).filter(finite)) || 1);
      small(element, panels(known), bench.columns, titles, (panel, width, cell) => {
        const points = of(known, panel).map(([s, , n, , , rate, , errors]) => ({
          s: series[s], x: rate, y: clamp(errors[tensor], [0, high]),
          text: `${shorten(series[s].label, 30)}\n${bench.tensors[tensor]}, N ${n}\n${format(errors[tensor])} unit roundoffs\n${format(rate)} TFLOP/s`,
        }));
        const x = logAxis([across[0] / 1.15, across[1] * 1.15], width < 200 ? 3 : 5);
        return plot({
          width, height: 178, marginLeft: 34, marginRight: 16, marginTop: 8, marginBottom: 22, symbol,
          x, y: { domain: [0, high], ticks: d3.ticks(0, high, 4), label: format },
          marks: [
            Plot.ruleY([0], { strokeOpacity: 0.4 }),
            Plot.dot(points.filter((p) => filled(p.s)), { x: "x", y: "y", symbol: (p) => p.s.symbol, fill: (p) => p.s.colour, fillOpacity: 0.85, r: 4.5 }),
            Plot.dot(points.filter((p) => !filled(p.s)), { x: "x", y: "y", symbol: (p) => p.s.symbol, stroke: (p) => p.s.colour, strokeWidth: 2.2, r: 4.5 }),
            tip(points, cell),
          ],
        });
      });
    };
  });

  silicons.forEach((silicon, index) => {
    const differing = (shares) => d3.sum(shares.slice(1).filter(finite));
    const name = (d) => `${d[1]}, ${d[2]}`;

    drawings[`silicon-${index}-distances`] = (element) => {
      const panels = distinct(silicon.distances.map((d) => d[0]));
      small(element, panels, 3, (panel) => silicon.panels[panel], (panel, width, cell) => {
        const tensor = silicon.panels[panel][0];
        const high = d3.max(silicon.distances.filter((d) => silicon.panels[d[0]][0] === tensor), (d) => differing(d[4])) || 1;
        const own = silicon.distances.filter((d) => d[0] === panel);
        const bars = own.flatMap((d) => {
          let x = 0;
          return d[4].slice(1).map((share, bin) => {
            const from = x;
            x += finite(share) ? share : 0;
            return { y: name(d), x1: from, x2: x, x: (from + x) / 2, bin, text: `${name(d)}, ${d[3]} cases\n${percent(share)} of the elements\nare ${bins[bin + 1]} apart` };
          });
        }).filter((b) => b.x2 > b.x1);
        const longest = d3.max(own, (d) => name(d).length);
        return plot({
          width, height: own.length * 21 + 26, marginLeft: Math.min(8 + 6.2 * longest, width / 2), marginRight: 48, marginTop: 2, marginBottom: 22,
          x: { domain: [0, high], ticks: d3.ticks(0, high, 2), label: percent },
          y: { domain: own.map(name), label: (y) => y, padding: 0.22 },
          marks: [
            Plot.barX(bars, { y: "y", x1: "x1", x2: "x2", fill: (b) => `var(--d${b.bin})`, inset: 0, insetRight: 0.5 }),
            Plot.text(own, { y: name, x: (d) => differing(d[4]), text: (d) => percent(differing(d[4])), dx: 5, textAnchor: "start" }),
            tip(bars, cell),
          ],
        });
      });
    };

    drawings[`silicon-${index}-beside`] = (element) => {
      const found = silicon.distances.filter((d) => d[5] !== null);
      if (!found.length) return;
      const panels = distinct(found.map((d) => d[0])), unit = 22, width = element.clientWidth;
      const [low, high] = logDomain(found.map((d) => d[5]), 7, [1]);
      const domain = [low / 2, high]; // zeros are on the left edge, apart from the smallest that is not 0
      const marks = found.map((d) => ({
        d, x: finite(d[5]) ? clamp(d[5], domain) : domain[1], y: (panels.indexOf(d[0]) + 0.5) * unit,
        colour: d[1] === "ieee" ? "var(--soft)" : "var(--d2)", same: d[2] === "the same",
        text: `${silicon.panels[d[0]].join(" ")}\n${name(d)}, ${d[3]} cases\ndifference / error ${format(d[5])}`,
      }));
      const dot = (same) => Plot.dot(marks.filter((m) => m.same === same), {
        x: "x", y: "y", symbol: (m) => (m.d[1] === "ieee" ? "square" : "circle"), r: 4, strokeWidth: 1.6,
        fill: (m) => (same ? m.colour : "var(--paper)"), stroke: (m) => m.colour, fillOpacity: 0.9,
      });
      element.append(plot({
        width, height: panels.length * unit + 30, marginLeft: 74, marginRight: 14, marginTop: 4, marginBottom: 22, symbol,
        x: logAxis(domain, width < 500 ? 5 : 9), y: { type: "linear", domain: [panels.length * unit, 0] },
        marks: [
          Plot.ruleY(panels.slice(1), { y: (_, i) => (i + 1) * unit, stroke: "var(--line)" }),
          Plot.ruleX([1], { stroke: "currentColor", strokeWidth: 1.5 }),
          Plot.text(panels, { y: (_, i) => (i + 0.5) * unit, text: (p) => silicon.panels[p].join(" "), frameAnchor: "left", dx: -68, textAnchor: "start", fontWeight: 600 }),
          dot(false), dot(true), Plot.tip(marks, Plot.pointer({ x: "x", y: "y", title: "text", maxRadius: 60 })),
        ],
      }));
    };

    drawings[`silicon-${index}-bias`] = (element) => {
      const series = silicon.series.map(styled);
      const known = silicon.biases.filter((b) => finite(b[3]) && finite(b[4]));
      const ends = known.flatMap(([, , , mean, error]) => [mean - 2 * error, mean + 2 * error]);
      const low = Math.min(0, ...ends) * 1.06, high = Math.max(0, ...ends) * 1.06 || -0.05 * low || 1;
      const lengths = distinct(known.map((b) => b[2]));
      small(element, distinct(known.map((b) => b[1])), silicon.dtypes.length, (dtype) => [silicon.dtypes[dtype], ""], (dtype, width, cell) => {
        const points = known.filter((b) => b[1] === dtype).map(([s, , x, y, error]) => ({
          s: series[s], x, y, low: y - 2 * error, high: y + 2 * error,
          text: `${shorten(series[s].label, 30)}\nN ${x}: relative error ${format(y)}\nstandard error ${format(error)}`,
        }));
        return plot({
          width, height: 200, marginLeft: 58, marginRight: 18, marginTop: 8, marginBottom: 22, symbol,
          x: lengthAxis(lengths, width), y: { domain: [low, high], ticks: d3.ticks(low, high, 5), label: format },
          marks: [
            Plot.ruleY([0], { stroke: "currentColor", strokeWidth: 1.5 }),
            Plot.ruleX(points, { x: "x", y1: "low", y2: "high", stroke: (p) => p.s.colour, strokeWidth: 1.5 }),
            ...curves(points), tip(points, cell),
          ],
        });
      });
    };
  });
  return drawings;
}

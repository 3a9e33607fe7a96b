/* Single predictions: against the truth, against their standard deviation, and by element. */

const PERIODIC = [
  "H . . . . . . . . . . . . . . . . He",
  "Li Be . . . . . . . . . . B C N O F Ne",
  "Na Mg . . . . . . . . . . Al Si P S Cl Ar",
  "K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr",
  "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe",
  "Cs Ba . Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn",
  "Fr Ra . Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og",
  ". . La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu .",
  ". . Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr .",
].map((row) => row.split(" "));

/** Drop-down lists for a way and a size of it; `show` is called with both, now and at every change. */
function picker(target, ways, show) {
  const best = ways.findIndex((way) => way.label === target.ways[target.best]?.label);
  let way = ways[Math.max(best, 0)],
    size = last(way.points).size;
  const box = make("div", { class: "controls" });
  const fill = () =>
    box.replaceChildren(
      choose(
        "Way",
        ways.map((w, i) => [String(i), w.label]),
        String(ways.indexOf(way)),
        (value) => {
          way = ways[Number(value)];
          if (!at(way, size)) size = last(way.points).size;
          fill();
          show(way, at(way, size));
        },
      ),
      choose(
        "Training crystals",
        way.points.map((p) => [String(p.size), p.size.toLocaleString("en")]),
        String(size),
        (value) => {
          size = Number(value);
          show(way, at(way, size));
        },
      ),
    );
  fill();
  return { box, start: () => show(way, at(way, size)) };
}

/** Every prediction of a test crystal: {row, seed, true, predicted, std}. */
function predictions(target, point) {
  return point.runs
    .flatMap((run) =>
      target.tests[run.test].map((row, i) => ({
        row,
        seed: run.seed,
        true: target.values[row],
        predicted: run.predicted[i],
        std: run.std ? run.std[i] : null,
      })),
    )
    .filter((p) => p.predicted !== null);
}

function parity(target) {
  const ways = target.ways;
  let shown = [];
  const facts = make("p", { class: "facts" });
  const host = responsive(() => {
    const log = target.log && shown.every((p) => p.predicted > 0);
    const ends = domain([...target.values, ...shown.map((p) => p.predicted)], log, 0.04);
    const axis = (label) => ({
      domain: ends,
      log,
      label: axisLabel(label, target.unit),
      ticks: ticks(...ends, log, host.clientWidth > 400 ? 6 : 4),
    });
    const chart = axes(host, {
      x: axis("True"),
      y: axis("Predicted"),
      square: true,
      label: `Predicted against true ${target.name}; arrow keys step through the crystals, the largest error first`,
    });
    const { svg, X, Y } = chart;
    svg.append(make("line", { class: "reference", x1: X(ends[0]), y1: Y(ends[0]), x2: X(ends[1]), y2: Y(ends[1]) }));
    const spots = shown.map((p) => ({
      x: X(p.true),
      y: Y(p.predicted),
      lines: [
        `${target.ids[p.row]}  ${target.formulas[p.row]}`,
        `true ${withUnit(number(p.true, 4), target.unit)}`,
        `predicted ${withUnit(number(p.predicted, 4) + (p.std === null ? "" : ` ± ${number(p.std, 2)}`), target.unit)}`,
        `error ${p.predicted > p.true ? "+" : ""}${withUnit(number(p.predicted - p.true), target.unit)}, seed ${p.seed}`,
      ],
    }));
    const cloud = make("g", { class: "cloud" });
    for (const { x, y } of spots) cloud.append(make("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 3 }));
    svg.append(cloud);
    explore(svg, spots);
  });
  const { box, start } = picker(target, ways, (way, point) => {
    shown = predictions(target, point).sort((a, b) => Math.abs(b.predicted - b.true) - Math.abs(a.predicted - a.true));
    const centre = mean(shown.map((p) => p.true)),
      crystals = new Set(shown.map((p) => p.row)).size;
    const r2 = 1 - mean(shown.map((p) => (p.predicted - p.true) ** 2)) / mean(shown.map((p) => (p.true - centre) ** 2));
    const mae = mean(shown.map((p) => Math.abs(p.predicted - p.true)));
    facts.textContent = [
      `MAE ${withUnit(number(mae), target.unit)}`,
      `R² ${r2.toFixed(3).replace("-", "−")}`,
      `${count(shown.length, "prediction")} of ${count(crystals, "test crystal")}, ${count(point.n, "seed")}`,
    ].join(" · ");
    host.redraw();
  });
  start();
  return [box, facts, host];
}

function calibration(target) {
  const ways = target.ways
    .map((way) => ({ ...way, points: way.points.filter((point) => point.calibration) }))
    .filter((way) => way.points.length);
  if (!ways.length) return null;
  let shown = null;
  const facts = make("p", { class: "facts" });
  const curve = (chart, points, kind) =>
    chart.svg.append(
      make("path", { class: `line ${kind}`, d: path(points.map(([x, y]) => [chart.X(x), chart.Y(y)])) }),
    );
  const coverage = responsive((host) => {
    const ends = { domain: [0, 100], ticks: [0, 20, 40, 60, 80, 100] };
    const chart = axes(host, {
      x: { ...ends, label: "Expected within the interval (%)" },
      y: { ...ends, label: "Observed (%)" },
      square: true,
      label: `Observed against expected coverage of ${target.name}`,
    });
    const { svg, X, Y } = chart,
      points = shown.coverage.map(([x, y]) => [100 * x, 100 * y]);
    svg.append(
      make("path", { class: "band c1", d: `${path([...points, [100, 100], [0, 0]].map(([x, y]) => [X(x), Y(y)]))}Z` }),
    );
    svg.append(make("line", { class: "reference", x1: X(0), y1: Y(0), x2: X(100), y2: Y(100) }));
    svg.append(make("text", { class: "hint", x: X(97), y: Y(4), "text-anchor": "end" }, "below the line: too sure"));
    curve(chart, points, "c1");
    explore(
      svg,
      points.map(([x, y]) => ({
        x: X(x),
        y: Y(y),
        lines: [`${number(x)} % interval`, `holds ${number(y)} % of the test crystals`],
      })),
    );
  });
  const confidence = responsive((host) => {
    const { confidence: kept, oracle } = shown,
      values = [...kept, ...oracle].map(([, y]) => y);
    const chart = axes(host, {
      x: { domain: [0, 100], ticks: [0, 20, 40, 60, 80, 100], label: "Least sure crystals left out (%)" },
      y: { domain: [0, Math.max(...values) * 1.08], label: axisLabel("MAE of the rest", target.unit) },
      square: true,
      label: `Error of ${target.name} against the share of unsure crystals left out`,
    });
    const scaled = (line) => line.map(([x, y]) => [100 * x, y]),
      { svg, X, Y } = chart;
    svg.append(make("line", { class: "reference", x1: X(0), x2: X(100), y1: Y(kept[0][1]), y2: Y(kept[0][1]) }));
    curve(chart, scaled(oracle), "c0 thin");
    curve(chart, scaled(kept), "c1");
    const middle = ([line, f]) => line[Math.floor(line.length * f)];
    const [ox, oy] = middle([scaled(oracle), 0.5]),
      [kx, ky] = middle([scaled(kept), 0.6]);
    svg.append(make("text", { class: "name c0", x: X(ox) - 4, y: Y(oy) + 16, "text-anchor": "end" }, "by true error"));
    svg.append(make("text", { class: "name c1", x: X(kx), y: Y(ky) - 8 }, "by std"));
    explore(
      svg,
      scaled(kept).map(([x, y]) => ({
        x: X(x),
        y: Y(y),
        lines: [`${number(x)} % left out`, `MAE of the rest ${withUnit(number(y), target.unit)}`],
      })),
    );
  });
  const { box, start } = picker(target, ways, (way, point) => {
    shown = point.calibration;
    facts.textContent =
      `Miscalibration area ${number(shown.area)} · sharpness ${withUnit(number(shown.sharpness), target.unit)}` +
      (shown.factor === null ? "" : ` · std needs a factor of ${number(shown.factor)}`);
    [coverage, confidence].forEach((host) => host.redraw());
  });
  start();
  return [box, facts, make("div", { class: "pair" }, coverage, confidence)];
}

/** Mean absolute error and number of test crystals of each element. */
function byElement(target, point) {
  const found = new Map();
  for (const p of predictions(target, point)) {
    for (const element of target.elements[p.row]) {
      const entry = found.get(element) || { sum: 0, n: 0, crystals: new Set() };
      entry.sum += Math.abs(p.predicted - p.true);
      entry.n += 1;
      entry.crystals.add(p.row);
      found.set(element, entry);
    }
  }
  return new Map(
    [...found].map(([element, { sum, n, crystals }]) => [element, { mae: sum / n, crystals: crystals.size }]),
  );
}

function elements(target) {
  target.elements = target.formulas.map((formula) => [...new Set(formula.match(/[A-Z][a-z]?/g) || [])]);
  const scratch = target.ways.find((way) => way.kind === "scratch");
  let view = "chosen",
    way,
    point;
  const grid = make("div", { class: "periodic", role: "img" }),
    scaleBar = make("p", { class: "scale" });
  const draw = () => {
    const without = scratch && at(scratch, point.size) ? byElement(target, at(scratch, point.size)) : new Map();
    const own = byElement(target, point),
      shown = view === "scratch" ? without : own;
    const gains = view === "gain";
    const value = (element) => {
      const [a, b] = [without.get(element), own.get(element)];
      return gains ? (a && b ? 100 * (1 - b.mae / a.mae) : null) : shown.has(element) ? shown.get(element).mae : null;
    };
    // One scale for both ways, so that switching between them compares.
    const top = gains
      ? 50
      : Math.max(...[...own.values(), ...without.values()].filter((e) => e.crystals > 2).map((e) => e.mae), 1e-12);
    const cells = [];
    PERIODIC.forEach((symbols, row) =>
      symbols.forEach((element, column) => {
        if (element === ".") return;
        const v = value(element),
          entry = shown.get(element) || own.get(element);
        const cell = make(
          "div",
          { class: v === null ? "none" : gains ? (v < 0 ? "worse" : "better") : "error" },
          make("b", {}, element),
          make("small", {}, v === null ? "" : gains ? `${Math.round(v)}`.replace("-", "−") : number(v, 2)),
        );
        cell.style.gridArea = `${row + 1 + (row > 6)} / ${column + 1}`;
        if (v !== null) {
          cell.style.setProperty("--t", Math.min(Math.abs(v) / top, 1).toFixed(2));
          const lines = [
            element,
            count(entry.crystals, "test crystal"),
            without.has(element) ? `scratch: MAE ${withUnit(number(without.get(element).mae), target.unit)}` : "",
            own.has(element) && way !== scratch
              ? `${way.label}: MAE ${withUnit(number(own.get(element).mae), target.unit)}`
              : "",
          ];
          cell.addEventListener("pointerenter", (event) => showTip(lines, event.clientX, event.clientY));
          cell.addEventListener("pointerleave", hideTip);
          cell.setAttribute("data-element", element);
        }
        cells.push(cell);
      }),
    );
    grid.setAttribute(
      "aria-label",
      `${gains ? "Gain over scratch" : "Mean absolute error"} by element, ${target.name}`,
    );
    grid.replaceChildren(...cells);
    scaleBar.replaceChildren(
      ...(gains
        ? [make("span", {}, "−50 %"), make("i", { class: "diverging" }), make("span", {}, "+50 % gain over scratch")]
        : [
            make("span", {}, "0"),
            make("i", { class: "sequential" }),
            make("span", {}, `${withUnit(number(top), target.unit)} MAE or more`),
          ]),
    );
  };
  const { box, start } = picker(target, target.ways, (w, p) => {
    [way, point] = [w, p];
    draw();
  });
  start();
  const views = scratch
    ? switcher(
        "What is shown",
        [
          ["scratch", "scratch"],
          ["chosen", "chosen way"],
          ["gain", "gain"],
        ],
        view,
        (v) => {
          view = v;
          draw();
        },
      )
    : "";
  return [make("div", { class: "row" }, box, views), grid, scaleBar];
}

/* Errors against the size of the training set, and of the source. A way of learning has points, one a training size. */

const at = (way, size) => way.points.find((point) => point.size === size);

/** What one test of a way at one size gave, for the tip. */
function summary(target, way, point) {
  const interval = point.low === null ? "" : ` (${number(point.low)} to ${number(point.high)})`;
  return [
    way.label,
    `${count(point.size, "training crystal")}, ${count(point.n, "seed")}`,
    `test MAE ${withUnit(number(point.mae) + interval, target.unit)}`,
    point.gain === null
      ? ""
      : `gain over scratch ${percent(point.gain)}` +
        (point.gainLow === null ? "" : ` (${percent(point.gainLow)} to ${percent(point.gainHigh)})`),
    point.verdict,
  ];
}

/** Axis that holds all means, and intervals up to a factor of two: beyond, a wide one would flatten all lines. */
function errorAxis(target, points) {
  const values = points.flatMap(({ mae, low, high }) => [
    mae,
    Math.max(low ?? mae, mae / 2),
    Math.min(high ?? mae, mae * 2),
  ]);
  return { domain: domain(values, true), log: true, label: axisLabel("Test MAE", target.unit) };
}

/** Lines with bands and marks. `lines` are {way, points: [{x, point}]}. */
function drawLines(chart, target, lines) {
  const { svg, X, Y } = chart;
  for (const { way, points } of lines) {
    const banded = points.filter(({ point }) => point.low !== null);
    if (banded.length > 1) {
      const edge = [
        ...banded.map(({ x, point }) => [X(x), Y(point.high)]),
        ...banded.reverse().map(({ x, point }) => [X(x), Y(point.low)]),
      ];
      svg.append(make("path", { class: `band c${way.colour}`, "data-way": way.label, d: `${path(edge)}Z` }));
    }
  }
  const spots = [];
  for (const { way, points } of lines) {
    const group = make("g", {
      class: `series c${way.colour}${way.kind === "baseline" ? " dashed" : ""}`,
      "data-way": way.label,
    });
    group.append(make("path", { class: "line", d: path(points.map(({ x, point }) => [X(x), Y(point.mae)])) }));
    for (const { x, point } of points) {
      if (points.length === 1 && point.low !== null)
        group.append(make("line", { class: "line", x1: X(x), x2: X(x), y1: Y(point.low), y2: Y(point.high) }));
      group.append(SHAPES[way.shape](X(x), Y(point.mae), 3.8, { class: "mark" }));
      spots.push({ x: X(x), y: Y(point.mae), lines: summary(target, way, point) });
    }
    svg.append(group);
  }
  explore(svg, spots);
}

/** Names at the right ends of lines, pushed apart where they would cover each other. */
function nameLines(chart, lines) {
  const names = lines
    .map(({ way, points }) => ({ way, y: chart.Y(last(points).point.mae) + 4 }))
    .sort((a, b) => a.y - b.y);
  for (let i = 1; i < names.length; i++) names[i].y = Math.max(names[i].y, names[i - 1].y + 14);
  const below = names.length ? last(names).y - chart.bottom : 0;
  for (const { way, y } of names) {
    chart.svg.append(
      make(
        "text",
        { class: `name c${way.colour}`, "data-way": way.label, x: chart.right + 9, y: y - Math.max(0, below) },
        way.name,
      ),
    );
  }
}

/** Legend whose entries switch lines on and off, and bring out the one that is pointed at. */
function legend(ways, on, host, value) {
  const bringOut = (way) => {
    host.classList.toggle("faint", way !== null && on.has(way));
    for (const node of host.querySelectorAll("[data-way]"))
      node.classList.toggle("strong", way !== null && node.dataset.way === way.label);
  };
  return make(
    "div",
    { class: "legend" },
    ...ways.map((way) => {
      const swatch = make("svg", {
        width: 26,
        height: 12,
        "aria-hidden": "true",
        class: `series c${way.colour}${way.kind === "baseline" ? " dashed" : ""}`,
      });
      swatch.append(
        make("line", { class: "line", x1: 0, x2: 26, y1: 6, y2: 6 }),
        SHAPES[way.shape](13, 6, 3.8, { class: "mark" }),
      );
      const button = make(
        "button",
        {
          type: "button",
          "aria-pressed": String(on.has(way)),
          onclick: () => {
            if (!on.delete(way)) on.add(way);
            button.setAttribute("aria-pressed", String(on.has(way)));
            host.redraw();
            bringOut(on.has(way) ? way : null);
          },
          onpointerenter: (event) => event.pointerType === "mouse" && bringOut(way),
          onpointerleave: () => bringOut(null),
        },
        swatch,
        make("span", {}, way.label),
        make("span", { class: "value" }, value(way)),
      );
      return button;
    }),
  );
}

function learningCurves(target) {
  const ways = [...target.ways].sort((a, b) => last(a.points).mae - last(b.points).mae);
  const on = new Set(ways.filter((way) => way.shown));
  const sizes = [...new Set(target.ways.flatMap((way) => way.points.map((point) => point.size)))].sort((a, b) => a - b);
  const host = responsive(() => {
    const lines = ways
      .filter((way) => on.has(way))
      .map((way) => ({ way, points: way.points.map((point) => ({ x: point.size, point })) }));
    const named = host.clientWidth > 500;
    const chart = axes(host, {
      height: 340,
      right: named ? 136 : 14,
      label: `Learning curves of ${target.name}: test error against training crystals; arrow keys step through the points`,
      x: { domain: domain(sizes, true), log: true, label: "Training crystals", ticks: sizes },
      y: errorAxis(
        target,
        lines.flatMap(({ points }) => points.map(({ point }) => point)),
      ),
    });
    drawLines(chart, target, lines);
    if (named) nameLines(chart, lines);
  });
  const list = legend(ways, on, host, (way) => number(last(way.points).mae));
  list.prepend(
    make(
      "p",
      { class: "soft" },
      `Test MAE at the largest size${target.unit ? `, ${target.unit}` : ""}; press to show or hide`,
    ),
  );
  return [make("div", { class: "beside" }, host, list)];
}

/** Error against the size of the source, for sources that come in several sizes. */
function sourceSizes(target) {
  const groups = new Map();
  for (const way of target.ways.filter((way) => way.sourceSize)) {
    const key = `${way.strategy}\n${way.source}`;
    groups.set(key, [...(groups.get(key) || []), way]);
  }
  const bySize = (a, b) => a.sourceSize - b.sourceSize;
  const families = [...groups.values()]
    .map((ways) => ways.sort(bySize))
    .filter((ways) => new Set(ways.map((way) => way.sourceSize)).size > 1);
  if (!families.length) return null;
  const scratch = target.ways.find((way) => way.kind === "scratch");
  const sizes = [...new Set(families.flat().flatMap((way) => way.points.map((point) => point.size)))].sort(
    (a, b) => a - b,
  );
  const sources = [...new Set(families.flat().map((way) => way.sourceSize))].sort((a, b) => a - b);
  let size = last(sizes);
  const host = responsive(() => {
    const lines = families
      .map((ways) => {
        const points = ways.filter((way) => at(way, size)).map((way) => ({ x: way.sourceSize, point: at(way, size) }));
        return { way: { ...last(ways), name: last(ways).strategy, label: last(ways).family }, points };
      })
      .filter(({ points }) => points.length);
    const without = scratch && at(scratch, size);
    const all = [...lines.flatMap(({ points }) => points.map(({ point }) => point)), ...(without ? [without] : [])];
    const named = host.clientWidth > 500;
    const chart = axes(host, {
      height: 320,
      right: named ? 136 : 14,
      label: `Test error of ${target.name} against the size of the source; arrow keys step through the points`,
      x: {
        domain: domain(sources, true, 0.08),
        log: true,
        label: "Crystals that the source was trained on",
        ticks: sources,
      },
      y: errorAxis(target, all),
    });
    if (without) {
      const { svg, left, right, Y } = chart;
      if (without.low !== null)
        svg.append(
          make("rect", {
            class: "band c0",
            x: left,
            width: right - left,
            y: Y(without.high),
            height: Y(without.low) - Y(without.high),
          }),
        );
      svg.append(make("line", { class: "reference", x1: left, x2: right, y1: Y(without.mae), y2: Y(without.mae) }));
      svg.append(
        make(
          "text",
          {
            class: "name c0",
            x: named ? right + 9 : right - 4,
            y: Y(without.mae) + (named ? 4 : -6),
            "text-anchor": named ? "start" : "end",
          },
          "scratch",
        ),
      );
    }
    drawLines(chart, target, lines);
    if (named) nameLines(chart, lines);
  });
  const pick = choose(
    "Training crystals",
    sizes.map((s) => [String(s), s.toLocaleString("en")]),
    String(size),
    (value) => {
      size = Number(value);
      host.redraw();
    },
  );
  const names = families.map((ways) => make("span", { class: `key c${last(ways).colour}` }, last(ways).family));
  return [make("div", { class: "controls" }, pick), host, make("p", { class: "keys" }, ...names)];
}

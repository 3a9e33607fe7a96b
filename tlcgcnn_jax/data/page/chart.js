"use strict";
/* What every chart of the page is made of: elements, scales, axes, and one way to look at single points. */

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; text is always text, never markup. */
function make(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "path", "line", "circle", "rect", "text", "polygon"].includes(tag);
  const node = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const last = (values) => values[values.length - 1];

/** A number with three digits, as people write it. */
function number(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const text =
    size >= 10 ** digits - 0.5 || size === 0
      ? Math.round(value).toLocaleString("en")
      : size < 1e-3
        ? value.toExponential(digits - 1)
        : value.toPrecision(digits);
  return text.replace("-", "−");
}

/** The same with its sign, in whole per cent. */
function percent(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const whole = Math.round(value);
  return `${whole > 0 ? "+" : whole < 0 ? "−" : "±"}${Math.abs(whole)} %`;
}

/** A number of things. */
function count(n, thing) {
  return `${n.toLocaleString("en")} ${thing}${n === 1 ? "" : "s"}`;
}

function withUnit(text, unit) {
  return unit ? `${text} ${unit}` : text;
}

function axisLabel(what, unit) {
  return unit ? `${what} (${unit})` : what;
}

/** Round numbers between two ends; on a logarithmic scale 1, 2, 5 or denser, so that there are always a few. */
function ticks(low, high, log, wanted = 5) {
  if (log) {
    for (const steps of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 6, 8], [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8]]) {
      const found = [];
      for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); decade++) {
        found.push(...steps.map((step) => Number((step * 10 ** decade).toPrecision(2))));
      }
      const inside = found.filter((tick) => tick >= low * 0.9999 && tick <= high * 1.0001);
      if (inside.length >= 4) return inside;
    }
  }
  const rough = (high - low || 1) / wanted,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

function tickText(value) {
  return (
    Math.abs(value) >= 1e6 ? value.toExponential(0) : value.toLocaleString("en", { maximumSignificantDigits: 6 })
  ).replace("-", "−");
}

/** A function from values to pixels; what lies beyond the axis is drawn at its end. */
function scale({ domain: [low, high], log }, from, to) {
  const f = log ? Math.log10 : (value) => value;
  const span = f(high) - f(low) || 1;
  return (value) => from + ((f(Math.min(Math.max(value, low), high)) - f(low)) / span) * (to - from);
}

/** Ends of an axis that hold all values, with a little air. */
function domain(values, log, air = 0.06) {
  const usable = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
  if (!usable.length) return log ? [1, 10] : [0, 1];
  const low = usable.reduce((a, b) => Math.min(a, b)),
    high = usable.reduce((a, b) => Math.max(a, b));
  if (log) {
    const stretch = Math.max((high / low) ** air, 1.05);
    return [low / stretch, high * stretch];
  }
  const extra = (high - low || Math.abs(high) || 1) * air;
  return [low - extra, high + extra];
}

/**
 * Axes in a host element. `x` and `y` are {domain, log, label, ticks}; the y label stands above its axis, where it is
 * read without turning the head.
 */
function axes(host, { x, y, height, label, right = 12, square = false }) {
  const width = Math.max(host.clientWidth, 200),
    left = 52,
    top = 26,
    bottom = 44;
  const full = square ? width - left - right + top + bottom : height;
  const X = scale(x, left, width - right),
    Y = scale(y, full - bottom, top);
  const svg = make("svg", {
    width,
    height: full,
    viewBox: `0 0 ${width} ${full}`,
    role: "img",
    tabindex: 0,
    "aria-label": label,
  });
  const few = (width - left - right) / 60;
  for (const tick of y.ticks || ticks(...y.domain, y.log)) {
    const at = Y(tick);
    svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    svg.append(make("text", { class: "tick", x: left - 8, y: at + 4, "text-anchor": "end" }, tickText(tick)));
  }
  for (const tick of x.ticks || ticks(...x.domain, x.log, Math.min(5, few))) {
    const at = X(tick);
    svg.append(make("line", { class: "axis", x1: at, x2: at, y1: full - bottom, y2: full - bottom + 5 }));
    svg.append(make("text", { class: "tick", x: at, y: full - bottom + 18, "text-anchor": "middle" }, tickText(tick)));
  }
  svg.append(make("line", { class: "axis", x1: left, x2: width - right, y1: full - bottom, y2: full - bottom }));
  svg.append(make("text", { class: "label", x: 0, y: 12 }, y.label));
  svg.append(
    make("text", { class: "label", x: (left + width - right) / 2, y: full - 6, "text-anchor": "middle" }, x.label),
  );
  host.replaceChildren(svg);
  return { svg, X, Y, left, right: width - right, top, bottom: full - bottom, width };
}

/** A chart that is drawn again when its place has another width: after a turn of the phone, or when it is shown. */
function responsive(draw) {
  const host = make("div", { class: "chart" });
  let width = 0;
  host.redraw = () => host.clientWidth && draw(host);
  new ResizeObserver(() => {
    if (host.clientWidth !== width) {
      width = host.clientWidth;
      host.redraw();
    }
  }).observe(host);
  return host;
}

/** The "d" of a line through points in pixels. */
function path(points) {
  return points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
}

const SHAPES = {
  circle: (x, y, r, more) => make("circle", { cx: x, cy: y, r, ...more }),
  square: (x, y, r, more) => make("rect", { x: x - r * 0.9, y: y - r * 0.9, width: r * 1.8, height: r * 1.8, ...more }),
  diamond: (x, y, r, more) =>
    make("polygon", {
      points: `${x},${y - r * 1.3} ${x + r * 1.3},${y} ${x},${y + r * 1.3} ${x - r * 1.3},${y}`,
      ...more,
    }),
  triangle: (x, y, r, more) =>
    make("polygon", { points: `${x},${y - r * 1.25} ${x + r * 1.2},${y + r} ${x - r * 1.2},${y + r}`, ...more }),
};

const tip = make("div", { class: "tip", "aria-live": "polite", hidden: "" });
let shownAt = 0;
// The tip belongs to a place of the page. What scrolled before it was shown may be told later.
addEventListener("scroll", () => scrollY !== shownAt && hideTip(), { passive: true });

/** Show lines of text beside a place of the window; the first line is the heading. */
function showTip(lines, clientX, clientY) {
  tip.replaceChildren(...lines.filter(Boolean).map((line, i) => make(i ? "div" : "strong", {}, line)));
  tip.hidden = false;
  shownAt = scrollY;
  const { width, height } = tip.getBoundingClientRect(),
    room = document.documentElement.clientWidth;
  const x = clientX + 14 + width > room ? clientX - 14 - width : clientX + 14;
  tip.style.left = `${Math.max(4, Math.min(x, room - width - 4))}px`;
  tip.style.top = `${clientY - height - 10 < 0 ? clientY + 14 : clientY - height - 10}px`;
}

function hideTip() {
  tip.hidden = true;
}

/**
 * Let people look at single points: the nearest to the pointer or finger, or one after another with the arrow keys.
 * `points` are {x, y, lines} in pixels of the svg, in the order of the keys.
 */
function explore(svg, points) {
  const ring = make("circle", { class: "ring", r: 6.5, visibility: "hidden" });
  svg.append(ring);
  let current = -1;
  const leave = () => {
    current = -1;
    ring.setAttribute("visibility", "hidden");
    hideTip();
  };
  const show = (index) => {
    current = index;
    const { x, y, lines } = points[index],
      box = svg.getBoundingClientRect();
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.setAttribute("visibility", "visible");
    showTip(lines, box.left + x, box.top + y);
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(),
      px = event.clientX - box.left,
      py = event.clientY - box.top;
    let best = -1,
      distance = 24 ** 2;
    points.forEach(({ x, y }, i) => {
      const d = (x - px) ** 2 + (y - py) ** 2;
      if (d < distance) [best, distance] = [i, d];
    });
    if (best < 0) leave();
    else if (best !== current) show(best);
  };
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") leave();
    if (!step || !points.length) return;
    event.preventDefault();
    show((current + step + points.length + (current < 0 && step < 0)) % points.length);
  });
}

/** A drop-down list with its label; `choices` are [value, text]. */
function choose(label, choices, value, onchange) {
  const options = choices.map(([key, text]) =>
    make("option", { value: key, selected: key === value ? "" : null }, text),
  );
  const select = make("select", { onchange: () => onchange(select.value) }, ...options);
  return make("label", { class: "choice" }, `${label} `, select);
}

/** Buttons of which one is pressed; `choices` are [value, text]. */
function switcher(label, choices, value, onchange) {
  const buttons = choices.map(([key, text]) =>
    make(
      "button",
      {
        type: "button",
        "aria-pressed": String(key === value),
        "data-value": key,
        onclick: () => {
          buttons.forEach((button) =>
            button.setAttribute("aria-pressed", String(button.dataset.value === String(key))),
          );
          onchange(key);
        },
      },
      text,
    ),
  );
  return make("div", { class: "switcher", role: "group", "aria-label": label }, ...buttons);
}

/* The page of a study: one block of data holds targets, their ways of learning and every prediction. */

const study = JSON.parse(document.getElementById("study").textContent);

/** A panel for each target that has something to show; the whole section goes where none has. */
function panels(name, build) {
  const place = document.querySelector(`[data-chart="${name}"]`);
  if (!place) return;
  for (const target of study.targets) {
    const content = target.ways.length ? build(target) : null;
    if (content)
      place.append(
        make("article", { class: "panel", "data-target": target.name }, make("h3", {}, target.name), ...content),
      );
  }
  if (place.children.length) return;
  place.closest("section").remove();
  document.querySelector(`.contents a[href="#${name}"]`).remove();
}

/** Colours and a size switch for the tables of gains. */
function heatMaps() {
  for (const cell of document.querySelectorAll("td[data-gain]")) {
    const gain = Number(cell.dataset.gain);
    cell.style.setProperty("--t", Math.min(Math.abs(gain) / 40, 1).toFixed(2));
    cell.classList.add(gain < 0 ? "worse" : "better");
  }
  const maps = [...document.querySelectorAll("[data-size]")],
    sizes = [...new Set(maps.map((map) => map.dataset.size))];
  if (sizes.length < 2) return;
  const first = (maps.find((map) => "shown" in map.dataset) ?? last(maps)).dataset.size;
  const show = (size) =>
    maps.forEach((map) => {
      map.hidden = map.dataset.size !== size;
    });
  maps[0].before(
    make(
      "div",
      { class: "row" },
      "Training crystals ",
      switcher(
        "Training crystals",
        sizes.map((s) => [s, Number(s).toLocaleString("en")]),
        first,
        show,
      ),
    ),
  );
  show(first);
}

/** Tables whose headings sort them. */
function sortable(table) {
  const body = table.tBodies[0],
    heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1,
        compare = new Intl.Collator("en", { numeric: true }).compare;
      const order = (a, b) =>
        value(a) === ""
          ? 1
          : value(b) === ""
            ? -1
            : "value" in a.cells[column].dataset
              ? sign * (value(a) - value(b))
              : sign * compare(value(a), value(b));
      body.append(...[...body.rows].sort(order));
    };
    head.replaceChildren(make("button", { type: "button", onclick: sort }, head.textContent));
  });
}

/** Buttons that show one target in all sections. */
function filterByTarget() {
  if (study.targets.length < 2) return;
  const show = (name) => {
    for (const node of document.querySelectorAll("[data-target]"))
      node.hidden = name !== "" && node.dataset.target !== name;
  };
  document
    .querySelector(".filter")
    .append(
      switcher(
        "Show the property",
        [["", "All"], ...study.targets.map((target) => [target.name, target.name])],
        "",
        show,
      ),
    );
}

document.body.append(tip);
document.documentElement.classList.add("scripted");
panels("curves", learningCurves);
panels("sources", sourceSizes);
panels("parity", parity);
panels("calibration", calibration);
panels("elements", elements);
heatMaps();
document.querySelectorAll("table.sortable").forEach(sortable);
filterByTarget();

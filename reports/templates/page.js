// The page is complete without this script: it adds sorting, filtering and interactive figures.
(() => {
  "use strict";

  const number = (text) => (text === "" ? null : Number(text));
  const valueOf = (cell) => {
    const raw = cell.dataset.sort ?? cell.textContent.trim();
    const parsed = number(raw);
    return parsed === null ? null : Number.isNaN(parsed) ? raw.toLowerCase() : parsed;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing stays last
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
        rows.sort(([a], [b]) => (a === null || b === null || !down ? compare(a, b) : compare(b, a)));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  const form = document.querySelector("form.filter");
  const rows = [...document.querySelectorAll("#metric-table tbody tr")];
  if (form && rows.length > 1) {
    form.hidden = false;
    const apply = () => {
      const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      const status = form.elements.status.value;
      const component = form.elements.component.value;
      let shown = 0;
      for (const row of rows) {
        const text = row.querySelector("th").textContent.toLowerCase();
        row.hidden = !(words.every((word) => text.includes(word)) && (!status || row.dataset.status === status)
          && (!component || row.dataset.component === component));
        shown += !row.hidden;
      }
      form.querySelector("output").textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  const openTarget = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const details = target && target.closest("details");
    if (details && !details.open) {
      details.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", openTarget);
  openTarget();

  // Plotly and the figures are large, and loaded when the first figure is asked for. Works from file://.
  const loading = new Map();
  const load = (name) => {
    if (!loading.has(name)) {
      loading.set(name, new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = name;
        script.onload = done;
        script.onerror = () => failed(new Error(`${name} is not beside this page`));
        document.head.append(script);
      }));
    }
    return loading.get(name);
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const toneOf = { pass: "good", defect: "bad", error: "bad", failed: "bad", contended: "warn", flaky: "warn",
    invalid: "warn", criterion: "ink", band: "band", span: "span" };
  const themed = (figure) => {
    const data = structuredClone(figure.data);
    for (const trace of data) {
      const tone = colour(toneOf[trace.meta] ?? "note");
      if (trace.meta === "heat") {
        trace.colorscale = [0, 1, 2, 3, 4, 5].map((shade) => [shade / 5, colour(`h${shade}`)]);
      } else if (trace.mode === "lines") {
        trace.line = { ...trace.line, color: tone, width: trace.fill || trace.showlegend === false ? 0 : 2,
          dash: trace.meta === "criterion" ? "dot" : "solid" };
        if (trace.fill) trace.fillcolor = tone;
      } else {
        trace.marker = { ...trace.marker, color: tone };
        trace.error_x = { ...trace.error_x, color: tone };
      }
    }
    const grid = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line") };
    const given = structuredClone(figure.layout);
    for (const shape of given.shapes ?? []) shape.line = { color: colour("soft"), width: 1 };
    return [data, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("ink"), size: 12 },
      margin: { l: 48, r: 12, t: 36, b: 48 }, legend: { orientation: "h", y: -0.25 }, hovermode: "closest", ...given,
      xaxis: { ...grid, ...given.xaxis }, yaxis: { ...grid, ...given.yaxis } }];
  };
  const draw = (box) => {
    const figure = window.maatFigures[box.dataset.figure];
    if (!figure) throw new Error("this page and figures.js are of different reports: reload");
    const [data, layout] = themed(figure);
    window.Plotly.react(box.querySelector(".canvas"), data, layout,
      { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
  };
  const drawn = new Set();
  for (const box of document.querySelectorAll(".plot[data-figure]")) {
    box.hidden = false;
    const button = box.querySelector("button");
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await Promise.all([load("plotly.min.js"), load("figures.js")]);
        box.closest("figure")?.classList.add("wide");
        draw(box);
        drawn.add(box);
        button.hidden = true;
      } catch (error) {
        button.textContent = error.message;
      }
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
})();

"use strict";
// The table of all features. Only visible rows exist, so that it stays fast with many thousands.

(() => {
  const {el, percent, count, plain} = GALLERY;
  const SPARE = 6;
  const DENSITIES = [
    ["", "any density", () => true],
    ["dead", "never fires", (d) => d === 0],
    ["rare", "under 0.1%", (d) => d > 0 && d < 0.001],
    ["low", "0.1% to 1%", (d) => d >= 0.001 && d < 0.01],
    ["middle", "1% to 10%", (d) => d >= 0.01 && d < 0.1],
    ["high", "10% and more", (d) => d >= 0.1],
    ["always", "every token", (d) => d === 1],
  ];
  const HAVING = [
    ["", "with or without", () => true],
    ["meaning", "with an interpretation", (index, f) => index.meaning[f] !== ""],
    ["label", "with a label", (index, f) => index.labels[f].length > 0],
    ["page", "with a sae-dashboard page", (index, f) => index.hasPage.has(f)],
  ];
  const COLUMNS = [
    ["feature", "Feature", (index, f) => f, 1],
    ["group", "Group", (index, f) => index.group[f], 1],
    ["kind", "Fires on", (index, f) => index.kinds[index.kind[f]] || "", 1],
    ["density", "Density", (index, f) => index.nFiring[f], -1],
    ["largest", "Strongest", (index, f) => index.largest[f], -1],
    ["tokens", "Top tokens", (index, f) => index.tokens[f].join(" ").trim().toLowerCase(), 1],
    ["meaning", "Interpretation", (index, f) => index.meaning[f].toLowerCase(), 1],
    ["score", "Score", (index, f) => index.score[f] ?? -Infinity, -1],
    ["label", "Best labels", (index, f) => (index.labels[f].length ? index.labels[f][0][1] : 0), -1],
  ];
  const FIGURE = ["figure", "Figure", (index, f) => {
    const value = chosenFigure(index)[2](f);
    return value === null || value === undefined ? (state.order > 0 ? Infinity : -Infinity) : typeof value === "string" ? value.toLowerCase() : Number(value);
  }, -1];
  COLUMNS.push(FIGURE);
  const chosenFigure = (index) => index.figures.get(state.figure);
  const state = {figure: "", search: "", group: "", density: "", kind: "", having: "", sort: "largest", order: -1, top: 0, at: 0};
  let haystack = null;

  // Features in the order in which the table shows them.
  GALLERY.listed = (index) => {
    haystack ??= Array.from({length: index.nFeatures}, (_, f) => [
      f, index.tokens[f].join(" "), index.meaning[f], ...index.labels[f].map((own) => own[0].replace(/_/g, " ")),
    ].join(" ").toLowerCase());
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const dense = DENSITIES.find(([name]) => name === state.density)[2];
    const having = HAVING.find(([name]) => name === state.having)[2];
    const found = [];
    for (let f = 0; f < index.nFeatures; f++) {
      if (state.group !== "" && index.group[f] !== Number(state.group)) continue;
      if (state.kind !== "" && index.kind[f] !== Number(state.kind)) continue;
      if (!dense(GALLERY.density(index, f)) || !having(index, f)) continue;
      if (words.every((word) => haystack[f].includes(word))) found.push(f);
    }
    const key = COLUMNS.find(([name]) => name === state.sort)[2];
    const keys = new Map(found.map((f) => [f, key(index, f)]));
    const compare = (a, b) => (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0);
    // Features with an empty text go last in either order.
    const blank = (f) => (keys.get(f) === "" ? 1 : 0);
    return found.sort((a, b) => blank(a) - blank(b) || state.order * compare(a, b) || a - b);
  };

  function select(name, label, options, change) {
    const box = el("select", {id: `filter-${name}`, onchange: (event) => change(event.target.value)},
      ...options.map(([value, text]) => el("option", {value, selected: value === String(state[name])}, text)));
    return el("label", {for: `filter-${name}`}, el("span", {}, label), box);
  }

  function row(index, f, place, height) {
    const chosen = state.figure && chosenFigure(index);
    const cell = (name, ...children) => el(`span.cell.${name}`, {role: "gridcell"}, ...children);
    const density = GALLERY.density(index, f);
    const bar = el("span.bar", {"aria-hidden": "true"});
    bar.style.setProperty("--share", density ? Math.max(0, 1 + Math.log10(density) / 4) : 0);
    const labels = index.labels[f].map((own) => own[0].replace(/_/g, " "));
    const element = el("div.row", {
      role: "row", id: `row-${f}`, "aria-rowindex": place + 2, "aria-selected": place === state.at ? "true" : "false",
      onclick: (event) => event.target.closest("a") || (location.hash = `feature=${f}`),
    },
      cell("feature", el("a", {href: `#feature=${f}`, tabindex: -1}, String(f))),
      cell("group", index.widths.length > 1 ? String(index.group[f] + 1) : "\u2013"),
      cell("kind", density ? index.kinds[index.kind[f]] : "dead"),
      cell("density", density ? percent(density) : "never", bar),
      cell("largest", density ? plain(index.largest[f]) : "\u2013"),
      cell("tokens", ...index.tokens[f].map((token) => el("code", {}, token.trim() || "\u2423"))),
      cell("meaning", index.meaning[f] || ""),
      cell("score", index.score[f] === null ? "" : index.score[f].toFixed(2)),
      cell("label", labels.join(", ")),
      state.figure && cell("figure", chosen[3](f) || "\u2013"));
    element.style.transform = `translateY(${place * height}px)`;
    return element;
  }

  GALLERY.showTable = (index, main) => {
    let listed = [];
    let height = 40;
    const rows = el("div.rows", {role: "presentation"});
    const heads = COLUMNS.map(([name, text, , first]) => el(`span.cell.${name}`, {role: "columnheader", "data-sort": name},
      el("button", {type: "button", onclick: () => sortBy(name, first)}, text)));
    const figureHead = heads.at(-1);
    const head = el("div.row.head", {role: "row", "aria-rowindex": 1}, ...heads);
    const body = el("div.body", {role: "rowgroup", tabindex: 0, "aria-label": "Features; arrow keys move, Enter opens"}, rows);
    const grid = el("div.grid", {role: "grid", "aria-label": "All features"}, head, body);
    const result = el("p.result", {role: "status"});

    function sortBy(name, first) {
      state.order = state.sort === name ? -state.order : first;
      state.sort = name;
      refresh();
    }

    function refresh(keep) {
      listed = GALLERY.listed(index);
      grid.setAttribute("aria-rowcount", listed.length + 1);
      for (const cell of heads) {
        const own = cell.dataset.sort === state.sort;
        if (own) cell.setAttribute("aria-sort", state.order > 0 ? "ascending" : "descending");
        else cell.removeAttribute("aria-sort");
      }
      const box = document.getElementById("filter-sort");
      if (box) box.value = state.sort;
      result.textContent = listed.length ? `${count(listed.length)} of ${count(index.nFeatures)} features` : "No feature matches.";
      if (!keep) { state.at = 0; body.scrollTop = 0; }
      draw();
    }

    function draw() {
      height = parseFloat(getComputedStyle(body).getPropertyValue("--row")) || 40;
      rows.style.height = `${listed.length * height}px`;
      head.style.paddingRight = `${12 + body.offsetWidth - body.clientWidth}px`;
      const first = Math.max(0, Math.floor(body.scrollTop / height) - SPARE);
      const last = Math.min(listed.length, Math.ceil((body.scrollTop + body.clientHeight) / height) + SPARE);
      rows.replaceChildren(...listed.slice(first, last).map((f, k) => row(index, f, first + k, height)));
      if (state.at >= first && state.at < last) body.setAttribute("aria-activedescendant", `row-${listed[state.at]}`);
      else body.removeAttribute("aria-activedescendant");
      state.top = body.scrollTop;
    }

    body.addEventListener("scroll", () => requestAnimationFrame(draw), {passive: true});
    body.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(body.clientHeight / height) - 1);
      const steps = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity};
      if (event.key === "Enter" && listed.length) location.hash = `feature=${listed[state.at]}`;
      if (!(event.key in steps)) return;
      event.preventDefault();
      state.at = Math.max(0, Math.min(listed.length - 1, state.at + steps[event.key]));
      const top = state.at * height;
      if (top < body.scrollTop) body.scrollTop = top;
      if (top + height > body.scrollTop + body.clientHeight) body.scrollTop = top + height - body.clientHeight;
      draw();
    });

    const set = (name) => (value) => { state[name] = value; refresh(); };
    const kinds = [...new Set(index.kind)].filter((kind) => kind >= 0).sort((a, b) => a - b);
    const search = el("input", {
      type: "search", id: "search", value: state.search, placeholder: "number, token, interpretation, label", autocomplete: "off",
      oninput: (event) => set("search")(event.target.value),
    });
    GALLERY.fill(main,
      GALLERY.facts(index.facts),
      el("form.filters", {role: "search", onsubmit: (event) => event.preventDefault()},
        el("label.search", {for: "search"}, el("span", {}, "Search"), search),
        index.widths.length > 1 && select("group", "Group", [["", "all"], ...index.widths.map((_, g) => [String(g), String(g + 1)])], set("group")),
        select("density", "Density", DENSITIES, set("density")),
        select("kind", "Fires mostly on", [["", "anything"], ...kinds.map((kind) => [String(kind), index.kinds[kind]])], set("kind")),
        select("having", "Having", HAVING, set("having")),
        index.results.length > 0 && select("figure", "Figure", [["", "none"], ...[...index.figures.values()].map(([key, title]) => [key, title])], (key) => {
          state.figure = key;
          state.sort = key ? "figure" : "largest";
          state.order = -1;
          showsFigure();
          refresh();
        }),
        select("sort", "Sort by", COLUMNS.filter((own) => own !== FIGURE || state.figure).map(([name, text]) => [name, text]), (name) => sortBy(name, COLUMNS.find(([own]) => own === name)[3]))),
      result, grid);
    const without = ["meaning", "score", "label"].filter((name) => !index[{meaning: "meaning", score: "score", label: "labels"}[name]]
      .some((own) => own !== null && own.length !== 0 && own !== ""));
    grid.classList.add(...without.map((name) => `no-${name}`));
    const showsFigure = () => {
      grid.classList.toggle("no-figure", !state.figure);
      if (state.figure) figureHead.querySelector("button").textContent = chosenFigure(index)[1];
    };
    showsFigure();
    if (index.widths.length === 1) grid.classList.add("no-group");
    const {top} = state;
    refresh(true);
    body.scrollTop = top;
    draw();
    const observer = new ResizeObserver(() => body.isConnected && draw());
    observer.observe(body);
    document.title = index.title;
  };
})();

"use strict";
// Figures of concepts, interpretation, attribution and steering: beside each its interval and its control.

(() => {
  const {el, plain} = GALLERY;
  const A_LIST = 20;
  const TITLES = {concepts: "Concepts", interpretation: "Explanation", attribution: "Where it comes from", steering: "What it does"};

  GALLERY.resultTitle = (kind) => TITLES[kind] || kind[0].toUpperCase() + kind.slice(1);
  const words = (name) => name.replace(/_/g, " ");

  function text(value, digits) {
    if (value === null || value === undefined) return "\u2013";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value === "number") return digits === null || digits === undefined ? plain(value) : value.toFixed(digits);
    if (Array.isArray(value)) return value.map((own) => text(own, digits)).join(", ");
    if (typeof value === "object") return Object.entries(value).map(([name, own]) => `${words(name)} ${text(own, digits)}`).join(", ");
    return words(value);
  }

  // "0.91 [0.85, 0.96], control 0.71"
  function figure(result, column, feature) {
    const at = (name) => (name === null ? null : (result.values[name] || [])[feature] ?? null);
    const value = at(column.name);
    if (value === null || value === "") return null;
    const low = at(column.low), high = at(column.high), control = at(column.control);
    return el("span.figure", {}, text(value, column.digits),
      low === null || high === null ? null : el("span.interval", {}, ` [${text(low, column.digits)}, ${text(high, column.digits)}]`),
      control === null ? null : el("span.control", {}, ` control ${text(control, column.digits)}`));
  }

  // All figures that can be shown in the table: [key, title, value of a feature, element of a feature].
  GALLERY.figures = (index) => index.results.flatMap((result, r) => result.columns.map((column) => [
    `${r}.${column.name}`, `${GALLERY.resultTitle(result.kind)}: ${column.title}`,
    (f) => result.values[column.name][f], (f) => figure(result, column, f),
  ]));

  // A feature's figures, one card per result.
  GALLERY.resultCards = (index, feature) => index.results.map((result) => {
    const entries = result.columns.map((column) => [column, figure(result, column, feature)]).filter(([, shown]) => shown);
    if (!entries.length) return null;
    return el("section.card", {}, el("h3", {}, GALLERY.resultTitle(result.kind)), el("dl", {}, ...entries.map(([column, shown]) =>
      el("div", {title: column.explanation}, el("dt", {}, column.title), el("dd", {}, link(index, column.name, result.values[column.name][feature], shown))))));
  }).filter(Boolean);

  function link(index, name, value, shown) {
    if (/concept|^label$/.test(name) && index.concepts.has(value)) return el("a", {href: `#concept=${encodeURIComponent(value)}`}, shown);
    return shown;
  }

  // A value's interval stands beside it, and a number is a feature's only in rows about the SAE's own latents.
  function table(index, own, rows) {
    const at = new Map(own.columns.map((name, k) => [name, k]));
    const isEnd = (name) => /_(low|high)$/.test(name) && at.has(name.replace(/_(low|high)$/, ""));
    const shown = own.columns.filter((name) => !isEnd(name) && name !== "concept");
    const cell = (row, name) => {
      const value = row[at.get(name)], whose = row[at.get("features")];
      const isLatent = typeof whose !== "string" || whose === "latents";
      if (name === "feature" && value !== null && isLatent) return el("td", {}, el("a", {href: `#feature=${value}`}, String(value)));
      if (name === "features" && Array.isArray(value)) return el("td", {}, ...value.flatMap((f) => [el("a", {href: `#feature=${f}`}, String(f)), " "]));
      const low = row[at.get(`${name}_low`)] ?? null, high = row[at.get(`${name}_high`)] ?? null;
      const interval = low === null || high === null ? null : el("span.interval", {}, ` [${text(low)}, ${text(high)}]`);
      return el(typeof value === "number" ? "td.number" : "td", {}, link(index, name, value, text(value)), interval);
    };
    return el("div.scroll", {}, el("table.plain", {},
      el("thead", {}, el("tr", {}, ...shown.map((name) => el("th", {scope: "col"}, words(name))))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...shown.map((name) => cell(row, name)))))));
  }

  // Every concept that a result's table names.
  GALLERY.conceptsOf = (results) => new Set(results.flatMap((result) => Object.values(result.tables).flatMap((own) => {
    const at = own.columns.indexOf("concept");
    return at < 0 ? [] : own.rows.map((row) => row[at]);
  })));

  GALLERY.showConcepts = (index, main) => {
    document.title = `Concepts \u2013 ${index.title}`;
    const names = [...index.concepts].sort();
    GALLERY.fill(main, el("h2", {}, "Concepts"),
      names.length ? el("ul.concepts", {}, ...names.map((name) => el("li", {}, el("a", {href: `#concept=${encodeURIComponent(name)}`}, words(name)))))
        : el("p.empty", {}, "No result is about concepts."),
      ...index.results.flatMap((result) => Object.entries(result.tables).filter(([, own]) => !own.columns.includes("concept") && own.rows.length)
        .flatMap(([name, own]) => [el("h3", {}, `${GALLERY.resultTitle(result.kind)}: ${words(name)}`), table(index, own, own.rows)])));
  };

  GALLERY.showConcept = (index, main, concept) => {
    document.title = `${words(concept)} \u2013 ${index.title}`;
    const parts = index.results.flatMap((result) => Object.entries(result.tables).flatMap(([name, own]) => {
      const at = own.columns.indexOf("concept");
      const rows = at < 0 ? [] : own.rows.filter((row) => row[at] === concept);
      return rows.length ? [el("h3", {}, `${GALLERY.resultTitle(result.kind)}: ${words(name)}`), table(index, own, rows)] : [];
    }));
    const named = GALLERY.featuresNamed(index, concept).slice(0, A_LIST);
    GALLERY.fill(main,
      el("nav.steps", {"aria-label": "Concepts"}, el("a", {href: "#concepts"}, "all concepts")),
      el("h2", {}, words(concept)),
      ...(parts.length ? parts : [el("p.empty", {}, "No result says anything about this concept.")]),
      ...(named.length ? [el("h3", {}, "Features that it labels best"), GALLERY.featureList(index, named, (area) => `AUROC ${area.toFixed(2)}`)] : []));
  };

  // Features among whose labels the concept is, with its AUROC, best first.
  GALLERY.featuresNamed = (index, concept) => index.labels
    .flatMap((own, f) => own.filter(([name]) => name === concept).map(([, area]) => [f, area]))
    .sort((a, b) => b[1] - a[1] || a[0] - b[0]);
})();

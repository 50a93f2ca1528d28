"use strict";
// Which view an address asks for: #feature=123, #study=17, #concept=edema, #concepts, #studies, #hierarchy, or the table.

(() => {
  const main = document.getElementById("main");
  let index = null;
  let turn = 0;

  GALLERY.fill = (parent, ...children) => parent.replaceChildren(...children.filter((child) => child !== null && child !== undefined && child !== false));

  async function route() {
    const own = ++turn;
    const found = /^#(feature|study)=(\d{1,9})$/.exec(location.hash);
    const view = document.createElement("div");
    GALLERY.status("");
    document.getElementById("viewer").close();
    try {
      if (found && found[1] === "feature") {
        const feature = Number(found[2]);
        if (feature < index.nFeatures) await GALLERY.showFeature(index, staged(view, own), feature);
        else GALLERY.fill(main, message(`There is no feature ${feature}; the SAE has ${GALLERY.count(index.nFeatures)}.`));
      } else if (found) await GALLERY.showStudy(index, staged(view, own), Number(found[2]));
      else if (location.hash.startsWith("#concept=")) GALLERY.showConcept(index, main, decodeURIComponent(location.hash.slice("#concept=".length)));
      else if (location.hash === "#concepts") GALLERY.showConcepts(index, main);
      else if (location.hash === "#studies") GALLERY.showStudies(index, main);
      else if (location.hash === "#hierarchy") await GALLERY.showHierarchy(index, staged(view, own));
      else GALLERY.showTable(index, main);
    } catch (error) {
      if (own === turn) GALLERY.fill(main, message(`This view cannot be shown: ${error.message}.`));
    }
    for (const link of document.querySelectorAll("header nav a")) {
      const here = link.getAttribute("href") === (location.hash || "#");
      if (here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  // A view that the user leaves while it loads does not replace the next one.
  function staged(view, own) {
    return {replaceChildren: (...children) => {
      if (own !== turn) return;
      main.replaceChildren(...children);
      window.scrollTo(0, 0);
      main.focus({preventScroll: true});
    }};
  }

  const message = (text) => GALLERY.el("p.empty", {}, text);

  function theme() {
    const button = document.getElementById("theme");
    const names = ["auto", "light", "dark"];
    let chosen = "auto";
    try { chosen = localStorage.getItem("theme") || "auto"; } catch { /* a browser may forbid it for files */ }
    const apply = () => {
      if (chosen === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = chosen;
      button.textContent = chosen[0].toUpperCase() + chosen.slice(1);
      button.setAttribute("aria-label", `Colors: ${chosen === "auto" ? "system default" : chosen}`);
    };
    button.addEventListener("click", () => {
      chosen = names[(names.indexOf(chosen) + 1) % names.length];
      try { localStorage.setItem("theme", chosen); } catch { /* kept for this page only */ }
      apply();
    });
    apply();
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("viewer").open) return;
    if (event.target.closest("input, select, textarea, .words, .body")) return;
    if (event.key === "/") {
      const search = document.getElementById("search");
      if (search) { event.preventDefault(); search.focus(); }
    }
    const rel = {ArrowLeft: "prev", ArrowRight: "next"}[event.key];
    const link = rel && main.querySelector(`nav.steps a[rel=${rel}]`);
    if (link) location.hash = link.getAttribute("href");
  }

  async function start() {
    theme();
    try {
      index = await GALLERY.load("index");
      index.serving = await GALLERY.load("serving");
      index.results = await GALLERY.load("results");
    } catch (error) {
      GALLERY.fill(main, message(`The gallery's data is missing: ${error.message}.`));
      return;
    }
    index.hasPage = new Set(index.pages);
    index.shown = new Set(index.studies);
    index.concepts = GALLERY.conceptsOf(index.results);
    index.figures = new Map(GALLERY.figures(index).map((own) => [own[0], own]));
    document.getElementById("concepts").hidden = !index.results.length;
    document.getElementById("title").textContent = index.title;
    for (const name of ["banner", "note"]) {
      const line = document.getElementById(name);
      line.textContent = index[name];
      line.hidden = !index[name];
    }
    window.addEventListener("hashchange", route);
    document.addEventListener("keydown", keys);
    document.querySelector("a.skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
    route();
  }

  start();
})();

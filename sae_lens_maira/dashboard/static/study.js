"use strict";
// One study: its images, its text, and the features that are active at the token under the pointer or the focus.

(() => {
  const {el, plain} = GALLERY;
  const A_PAGE = 60;

  const pairs = (flat) => Array.from({length: flat.length / 2}, (_, k) => [flat[2 * k], flat[2 * k + 1]]);

  function strongestFeatures(study) {
    const best = new Map();
    for (const flat of study.active)
      for (const [feature, value] of pairs(flat)) best.set(feature, Math.max(value, best.get(feature) || 0));
    return [...best].sort((a, b) => b[1] - a[1]).slice(0, 20);
  }

  function valueList(index, entries) {
    const list = GALLERY.featureList(index, entries.map(([f, value]) => [f, value / index.largest[f], value]), (_, value) => plain(value));
    return el("div", {}, list);
  }

  GALLERY.showStudy = async (index, main, studyIndex) => {
    if (!index.shown.has(studyIndex)) {
      GALLERY.fill(main, el("h2", {}, `Study ${studyIndex}`), el("p.empty", {}, "This study is not in the gallery."));
      return;
    }
    const study = await GALLERY.load(`studies/${studyIndex}`);
    const panel = el("aside.panel", {"aria-label": "Active features", "aria-live": "polite"});
    const overview = () => {
      panel.classList.remove("pointed");
      panel.replaceChildren(
        el("h3", {}, "Strongest features in this study"), el("p.hint", {}, "Point at a token, or move through the text with the arrow keys, to see what is active there."),
        valueList(index, strongestFeatures(study)));
    };
    const show = (place) => {
      const own = pairs(study.active[place]);
      panel.classList.add("pointed");
      panel.replaceChildren(el("h3", {}, "At \u201c", el("code", {}, study.tokens[place].trim() || "\u2423"), "\u201d"),
        own.length ? valueList(index, own) : el("p.empty", {}, "No feature is active here."),
        own.length ? el("p.hint", {}, `The ${own.length} strongest; bars are relative to each feature's largest activation.`) : null);
    };
    let chosen = null;
    const tokens = study.tokens.map((text, place) => {
      const token = el("button.token", {type: "button", tabindex: place ? -1 : 0, onmouseenter: () => show(place), onfocus: () => show(place), onclick: () => choose(place)}, text);
      return token;
    });
    function choose(place) {
      if (chosen !== null) tokens[chosen].classList.remove("chosen");
      chosen = place;
      tokens[place].classList.add("chosen");
      for (const token of tokens) token.tabIndex = -1;
      tokens[place].tabIndex = 0;
      show(place);
    }
    const text = GALLERY.sections(index, study, (place) => tokens[place]);
    text.addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 8, ArrowUp: -8}[event.key];
      const at = tokens.indexOf(document.activeElement);
      if (!step || at < 0) return;
      event.preventDefault();
      const next = Math.max(0, Math.min(tokens.length - 1, at + step));
      choose(next);
      tokens[next].focus();
    });
    text.addEventListener("mouseleave", () => (chosen === null ? overview() : show(chosen)));
    const labels = study.labels.map(([name, presence, change]) => name.replace(/_/g, " ") + (presence === "uncertain" ? "?" : "") + (change ? ` (${change})` : ""));
    const at = index.studies.indexOf(studyIndex);
    const step = (other, words) => (other === undefined ? el("span.off", {}, words) : el("a", {href: `#study=${other}`}, words));
    document.title = `Study ${study.id} \u2013 ${index.title}`;
    GALLERY.fill(main,
      el("nav.steps", {"aria-label": "Studies"}, step(index.studies[at - 1], "\u2190 previous"), el("a", {href: "#studies"}, "all studies"), step(index.studies[at + 1], "next \u2192")),
      el("h2", {}, `Study ${study.id}`, study.private ? el("span.tag", {}, "private") : null),
      GALLERY.facts([study.view && ["View", study.view], labels.length && ["Labels", labels.join(", ")]]),
      el("div.study.wide", {}, el("div", {}, GALLERY.images(studyIndex, study), text), panel));
    overview();
  };

  GALLERY.showStudies = (index, main) => {
    let shown = A_PAGE;
    const list = el("ul.studies", {});
    const more = el("button", {type: "button", onclick: () => { shown += A_PAGE; draw(); }}, "Show more");
    function draw() {
      list.replaceChildren(...index.studies.slice(0, shown).map((own) => el("li", {},
        el("a", {href: `#study=${own}`}, el("img", {src: `images/${own}-frontal.webp`, alt: "", loading: "lazy", width: 112, height: 112}), `Study ${own}`))));
      more.hidden = shown >= index.studies.length;
    }
    document.title = `Studies \u2013 ${index.title}`;
    GALLERY.fill(main, el("h2", {}, "Studies"),
      el("p", {}, index.studies.length ? `${GALLERY.count(index.studies.length)} studies are shown.` : "No study may be shown."), list, more);
    draw();
  };
})();

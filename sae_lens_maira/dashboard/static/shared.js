"use strict";
// Pieces that several views use: lists of features, a study's images, and its text in sections.

(() => {
  const {el, percent, plain} = GALLERY;
  const VIEWS = [["frontal", "frontal"], ["lateral", "lateral"], ["prior", "prior frontal"]];

  GALLERY.density = (index, feature) => index.nFiring[feature] / index.nTokens;

  GALLERY.groupName = (index, group) => {
    const start = group ? index.widths[group - 1] : 0;
    return `${group + 1} of ${index.widths.length} (features ${start} to ${index.widths[group] - 1})`;
  };

  // What a feature is about, in a few words.
  GALLERY.gist = (index, feature) => {
    if (index.meaning[feature]) return index.meaning[feature];
    if (!index.nFiring[feature]) return "never fires here";
    return index.tokens[feature].map((token) => token.trim() || "space").join(" \u00b7 ");
  };

  GALLERY.featureLink = (index, feature) =>
    el("a.feature", {href: `#feature=${feature}`}, el("b", {}, String(feature)), " ", GALLERY.gist(index, feature));

  // A list of features with a number each, also shown as a bar.
  GALLERY.featureList = (index, entries, describe) => {
    if (!entries.length) return el("p.empty", {}, "None.");
    return el("ol.features", {}, ...entries.map(([feature, share, ...rest]) => {
      const bar = el("span.bar", {"aria-hidden": "true"});
      bar.style.setProperty("--share", Math.max(0, Math.min(1, share)));
      return el("li", {}, GALLERY.featureLink(index, feature), el("span.value", {}, describe(share, ...rest)), bar);
    }));
  };

  GALLERY.images = (studyIndex, study) => {
    const present = VIEWS.filter(([view]) => study.images[view]);
    return el("div.images", {}, ...VIEWS.map(([view, name]) => {
      const size = study.images[view];
      const caption = el("figcaption", {}, size ? name : `no ${name}`);
      if (!size) return el("figure.missing", {}, el("div.nothing", {"aria-hidden": "true"}), caption);
      const address = `images/${studyIndex}-${view}.webp`;
      const image = el("img", {
        src: address, alt: `${name} image of study ${study.id}`, width: size[0], height: size[1], loading: "lazy",
      });
      const open = () => enlarge(studyIndex, study, present, present.findIndex(([own]) => own === view));
      return el("figure", {}, el("button.picture", {type: "button", onclick: open, title: "Enlarge"}, image), caption);
    }));
  };

  function enlarge(studyIndex, study, present, start) {
    const viewer = document.getElementById("viewer");
    let at = start;
    const show = () => {
      const [view, name] = present[at];
      viewer.replaceChildren(
        el("img", {src: `images/${studyIndex}-${view}.webp`, alt: `${name} image of study ${study.id}`}),
        el("p", {}, `${name} image of study ${study.id}`, present.length > 1 ? " \u2013 left and right arrows for the others" : ""),
        el("button", {type: "button", autofocus: true, onclick: () => viewer.close()}, "Close"),
      );
    };
    viewer.onkeydown = (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      at = (at + step + present.length) % present.length;
      show();
    };
    viewer.onclick = (event) => event.target === viewer && viewer.close();
    show();
    viewer.showModal();
  }

  // Tokens under their sections' names, in the order of the row. `token(place)` makes a token's element.
  GALLERY.sections = (index, study, token) => {
    const parts = [];
    study.tokens.forEach((_, place) => {
      const kind = index.kinds[study.kinds[place]];
      const name = kind.endsWith("image") ? "images" : kind;
      if (!parts.length || parts.at(-1).name !== name) parts.push({name, tokens: []});
      const element = token(place);
      const own = parts.at(-1).tokens, text = element.textContent, word = text.trimStart();
      // A word's leading space goes between the elements, so that no line and no section starts with a space.
      if (word && word !== text) {
        element.textContent = word;
        if (own.length) own.push(text.slice(0, text.length - word.length));
      }
      own.push(element);
    });
    if (!parts.some((part) => part.name === "findings")) parts.push({name: "findings", tokens: []});
    return el("div.report", {}, ...parts.map(({name, tokens}) => el("section", {},
      el("h4", {}, name),
      tokens.length ? el(name === "images" ? "p.words.pictures" : "p.words", {}, ...tokens) : el("p.empty", {}, "The report is empty."))));
  };

  // A token shaded by an activation: background, and a line below that grows with it.
  GALLERY.shade = (element, value, largest) => {
    if (!value) return element;
    element.classList.add("active");
    element.style.setProperty("--a", (value / largest).toFixed(3));
    element.title = plain(value);
    return element;
  };

  GALLERY.facts = (pairs) => el("dl.facts", {}, ...pairs.filter(Boolean).flatMap(([name, value]) =>
    [el("div", {}, el("dt", {}, name), el("dd", {}, value))]));

  GALLERY.labelText = ([name, area, n]) => `${name.replace(/_/g, " ")} (AUROC ${area.toFixed(2)}, ${n} studies)`;
  GALLERY.sharePercent = (share) => percent(share);
})();

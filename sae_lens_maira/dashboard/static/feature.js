"use strict";
// One feature: its activations and examples, the tokens that it promotes, and related features and labels.

(() => {
  const {el, svg, percent, count, plain, visible} = GALLERY;

  function histogram(index, feature, details) {
    if (!details.histogram.length) return el("p.empty", {}, "This feature never fires, so it has no histogram.");
    const width = 400, height = 110, base = 90;
    const bins = details.histogram, tallest = Math.max(...bins), step = width / bins.length;
    const largest = index.largest[feature];
    const bars = bins.map((n, k) => {
      const tall = n ? Math.max(1.5, (n / tallest) * (base - 8)) : 0;
      const bar = svg("rect", {x: k * step + 0.5, y: base - tall, width: step - 1, height: tall});
      const edge = (at) => plain((at * largest) / bins.length);
      bar.append(svg("title", {}, `${edge(k)} to ${edge(k + 1)}: ${count(n)} tokens`));
      return bar;
    });
    const text = (x, anchor, words) => {
      const own = svg("text", {x, y: height - 4, "text-anchor": anchor});
      own.textContent = words;
      return own;
    };
    return svg("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img", class: "histogram",
      "aria-label": `Histogram of activations from 0 to ${plain(largest)}; the tallest bar has ${count(tallest)} tokens`,
    }, ...bars, svg("line", {x1: 0, x2: width, y1: base, y2: base}),
    text(0, "start", "0"), text(width / 2, "middle", `activation (tallest bar: ${count(tallest)} tokens)`), text(width, "end", plain(largest)));
  }

  const logits = (title, entries) => el("div", {}, el("h3", {}, title), el("table.logits", {}, el("tbody", {}, ...entries.map(([token, value]) =>
    el("tr", {}, el("td", {}, el("code", {}, visible(token))), el("td", {}, (value > 0 ? "+" : "") + value.toFixed(3)))))));

  async function example(index, feature, [studyIndex, pairs], place) {
    const study = await GALLERY.load(`studies/${studyIndex}`);
    const values = new Map();
    for (let k = 0; k < pairs.length; k += 2) values.set(pairs[k], pairs[k + 1]);
    const largest = Math.max(...values.values());
    const strongest = [...values].find(([, value]) => value === largest)[0];
    const token = (at) => {
      const element = GALLERY.shade(el("span.token", {}, study.tokens[at]), values.get(at), index.largest[feature]);
      if (at === strongest) element.classList.add("strongest");
      return element;
    };
    return el("article.example", {},
      el("h3", {}, `${place + 1}. `, el("a", {href: `#study=${studyIndex}`}, `Study ${study.id}`),
        el("small", {}, ` strongest ${plain(largest)} at \u201c${study.tokens[strongest].trim() || "\u2423"}\u201d, fires at ${values.size} of ${study.tokens.length} tokens`)),
      el("div.study", {}, GALLERY.images(studyIndex, study), GALLERY.sections(index, study, token)));
  }

  function standardPage(index, feature) {
    const address = `pages/feature_${feature}.html`;
    const onDemand = index.serving && !index.hasPage.has(feature);
    if (!index.hasPage.has(feature) && !index.serving) {
      return el("p.empty", {}, "This feature has no sae-dashboard page yet; ",
        el("code", {}, "sae-lens-maira view"), " on this folder makes it when you open it.");
    }
    const frame = el("iframe", {title: `sae-dashboard's page of feature ${feature}`});
    const details = el("details", {ontoggle: () => { if (details.open && !frame.src) frame.src = address; }},
      el("summary", {}, onDemand ? "Show here (making it takes a while)" : "Show here"), frame);
    return el("div", {}, el("p", {}, el("a.standard", {href: address, target: "_blank", rel: "noopener"}, "Open sae-dashboard's page")), details);
  }

  function navigation(index, feature) {
    const listed = GALLERY.listed(index);
    const at = listed.indexOf(feature);
    const link = (other, text, rel) => (other === undefined ? el("span.off", {}, text) : el("a", {href: `#feature=${other}`, rel}, text));
    const copy = el("button", {type: "button", onclick: async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        GALLERY.status("The link was copied.");
      } catch { GALLERY.status(location.href); }
    }}, "Copy link");
    return el("nav.steps", {"aria-label": "Features"},
      link(at > 0 ? listed[at - 1] : undefined, "\u2190 previous", "prev"), el("a", {href: "#"}, "all features"),
      link(at >= 0 ? listed[at + 1] : undefined, "next \u2192", "next"), copy);
  }

  GALLERY.showFeature = async (index, main, feature) => {
    const part = Math.floor(feature / index.featuresPerFile);
    const details = (await GALLERY.load(`features/${part}`))[feature % index.featuresPerFile];
    const n = index.nFiring[feature], density = GALLERY.density(index, feature);
    const total = details.byKind.reduce((sum, [, own]) => sum + own, 0);
    const kinds = details.byKind.sort((a, b) => b[1] - a[1]).map(([kind, own]) => `${index.kinds[kind]} ${percent(own / total)}`);
    const examples = el("div", {}, details.examples.length ? el("p", {}, "Loading \u2026") :
      el("p.empty", {}, n ? "It fires in no study that may be shown." : "It fires in none of the studies."));
    const always = density === 1 ? " (every token)" : "";
    document.title = `Feature ${feature} \u2013 ${index.title}`;
    GALLERY.fill(main,
      navigation(index, feature),
      el("h2", {}, `Feature ${feature}`, n ? null : el("span.tag", {}, "dead"), density === 1 ? el("span.tag", {}, "always on") : null),
      index.meaning[feature] ? el("p.meaning", {}, index.meaning[feature],
        index.score[feature] === null ? null : el("small", {}, ` score ${index.score[feature].toFixed(2)}`)) : null,
      GALLERY.facts([
        index.widths.length > 1 && ["Matryoshka group", GALLERY.groupName(index, index.group[feature])],
        ["Density", n ? `${percent(density)}${always}: ${count(n)} of ${count(index.nTokens)} tokens` : "never fires here"],
        n && ["Strongest", plain(index.largest[feature])],
        n && ["Mean where it fires", plain(details.mean)],
        n && ["Fires on", kinds.join(", ")],
        index.tokens[feature].length && ["Top tokens", el("span", {}, ...index.tokens[feature].flatMap((t) => [el("code", {}, visible(t)), " "]))],
        index.labels[feature].length && ["Best labels", index.labels[feature].map(GALLERY.labelText).join("; ")],
      ]),
      el("div.cards", {}, ...GALLERY.resultCards(index, feature)),
      el("div.columns", {},
        el("section", {}, el("h3", {}, "Activations"), histogram(index, feature, details)),
        el("section.pair", {}, logits("Promoted tokens", details.promoted), logits("Suppressed tokens", details.suppressed))),
      el("section", {}, el("h2", {}, "Strongest examples"), examples),
      el("section", {}, el("h2", {}, "Neighbors"), el("div.columns", {},
        el("div", {}, el("h3", {}, "By cosine of decoder rows"), GALLERY.featureList(index, details.cosine, (value) => value.toFixed(3))),
        el("div", {}, el("h3", {}, "By co-activation (tokens of both / tokens of either)"),
          GALLERY.featureList(index, details.together, (value, shared) => `${percent(value)}, ${count(shared)} tokens`)))),
      index.widths.length > 1 && el("section", {}, el("h2", {}, "Hierarchy"), el("div.columns", {},
        el("div", {}, el("h3", {}, "Finer features that fire inside it"), GALLERY.featureList(index, details.inside, (share) => `${percent(share)} of its tokens`)),
        el("div", {}, el("h3", {}, "Coarser features that it fires inside"), GALLERY.featureList(index, details.around, (share) => `${percent(share)} of its tokens`)))),
      el("section", {}, el("h2", {}, "sae-dashboard"), standardPage(index, feature)));
    if (details.examples.length) {
      const made = await Promise.all(details.examples.map((own, place) => example(index, feature, own, place)));
      examples.replaceChildren(el("p.legend", {}, "Shade and underline grow with the activation, up to the feature's largest in all studies; the strongest token is framed."), ...made);
    }
  };
})();

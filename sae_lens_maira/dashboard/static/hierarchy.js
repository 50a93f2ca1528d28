"use strict";
// Coarse features, and the finer ones that fire almost only on the same tokens.

(() => {
  const {el, percent, count} = GALLERY;
  const A_PAGE = 100;
  let group = 0;

  GALLERY.showHierarchy = async (index, main) => {
    document.title = `Hierarchy \u2013 ${index.title}`;
    if (index.widths.length === 1) {
      GALLERY.fill(main, el("h2", {}, "Hierarchy"), el("p.empty", {}, "This SAE has no Matryoshka groups."));
      return;
    }
    const inside = new Map(await GALLERY.load("hierarchy"));
    let shown = A_PAGE;
    const list = el("div.tree", {});
    const result = el("p", {role: "status"});
    const more = el("button", {type: "button", onclick: () => { shown += A_PAGE; draw(); }}, "Show more");

    function node(feature, share, path) {
      const finer = (inside.get(feature) || []).filter(([own]) => !path.includes(own));
      const words = el("span.value", {}, share === null ? `${percent(GALLERY.density(index, feature))} of tokens` : `${percent(share)} of its tokens`);
      if (!finer.length) return el("div.leaf", {}, GALLERY.featureLink(index, feature), words);
      const body = el("div.inner", {});
      const details = el("details", {ontoggle: () => {
        if (details.open && !body.childElementCount) body.append(...finer.map(([own, part]) => node(own, part, [...path, feature])));
      }}, el("summary", {}, GALLERY.featureLink(index, feature), words, el("span.tag", {}, `${finer.length} inside`)), body);
      return details;
    }

    function draw() {
      const own = [...inside.keys()].filter((feature) => index.group[feature] === group)
        .sort((a, b) => inside.get(b).length - inside.get(a).length || index.nFiring[b] - index.nFiring[a] || a - b);
      result.textContent = own.length ? `${count(own.length)} features of this group have finer ones inside them.` : "No feature of this group has finer ones inside it.";
      list.replaceChildren(...own.slice(0, shown).map((feature) => node(feature, null, [])));
      more.hidden = shown >= own.length;
    }

    const box = el("select", {id: "group", onchange: (event) => { group = Number(event.target.value); shown = A_PAGE; draw(); }},
      ...index.widths.slice(0, -1).map((_, g) => el("option", {value: g, selected: g === group}, GALLERY.groupName(index, g))));
    GALLERY.fill(main, el("h2", {}, "Hierarchy"),
      el("p", {}, "A finer feature is inside a coarser one if the coarser one fires on at least 80% of its tokens, and at least twice as often as on all tokens."),
      el("label", {for: "group"}, "Group ", box), result, list, more);
    draw();
  };
})();

"use strict";
// Data files call GALLERY.put; a page opened from disk may load scripts but not fetch files.
// Text only ever becomes text: elements are made with GALLERY.el, nothing is parsed as HTML.

const GALLERY = (() => {
  const KEPT = 400;
  const values = new Map();
  const waiting = new Map();

  function put(name, value) {
    values.set(name, value);
    const own = waiting.get(name);
    waiting.delete(name);
    if (own) own.resolve(value);
    if (values.size > KEPT) {
      const oldest = [...values.keys()].find((key) => key.startsWith("studies/"));
      if (oldest !== undefined && oldest !== name) values.delete(oldest);
    }
  }

  // Load `data/NAME.js` once; rejects if there is no such file.
  function load(name) {
    if (values.has(name)) return Promise.resolve(values.get(name));
    if (waiting.has(name)) return waiting.get(name).promise;
    const own = {};
    own.promise = new Promise((resolve, reject) => {
      own.resolve = resolve;
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        waiting.delete(name);
        script.remove();
        reject(new Error(`data/${name}.js cannot be loaded`));
      };
      document.head.append(script);
    });
    waiting.set(name, own);
    return own.promise;
  }

  // el("a.name", {href: "#"}, "text", child, ...): attributes that are null or false are left out.
  function el(kind, attributes, ...children) {
    const [tag, ...classes] = kind.split(".");
    const element = document.createElement(tag);
    if (classes.length) element.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  function svg(tag, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, String(value));
    element.append(...children);
    return element;
  }

  function percent(share) {
    if (share === 0) return "0%";
    if (share === 1) return "100%";
    const value = share * 100;
    return `${value < 0.001 ? value.toExponential(1) : Number(value.toPrecision(3))}%`;
  }

  const count = (value) => value.toLocaleString("en");
  const plain = (value) => String(Number(Number(value).toPrecision(4)));
  const visible = (text) => text.replace(/ /g, "\u2423");

  function status(text) {
    document.getElementById("status").textContent = text;
  }

  return {put, load, el, svg, percent, count, plain, visible, status};
})();

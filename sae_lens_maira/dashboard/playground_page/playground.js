"use strict";
// Reports are text of a model: they are shown as text, never as HTML.

const form = document.getElementById("form");
const message = document.getElementById("message");

function sentences(text) {
  return text.split(/(?<=\.)\s+/).filter((sentence) => sentence);
}

function show(id, own, other) {
  const place = document.getElementById(id);
  place.replaceChildren();
  for (const sentence of own) {
    const part = document.createElement("span");
    part.textContent = sentence + " ";
    if (!other.includes(sentence)) part.className = "only";
    place.append(part);
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  message.textContent = "Writing; the first report loads the model.";
  try {
    const answer = await fetch("playground/steer?" + new URLSearchParams(new FormData(form)));
    const found = await answer.json();
    if (found.error) {
      message.textContent = found.error;
      return;
    }
    const before = sentences(found.before), after = sentences(found.after);
    show("before", before, after);
    show("after", after, before);
    message.textContent = found.ending === "end" ? "" : `The report was stopped: ${found.ending}.`;
  } catch (error) {
    message.textContent = "The server did not answer.";
  }
});

const wanted = new URLSearchParams(location.search);
for (const name of ["study", "feature", "dose"]) {
  if (wanted.has(name)) form.elements[name].value = wanted.get(name);
}

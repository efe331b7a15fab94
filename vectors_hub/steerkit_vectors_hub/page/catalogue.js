"use strict";
const form = document.querySelector("form");
const packs = [...document.querySelectorAll("article")];
const count = document.getElementById("count");
function show() {
  const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const metric = form.metric.value;
  let shown = 0;
  for (const pack of packs) {
    const text = pack.textContent.toLowerCase();
    pack.hidden = !(words.every((word) => text.includes(word))
      && (!form.model.value || pack.dataset.model === form.model.value)
      && (!form.method.value || pack.dataset.method === form.method.value)
      && (!metric || JSON.parse(pack.dataset.metrics).includes(metric)));
    shown += pack.hidden ? 0 : 1;
  }
  count.textContent = shown + " of " + packs.length + (packs.length === 1 ? " pack" : " packs");
}
form.addEventListener("input", show);
form.addEventListener("reset", () => setTimeout(show));
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
show();

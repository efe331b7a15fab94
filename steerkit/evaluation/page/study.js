const form = document.querySelector("form"), count = document.querySelector("#count");
const answers = [...document.querySelectorAll("#list details")];
function filter() {
  const wanted = [...new FormData(form)].filter(([, value]) => value);
  let shown = 0;
  for (const each of answers) {
    each.hidden = !wanted.every(([name, value]) => each.dataset[name] === value);
    shown += !each.hidden;
  }
  count.textContent = `${shown} of ${answers.length} answers. Requests that should be refused, and the answers to them, are folded.`;
}
form.hidden = false;
form.addEventListener("change", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", (event) => event.preventDefault());

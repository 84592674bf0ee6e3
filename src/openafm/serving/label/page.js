const $ = id => document.getElementById(id);
const STRENGTHS = ["significantly", "clearly", "slightly", "negligibly"];
let state = null;     // what the server said last
let given = [];         // the answer to each question: 0 is the preference, then two grades a dimension
let at = 0;             // the question that a digit answers
let busy = false;

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
const letter = side => "AB"[side];

/* ---- the server ---- */
async function ask(path, body) {
  if (busy) return;
  busy = true;
  try {
    const options = body && {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
    const response = await fetch(path, options);
    const told = await response.json();
    if (!response.ok) throw new Error(told.error.message);
    $("told").hidden = true;
    show(told);
  } catch (error) {
    given.length = Math.min(given.length, at);   // what could not be saved is asked again
    $("told").textContent = "Not saved: " + (error instanceof TypeError ? "the server does not answer. Is it still running?" : error.message);
    $("told").hidden = false;
    draw();
  } finally {
    busy = false;
  }
}

/* ---- the page ---- */
function show(told) {
  state = told;
  given = [];
  at = 0;
  const done = state.labelled + state.skipped, pair = state.pair;
  $("count").textContent = (pair ? done + 1 : done) + " of " + state.total + " · " + state.labeller;
  $("bar").max = state.total;
  $("bar").value = done;
  $("undo").disabled = !state.undoable;
  $("skip").disabled = !pair;
  $("over").hidden = !!pair;
  for (const id of ["turns", "answers", "better", "grades", "hint"]) $(id).hidden = !pair;
  if (!pair) {
    $("end").textContent = "All pairs are done";
    $("rest").textContent = state.labelled + " labelled, " + state.skipped + " skipped. All is saved; the window can be closed.";
    $("status").textContent = $("end").textContent;
    return;
  }
  $("turns").replaceChildren(...pair.messages.map(turn));
  $("answers").replaceChildren(...pair.answers.map((text, side) => {
    const card = element("article", "answer");
    card.append(element("p", "who", "Answer " + letter(side)));
    card.append(text.trim() ? element("p", "text", text) : element("p", "text empty", "(an empty answer)"));
    return card;
  }));
  build();
  draw();
  scrollTo(0, 0);
}
function turn(message) {
  const card = element("div", message.role === "user" ? "turn" : "turn said");
  if (message.role !== "user" || state.pair.messages.length > 1) card.append(element("p", "who", message.role));
  card.append(element("p", "text", message.content));
  return card;
}
function radio(question, value, key, name, label) {
  const button = element("button", "");
  button.type = "button";
  button.setAttribute("role", "radio");
  button.setAttribute("aria-label", label);
  button.append(element("b", "", key), element("small", "", name));
  button.addEventListener("click", () => { at = question; answer(value); });
  return button;
}
function build() {
  const sides = [0, 1].map(side => {
    const group = element("div", "choices");
    for (let i = 0; i < 4; i++) {
      const value = 4 * side + i, name = STRENGTHS[side ? 3 - i : i];
      group.append(radio(0, value, value + 1, name, "Answer " + letter(side) + " is " + name + " better"));
    }
    return group;
  });
  $("better").replaceChildren(element("p", "", "← A is better"), element("p", "", "B is better →"), ...sides);
  $("grades").replaceChildren(...state.dimensions.map((dimension, d) => {
    const row = element("section", "dimension");
    row.append(element("h2", "", dimension.name));
    for (const side of [0, 1]) {
      const group = element("div", "choices"), question = 1 + 2 * d + side;
      group.setAttribute("role", "radiogroup");
      group.setAttribute("aria-label", dimension.name + " of answer " + letter(side));
      group.append(element("span", "letter", letter(side)));
      dimension.grades.forEach((name, value) => group.append(radio(question, value, value + 1, name, name)));
      row.append(group);
    }
    return row;
  }));
}
const groups = () => [$("better"), ...$("grades").querySelectorAll("[role=radiogroup]")];
function draw() {
  if (!state?.pair) return;
  groups().forEach((group, question) => {
    group.classList.toggle("now", question === at);
    group.querySelectorAll("[role=radio]").forEach((button, value) =>
      button.setAttribute("aria-checked", String(given[question] === value)));
  });
  const group = groups()[at];
  if (group.getBoundingClientRect().bottom > innerHeight) group.scrollIntoView({block: "center"});
  const names = [...group.querySelectorAll("[role=radio]")].map((b, i) => i + 1 + " " + b.getAttribute("aria-label"));
  $("status").textContent = group.getAttribute("aria-label") + ": " + names.join(", ");
}
function answer(value) {
  if (busy) return;
  given[at] = value;
  const questions = groups().length, open = [...Array(questions).keys()].filter(i => given[i] === undefined);
  if (open.length) {
    at = open.find(i => i > at) ?? open[0];
    draw();
  } else {
    draw();
    const grades = [0, 1].map(side => state.dimensions.map((_, d) => given[1 + 2 * d + side]));
    ask("label", {id: state.pair.id, choice: given[0], grades});
  }
}
function back() {
  if (busy || !state) return;
  const set = [...given.keys()].filter(i => given[i] !== undefined);
  if (!set.length) { if (state.undoable) ask("undo", {}); return; }
  at = Math.max(...set);
  given[at] = undefined;
  draw();
}
const skip = () => state?.pair && ask("skip", {id: state.pair.id});
$("undo").addEventListener("click", back);
$("skip").addEventListener("click", skip);
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const move = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
  if (event.key === "Backspace") back();
  else if (event.key === "s" || event.key === "S") skip();
  else if (!state?.pair || busy) return;
  else if (move) { at = Math.min(groups().length - 1, Math.max(0, at + move)); draw(); }
  else if (/^[1-8]$/.test(event.key) && event.key <= (at ? 3 : 8)) answer(event.key - 1);
  else return;
  event.preventDefault();
});
ask("state");

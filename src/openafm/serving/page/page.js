// The page of `openafm serve`: chat, compare and mail over one composer, one choice of model and one set of settings.

import {Answer, element, how, milliseconds, said} from "./article.js";
import {chats, drop, dropAll, keep, title} from "./history.js";
import {SAMPLES} from "./mails.js";
import * as server from "./server.js";

const $ = id => document.getElementById(id);
const models = new Map(), swaps = new Map();
let chat = {id: crypto.randomUUID?.() || String(Math.random()), turns: []};
let view = "chat";
let running = null;   // the AbortController of what is being made

/* ---- settings, kept in this browser ---- */
const SAMPLING = ["top_p", "top_k", "min_p", "repetition_penalty", "seed"];
const kept = ["temperature", "longest", "system", "model", ...SAMPLING];
function remember() {
  try { localStorage.setItem("openafm", JSON.stringify(Object.fromEntries(kept.map(id => [id, $(id).value])))); } catch {}
}
function recall() {
  try {
    const values = JSON.parse(localStorage.getItem("openafm")) || {};
    for (const id of kept) if (id !== "model" && typeof values[id] === "string") $(id).value = values[id];
    return values.model;
  } catch {}
}
function warmth() {
  const value = Number($("temperature").value);
  $("warmth").textContent = value === 0 ? "0, always the likeliest" : value.toFixed(1);
}
function choices() {
  const told = SAMPLING.filter(id => $(id).value !== "" && !$(id).disabled).map(id => [id, Number($(id).value)]);
  return {temperature: Number($("temperature").value), max_tokens: Number($("longest").value), ...Object.fromEntries(told)};
}
function messages(turns) {
  const system = $("system").value.trim();
  return [...(system ? [{role: "system", content: system}] : []), ...turns.map(({role, content}) => ({role, content}))];
}

/* ---- models ---- */
function megabytes(bytes) { return (bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0) + " MB"; }
function options(list) {
  return list.map(model => {
    const size = model.bytes ? " · " + megabytes(model.bytes) : "";
    const option = element("option", "", (model.adapter || model.id) + size);   // all have the same base
    option.value = model.id;
    return option;
  });
}
async function loadModels() {
  try {
    const list = await server.models(), wanted = $("model").value || recall();
    models.clear();
    for (const model of list) models.set(model.id, model);
    $("model").replaceChildren(...options(list));
    if (models.has(wanted)) $("model").value = wanted;
    offerRivals(list);
    greet();
    showMemory();
  } catch (error) {
    greeting("No model", error.message);
    if (error.status !== 401) return;
    $("locked").hidden = false;
    $("settings").open = true;
    $("key").focus();
    greeting("This server asks for a key", "Type its API key under Settings.");
  }
}
function greeting(head, about) {
  $("greeting").textContent = head;
  $("about").textContent = about;
}
function greet() {
  const model = chosen(), length = model.max_length.toLocaleString("en");
  if (model.chat) greeting("Talk to " + model.id, "It remembers this conversation, up to " + length + " tokens, and nothing after it.");
  else greeting("Give " + model.id + " a beginning", "It has not learned to chat yet: it continues the text you give it.");
  $("say").placeholder = model.chat ? "Write a message" : "Begin a text";
  $("reader").textContent = model.id;
  $("longest").max = model.max_length;
  for (const id of SAMPLING) $(id).disabled = id !== "seed" && !model.options.includes(id);
  $("torch").hidden = model.options.includes("top_p");
  showAdapter();
}
function chosen() { return models.get($("model").value); }

/* ---- figures ---- */
function showAdapter() {
  const model = chosen(), swap = swaps.get(model.id);
  const place = model.in_memory ? ", in memory" : ", on disk";
  $("size").textContent = model.adapter ? (model.bytes ? megabytes(model.bytes) + place : model.adapter) : "none";
  $("swap").textContent = !model.adapter ? "–" : swap === undefined ? "not measured yet" : milliseconds(swap);
}
async function showMemory() {
  try { $("memory").textContent = megabytes(await server.memory()); } catch { $("memory").textContent = "–"; }
}
const counts = new Map();   // tokens of the answers being made, since `counting` began
let counting = 0;
function showSpeed(answer, tokens) {
  if (!counts.size) counting = performance.now();
  counts.set(answer, tokens);
  const seconds = (performance.now() - counting) / 1000, sum = [...counts.values()].reduce((a, b) => a + b, 0);
  if (seconds > 0.2) $("speed").textContent = ((sum - counts.size) / seconds).toFixed(1) + " tokens/s";
}
let ticks = 0;
setInterval(() => {
  if (models.size && document.visibilityState === "visible" && (running || ++ticks % 5 === 0)) showMemory();
}, 1000);

/* ---- answers ---- */
/** Ask one model, with its answer at the end of `place`; returns it, or null where it failed. */
async function ask(place, model, turns) {
  const answer = new Answer(place, model.id, model.chat);
  try {
    const made = await server.answer(model, messages(turns), choices(), running.signal, (text, tokens) => {
      answer.grow(text);
      showSpeed(answer, tokens);
    });
    if (made.swap !== null && model.adapter) swaps.set(model.id, made.swap);
    answer.end([how(made), model.adapter && made.swap !== null ? "adapter ready in " + milliseconds(made.swap) : ""].filter(Boolean).join(" · "));
    return made;
  } catch (error) {
    answer.fail(error.message);
    $("status").textContent = error.message;
    if (error.status === 401) loadModels();
    return null;
  }
}
/** Let `work` run as what Escape and the button stop. */
async function making(work) {
  working(new AbortController());
  counts.clear();
  const made = await work();
  working(null);
  const list = await server.models().catch(() => []);   // what is in memory has changed
  for (const model of list) if (models.has(model.id)) models.set(model.id, model);
  if (models.size) showAdapter();
  showMemory();
  return made;
}
function working(controller) {
  running = controller;
  $("send").classList.toggle("stops", !!running);
  $("send").setAttribute("aria-label", running ? "Stop" : "Send");
  $("status").textContent = running ? "Answering" : "Answer finished";
  for (const id of ["sum", "subject"]) $(id).disabled = !!running;
  fit();
}

/* ---- chat ---- */
async function converse(text) {
  const talk = chat, model = chosen(), turns = [...talk.turns, {role: "user", content: text}];   // a new chat meanwhile has its own
  $("welcome").hidden = true;
  said($("talk"), text);
  const made = await making(() => ask($("talk"), model, turns));
  if (!made) {
    if (!$("say").value) { $("say").value = text; fit(); }   // to try again
    return;
  }
  talk.turns = [...turns, {role: "assistant", content: made.text, model: model.id}];
  keep(talk.id, talk.turns);
  listPast();
}
function open(next) {
  running?.abort();
  chat = next;
  $("talk").replaceChildren();
  $("welcome").hidden = chat.turns.length > 0;
  for (const turn of chat.turns) {
    if (turn.role === "user") { said($("talk"), turn.content); continue; }
    const answer = new Answer($("talk"), turn.model || "", models.get(turn.model)?.chat ?? true);
    answer.grow(turn.content);
    answer.end("");
  }
  look("chat");
  $("say").focus();
}
function anew() { open({id: crypto.randomUUID?.() || String(Math.random()), turns: []}); }

/* ---- history ---- */
function listPast() {
  const past = chats();
  $("nothing").hidden = past.length > 0;
  $("forget").hidden = !past.length;
  $("past").replaceChildren(...past.map(one => {
    const row = element("li", ""), again = element("button", "past", title(one)), gone = element("button", "gone", "×");
    again.type = gone.type = "button";
    gone.setAttribute("aria-label", "Delete chat: " + title(one));
    if (one.id === chat.id) again.setAttribute("aria-current", "true");
    again.addEventListener("click", () => { $("history").open = false; open(one); listPast(); });
    gone.addEventListener("click", event => { event.stopPropagation(); drop(one.id); listPast(); $("history").querySelector("summary").focus(); });
    row.append(again, gone);
    return row;
  }));
}

/* ---- compare ---- */
const rivals = [...document.querySelectorAll("#rivals select")];
function offerRivals(list) {
  const plain = list.filter(model => !model.adapter), few = list.length < 2;
  const usual = [...plain, ...list.filter(model => model.adapter)].slice(0, 3);   // without an adapter, then recovered
  $("rivals").hidden = few;
  $("contest").textContent = few
    ? "This server has one model only. Serve a package with adapters, or start it with --adapters FOLDER, to compare."
    : "The same message to two or three models, at once. Each answers it alone, without what was said before.";
  rivals.forEach((select, index) => {
    const before = select.value, none = element("option", "", "No third model");
    none.value = "";
    select.replaceChildren(...options(list), ...(index === 2 ? [none] : []));
    select.value = models.has(before) ? before : usual[index]?.id || "";
  });
}
async function compare(text) {
  const asked = [...new Set(rivals.map(select => select.value).filter(id => models.has(id)))].map(id => models.get(id));
  if (models.size < 2) return;
  $("unmatched").hidden = true;
  said($("rounds"), text);
  const round = element("div", "round");
  $("rounds").append(round);
  await making(() => Promise.all(asked.map(model => ask(round, model, [{role: "user", content: text}]))));
}

/* ---- mail ---- */
let sample = 0;
$("letter").value = SAMPLES[0];
async function read(wanted) {
  const mail = $("letter").value.trim();
  if (!mail || !models.size || running) return;
  $("gist").replaceChildren();
  const asked = chosen().chat ? `${wanted}: ${mail}` : `${mail}\n\n${wanted}:`;
  await making(() => ask($("gist"), chosen(), [{role: "user", content: asked}]));
}
$("sum").addEventListener("click", () => read("Sum up"));
$("subject").addEventListener("click", () => read("Subject line for"));
$("sample").addEventListener("click", () => { $("letter").value = SAMPLES[sample = (sample + 1) % SAMPLES.length]; });

/* ---- views and the composer ---- */
function look(name) {
  view = name;
  for (const button of document.querySelectorAll("nav button")) {
    button.toggleAttribute("aria-current", button.dataset.view === name);
    if (button.dataset.view === name) button.setAttribute("aria-current", "page");
  }
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  $("composer").hidden = name === "mail";
  $("main").scrollTop = name === "mail" ? 0 : $("main").scrollHeight;
  fit();
}
function fit() {
  const say = $("say");
  if (!CSS.supports("field-sizing", "content")) {
    say.style.height = "auto";
    say.style.height = say.scrollHeight + "px";
  }
  $("send").disabled = !running && (!say.value.trim() || (view === "compare" && models.size < 2));
}
for (const button of document.querySelectorAll("nav button")) {
  button.addEventListener("click", () => look(button.dataset.view));
}
$("composer").addEventListener("submit", event => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("say").value.trim();
  if (!text || !models.size || (view === "compare" && models.size < 2)) return;
  $("say").value = "";
  fit();
  if (view === "compare") compare(text); else converse(text);
  $("say").focus();
});
$("say").addEventListener("input", fit);
$("say").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) $("composer").requestSubmit();
});
$("anew").addEventListener("click", () => { anew(); listPast(); });
$("forget").addEventListener("click", () => { dropAll(); listPast(); $("history").open = false; $("say").focus(); });
const panels = [$("history"), $("settings")];
document.addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  const shown = panels.find(panel => panel.open);
  if (shown) { shown.open = false; shown.querySelector("summary").focus(); } else running?.abort();
});
document.addEventListener("click", event => {
  for (const panel of panels) if (!panel.contains(event.target)) panel.open = false;
});
$("choices").addEventListener("submit", event => {
  event.preventDefault();
  $("settings").open = false;
});
for (const id of kept) $(id).addEventListener("change", remember);
$("temperature").addEventListener("input", warmth);
$("model").addEventListener("change", greet);
$("key").addEventListener("change", () => {
  server.keepKey($("key").value.trim());
  loadModels().then(() => { if (models.size) { $("settings").open = false; $("say").focus(); } });
});
recall();
warmth();
fit();
listPast();
loadModels();

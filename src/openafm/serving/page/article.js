// What is said, on the page: the user's words as they are, a model's answer while it grows.

import {show as markdown} from "./markdown.js";

export function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Change the view, and stay at its end if it was there. */
function follow(change) {
  const view = document.getElementById("main");
  const near = view.scrollHeight - view.scrollTop - view.clientHeight < 80;
  change();
  if (near) view.scrollTop = view.scrollHeight;
}

/** Show the user's words at the end of `place`. */
export function said(place, text) {
  const mine = element("article", "mine");
  mine.setAttribute("aria-label", "You");
  mine.append(element("p", "text", text));
  place.append(mine);
  mine.scrollIntoView({block: "end"});
}

/** A model's answer at the end of `place`; of one that only continues text, it is shown as it is. */
export class Answer {
  constructor(place, model, chat) {
    this.article = element("article", "answer working");
    this.words = element(chat ? "div" : "p", "text");
    this.chat = chat;
    this.due = 0;
    this.article.setAttribute("aria-label", model);
    this.article.setAttribute("aria-busy", "true");   // a screen reader hears it whole, not word by word
    this.article.append(element("p", "who", model), this.words);
    place.append(this.article);
    this.article.scrollIntoView({block: "end"});
  }

  /** Show the text so far, at most once a frame. */
  grow(text) {
    this.text = text;
    this.due ||= requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.due);
    this.due = 0;
    if (this.text === undefined) return;
    follow(() => { if (this.chat) markdown(this.words, this.text); else this.words.textContent = this.text; });
  }

  /** It is whole: `how` says how it was made. */
  end(how) { this.close(element("p", "how", how)); }

  fail(message) { this.close(element("p", "wrong", message)); }

  close(note) {
    this.paint();
    this.article.classList.remove("working");
    follow(() => this.article.append(note));
    this.article.removeAttribute("aria-busy");
  }
}

export function milliseconds(ms) {
  return ms < 0.1 ? "under 0.1 ms" : ms < 1000 ? ms.toPrecision(2) * 1 + " ms" : (ms / 1000).toFixed(1) + " s";
}

/** How an answer was made, in a line. */
export function how({text, finish, tokens, rate}) {
  const notes = text ? [] : ["empty answer"];
  if (finish === "stopped") notes.push("stopped");
  if (finish === "length") notes.push("cut at the longest answer or the time limit");
  if (tokens) notes.push(tokens + (tokens === 1 ? " token" : " tokens"));
  if (rate) notes.push(rate.toFixed(1) + " a second");
  return notes.join(" · ");
}

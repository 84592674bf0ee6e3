// Markdown as chat models write it, to elements. Text only ever becomes text nodes, so nothing in it is obeyed; links
// lead to http, https and mail only, and images are links. Time is linear in the text, whatever it is.

const DEEPEST = 8, LONGEST = 20000;   // nesting, and characters of one paragraph, beyond which text stays as it is
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)/, HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])( +|$)/, QUOTE = /^ {0,3}> ?/, RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

/** Show `text` in `place`, leaving the blocks that have not changed since the last call as they are. */
export function show(place, text) {
  const found = blocks(text.split("\n"), 0);
  const before = place.sources || [];
  let same = 0;
  while (same < found.length - 1 && found[same].source === before[same]) same++;
  while (place.childNodes.length > same) place.lastChild.remove();
  place.append(...found.slice(same).map(block => block.make()));
  place.sources = found.map(block => block.source);
}

/** The blocks of some lines, each with its source and a function that makes its element. */
function blocks(lines, depth) {
  const found = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) { at++; continue; }
    const [end, make] = depth < DEEPEST ? block(lines, at, depth) : [lines.length, paragraph(lines.slice(at))];
    found.push({source: lines.slice(at, end).join("\n"), make});
    at = end;
  }
  return found;
}

function block(lines, at, depth) {
  const line = lines[at];
  return (FENCE.test(line) && fence(lines, at))
    || (HEADING.test(line) && [at + 1, heading(line)])
    || (RULE.test(line) && [at + 1, () => element("hr")])
    || (QUOTE.test(line) && quote(lines, at, depth))
    || (ITEM.test(line) && list(lines, at, depth))
    || (isTable(lines, at) && table(lines, at))
    || text(lines, at);
}

function fence(lines, at) {
  const [, mark, language] = FENCE.exec(lines[at]);
  let end = at + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(mark) && !lines[end].trim().replaceAll(mark[0], ""))) end++;
  const code = lines.slice(at + 1, end).join("\n");
  return [Math.min(end + 1, lines.length), () => codeBlock(code, language)];
}

function codeBlock(code, language) {
  const made = element("figure"), pre = element("pre", element("code", code)), bar = element("figcaption", language || "code");
  pre.tabIndex = 0;   // it may scroll sideways
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", (language || "") + " code");
  if (navigator.clipboard) {
    const copy = element("button", "Copy");
    copy.type = "button";
    copy.addEventListener("click", () => navigator.clipboard.writeText(code).then(
      () => { copy.textContent = "Copied"; }, () => { copy.textContent = "Not allowed"; }));
    bar.append(copy);
  }
  made.append(bar, pre);
  return made;
}

function heading(line) {
  const [, marks, said] = HEADING.exec(line);
  return () => element(["h3", "h3", "h4", "h5"][marks.length - 1] || "h5", inline(said.trim(), 0));   // h1 and h2 are the page's
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map(line => line.replace(QUOTE, ""));
  return [end, () => element("blockquote", ...blocks(inner, depth + 1).map(block => block.make()))];
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]), ordered = /\d/.test(mark), items = [];
  let end = at;
  for (; end < lines.length; end++) {
    const next = ITEM.exec(lines[end]);
    if (next && next[1].length <= indent.length + 1 && /\d/.test(next[2]) === ordered && !RULE.test(lines[end])) {
      items.push({width: next[0].length, lines: [lines[end].slice(next[0].length)]});
      continue;
    }
    const within = /^ */.exec(lines[end])[0].length > indent.length + 1;
    const lazy = lines[end - 1].trim() && !begins(lines, end);
    if (lines[end].trim() && !within && !lazy) break;
    const width = Math.min(items.at(-1).width, /^ */.exec(lines[end])[0].length);
    items.at(-1).lines.push(lines[end].slice(width));
  }
  return [end, () => {
    const made = element(ordered ? "ol" : "ul", ...items.map(item => listItem(item.lines, depth)));
    if (ordered && parseInt(mark) !== 1) made.start = parseInt(mark);
    return made;
  }];
}

function listItem(lines, depth) {
  const inner = blocks(lines, depth + 1).map(block => block.make());
  if (inner[0]?.tagName === "P") inner.splice(0, 1, ...inner[0].childNodes);
  return element("li", ...inner);
}

function cells(line) {
  return line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map(cell => cell.trim());
}

function isTable(lines, at) {
  const rule = (lines[at + 1] || "").trim();
  return lines[at].includes("|") && rule.includes("-") && !/[^-:|\s]/.test(rule) && cells(rule).length === cells(lines[at]).length;
}

function table(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const row = (line, tag) => element("tr", ...cells(line).map(cell => element(tag, inline(cell, 0))));
  return [end, () => {
    const body = lines.slice(at + 2, end).map(line => row(line, "td"));
    const made = element("div", element("table", element("thead", row(lines[at], "th")), element("tbody", ...body)));
    made.className = "wide-table";
    made.tabIndex = 0;
    made.setAttribute("role", "region");
    made.setAttribute("aria-label", "Table");
    return made;
  }];
}

/** Whether another block than a paragraph begins at a line. */
function begins(lines, at) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some(form => form.test(lines[at])) || isTable(lines, at);
}

function text(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end)) end++;
  return [end, paragraph(lines.slice(at, end))];
}

function paragraph(lines) {
  const said = lines.map(line => line.trimStart()).join("\n").trimEnd();
  return () => element("p", said.length > LONGEST ? said : inline(said, 0));
}

/* ---- within a line ---- */
const SIGN = /\\([!-/:-@[-`{-~])|(`+)|(\*\*|__|~~|[*_])|!?\[|https?:\/\/[^\s<>"'`]+|\n/g;
const TAGS = {"**": "strong", "__": "strong", "~~": "del", "*": "em", "_": "em"};

function inline(text, depth) {
  const made = document.createDocumentFragment(), missing = new Set();
  let plain = "", at = 0;
  const put = node => { made.append(plain, node); plain = ""; };
  const sign = new RegExp(SIGN);
  for (let found; (found = sign.exec(text));) {
    plain += text.slice(at, found.index);
    at = sign.lastIndex;
    const span = depth < DEEPEST && spanAt(text, found, depth, missing);
    if (span) { put(span.node); at = sign.lastIndex = span.end; }
    else if (found[1]) plain += found[1];
    else plain += found[0];
  }
  made.append(plain + text.slice(at));
  return made;
}

/** The element that a sign begins, and where it ends; null where the sign is only text. */
function spanAt(text, found, depth, missing) {
  const [sign, escaped, ticks, mark] = found, from = found.index + sign.length;
  if (escaped) return null;
  if (sign === "\n") return {node: element("br"), end: from};
  if (ticks) {
    const end = closing(text, ticks, from, missing, at => text[at - 1] !== "`" && text[at + ticks.length] !== "`");
    return end < 0 ? null : {node: element("code", text.slice(from, end).replace(/^ (.*) $/s, "$1")), end: end + ticks.length};
  }
  if (mark) return marked(text, mark, found.index, depth, missing);
  if (sign.endsWith("[")) return bracketed(text, from, depth);
  const address = sign.replace(/[.,:;!?)\]*_]{1,9}$/, "");
  return {node: link(address, address) || address, end: found.index + address.length};
}

/** Where a mark occurs next and `fits`, or -1; what is missing once is not looked for again. */
function closing(text, mark, from, missing, fits) {
  if (missing.has(mark)) return -1;
  for (let at = text.indexOf(mark, from); at >= 0; at = text.indexOf(mark, at + 1)) if (fits(at)) return at;
  missing.add(mark);
  return -1;
}

function marked(text, mark, start, depth, missing) {
  const from = start + mark.length, word = /[\p{L}\p{N}_]/u;
  if (!text[from]?.trim() || (mark[0] === "_" && word.test(text[start - 1] || ""))) return null;
  const end = closing(text, mark, from + 1, missing, at => text[at - 1].trim()
    && !(mark.length === 1 && (text[at + 1] === mark || text[at - 1] === mark))
    && !(mark[0] === "_" && word.test(text[at + mark.length] || "")));
  if (end < 0) return null;
  const last = mark.length === 2 && text[end + 2] === mark[0] ? end + 1 : end;   // ***both***
  return {node: element(TAGS[mark], inline(text.slice(from, last), depth + 1)), end: last + mark.length};
}

function bracketed(text, from, depth) {
  const close = text.slice(from, from + 500).indexOf("](");
  const end = close < 0 ? -1 : text.slice(from, from + 2500).indexOf(")", close + 2);
  if (end < 0) return null;
  const [address] = text.slice(from + close + 2, from + end).trim().split(/\s/);
  const said = text.slice(from, from + close);
  const node = link(address, inline(said || address, depth + 1));
  return node && {node, end: from + end + 1};
}

function link(address, said) {
  let url;
  try { url = new URL(address); } catch { return null; }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const made = element("a", said);
  made.href = url.href;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  made.title = url.href;
  return made;
}

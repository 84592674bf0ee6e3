// Chats of this browser, the newest first, in localStorage; no server ever sees the list.

const KEY = "openafm-history", MOST = 50;

function isChat(chat) {
  return typeof chat?.id === "string" && Array.isArray(chat.turns)
    && chat.turns.every(turn => typeof turn?.role === "string" && typeof turn.content === "string");
}

export function chats() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(kept) ? kept.filter(isChat) : [];
  } catch { return []; }
}

/** Keep a chat first in the list; where the browser has no room, the oldest go. */
export function keep(id, turns) {
  const kept = [{id, turns}, ...chats().filter(chat => chat.id !== id)].slice(0, MOST);
  for (; kept.length; kept.pop()) {
    try { return localStorage.setItem(KEY, JSON.stringify(kept)); } catch {}
  }
}

export function drop(id) {
  try { localStorage.setItem(KEY, JSON.stringify(chats().filter(chat => chat.id !== id))); } catch {}
}

export function dropAll() {
  try { localStorage.removeItem(KEY); } catch {}
}

/** What a chat is called in the list: how it began. */
export function title(chat) {
  const said = (chat.turns.find(turn => turn.role === "user")?.content || "").trim().replace(/\s+/g, " ");
  return said.length > 60 ? said.slice(0, 59) + "…" : said || "Empty";
}

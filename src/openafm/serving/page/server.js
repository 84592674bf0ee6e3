// The server behind the page: its models, its answers, its memory. Nothing else is ever asked.

const KEY = "openafm-key";

export function keepKey(key) { sessionStorage.setItem(KEY, key); }

function headers() {
  const key = sessionStorage.getItem(KEY);
  return {"Content-Type": "application/json", ...(key ? {Authorization: "Bearer " + key} : {})};
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, {headers: headers(), ...options});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const error = new Error(told?.error?.message || "The server answered with status " + response.status);
  error.status = response.status;
  throw error;
}

/** The models, the one to use first. */
export async function models() {
  return (await (await ask("v1/models")).json()).data;
}

/** Bytes that the server has in memory. */
export async function memory() {
  const text = await (await ask("metrics")).text();
  return Number(/^process_resident_memory_bytes (\S+)$/m.exec(text)?.[1]);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {value, done} = await reader.read();
    if (done) throw new Error("The connection broke in the middle of the answer.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** Milliseconds that the server needed to have the adapter ready. */
function swapOf(response) {
  const found = /\badapter;dur=([\d.]+)/.exec(response.headers.get("server-timing") || "");
  return found ? Number(found[1]) : null;
}

/**
 * Let a model answer a chat, or continue the last message where it has not learned to chat.
 * `told(text, tokens)` is called as the answer grows, with all of it so far.
 * An aborted `signal` ends it with finish "stopped"; what goes wrong is thrown.
 */
export async function answer(model, messages, choices, signal, told) {
  const body = {model: model.id, stream: true, stream_options: {include_usage: true, continuous_usage_stats: true}, ...choices};
  const [path, said] = model.chat
    ? ["v1/chat/completions", {messages}] : ["v1/completions", {prompt: messages.at(-1).content}];
  const made = {text: "", finish: "", tokens: 0, rate: null, swap: null};
  let began = 0, first = 0;
  try {
    const response = await ask(path, {method: "POST", body: JSON.stringify({...body, ...said}), signal});
    made.swap = swapOf(response);
    for await (const {choices: [choice], usage} of events(response)) {
      if (usage?.completion_tokens) {
        made.tokens = usage.completion_tokens;
        if (!began) [began, first] = [performance.now(), made.tokens];
        const seconds = (performance.now() - began) / 1000;
        if (seconds > 0.2) made.rate = (made.tokens - first) / seconds;
      }
      if (!choice) continue;
      made.text += (choice.delta ? choice.delta.content : choice.text) || "";
      made.finish = choice.finish_reason || made.finish;
      told(made.text, made.tokens);
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    made.finish = "stopped";
  }
  return made;
}

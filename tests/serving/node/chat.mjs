// What test_clients.py asks of OpenAI's client for Node: node chat.mjs URL MODEL; prints one JSON object.
import OpenAI from "openai";

const [, , baseURL, model] = process.argv;
const client = new OpenAI({baseURL, apiKey: "unused", maxRetries: 0});
const asked = {model, messages: [{role: "user", content: "words"}], max_tokens: 12, temperature: 1.5, seed: 3};

const models = [];
for await (const one of client.models.list()) models.push(one.id);
const whole = await client.chat.completions.create(asked);
let streamed = "", finish = null;
for await (const chunk of await client.chat.completions.create({...asked, stream: true})) {
  streamed += chunk.choices[0].delta.content ?? "";
  finish = chunk.choices[0].finish_reason ?? finish;
}
const response = await client.responses.create({model, input: "words", max_output_tokens: 4});
const embedded = await client.embeddings.create({model, input: ["some words", "others"]});
const refused = await client.chat.completions.create({...asked, model: "gpt"}).catch(error => [error.status, error.code]);
console.log(JSON.stringify({
  models, whole: whole.choices[0].message.content, streamed, finish, usage: whole.usage, response: response.status,
  vectors: embedded.data.map(one => one.embedding.length), refused,
}));

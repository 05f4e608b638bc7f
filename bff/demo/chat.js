// The playground's chat: sends messages to the gateway, and reads the answers as they stream. Beside
// them it shows both ends upstream of the gateway. No library: the official transport does the same.

import { renew, tokens } from "./tokens.js";

const SESSION = "chat-live";
const CHAT = `/realtime/v1/sessions/${SESSION}`;
const MAX_TOKEN_SHOWN = 48; // characters

const $ = (id) => document.getElementById(id);

let cursor = -1; // the number of the last record that came through the gateway
let first = 0; // the number of the first record that the page shows
let pending = 0; // messages whose answer is not complete
let reading = false;
let answer; // the element of the text that is streaming
const passed = new Map(); // records that came through the gateway, by number

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function say(text, tone) {
  $("chat-result").textContent = text;
  $("chat-result").className = tone;
}

function bubble(who, text) {
  const made = element("p", "", who);
  made.append(element("b", who === "user" ? "Ann" : "Agent"), " ");
  const words = made.appendChild(element("span", text));
  $("talk").append(made);
  $("talk").scrollTop = $("talk").scrollHeight;
  return words;
}

// -- to the agent

async function post(body, token = tokens.ann, again = true) {
  const response = await fetch(`${CHAT}/in/append`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${token}`,
      "content-type": "application/json",
      "x-part-id": crypto.randomUUID(),
    },
    body: JSON.stringify(body),
  });
  if (response.status === 401 && again && token === tokens.ann) {
    await renew();
    return post(body, tokens.ann, false);
  }
  const { seq, code, error } = await response.json();
  if (response.ok) say(`${response.status}: upstream stored it as number ${seq}`, "good");
  else say(`${response.status} ${code}: ${error}`, "warn");
  return response.ok;
}

/** Send the text of the form as the official transport does; *changes* are what a forger changes. */
async function send(changes = {}, token = tokens.ann) {
  const text = $("chat-text").value;
  const message = { id: crypto.randomUUID(), role: "user", parts: [{ type: "text", text }] };
  const payload = { message, chatId: SESSION, trigger: "submit-message", ...changes };
  if (!(await post({ kind: "message", payload }, token))) return;
  if (!pending) first = cursor + 1;
  pending++;
  remember();
  bubble("user", text);
  await Promise.all([read(), showUpstream()]);
}

const encoded = (value) => btoa(JSON.stringify(value)).replaceAll("=", "");
const forgedIdentity = () => `${encoded({ alg: "none" })}.${encoded({ iss: "bff", sub: "bob" })}.`;

async function stop() {
  if (pending) await post({ kind: "stop" });
  else say("No answer is streaming: send a message first.", "");
}

// -- from the agent

/** Read the stream until every answer is complete; resume after the last record when it ends. */
async function read() {
  if (reading) return;
  reading = true;
  while (pending) {
    const leaving = new AbortController();
    const headers = { authorization: `Bearer ${tokens.ann}`, accept: "text/event-stream" };
    if (cursor >= 0) headers["last-event-id"] = cursor;
    try {
      const response = await fetch(`${CHAT}/out`, { headers, cache: "no-store", signal: leaving.signal });
      if (response.ok) await follow(response.body);
      else say(`${response.status}: the stream is refused`, "warn");
      if (response.status === 401) await renew();
    } catch {
      say("The stream was cut. The page resumes after the last record.", "warn");
    }
    leaving.abort();
    if (pending) await new Promise((done) => setTimeout(done, 1000));
  }
  reading = false;
}

async function follow(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (pending) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.match(/^data: (.*)$/m)?.[1];
      if (event.startsWith("event: batch")) JSON.parse(data).records.forEach(take);
    }
    showUpstream();
  }
}

function take(record) {
  cursor = record.seq_num;
  passed.set(cursor, record);
  if (record.headers.some(([, value]) => value === "turn-complete")) {
    pending = Math.max(0, pending - 1);
    remember();
    return;
  }
  const chunk = record.body ? JSON.parse(record.body).data : {};
  if (chunk.type === "text-start") answer = bubble("agent", "");
  if (chunk.type === "text-delta") answer?.append(chunk.delta);
  if (chunk.type === "abort") answer?.append("… (stopped)");
  $("talk").scrollTop = $("talk").scrollHeight;
}

/** A page that is reloaded in the middle of an answer resumes it. */
function remember() {
  sessionStorage.setItem("chat", JSON.stringify({ first, pending }));
}

// -- what no browser may see

let asking = false;
let again = false;

async function showUpstream() {
  again = true;
  if (asking) return;
  asking = true;
  while (again) {
    again = false;
    const ends = await (await fetch(`/demo/chat/${SESSION}?first=${first}`, { cache: "no-store" })).json();
    $("sent").replaceChildren(...ends.records.filter(({ seq_num }) => passed.has(seq_num)).flatMap(lines));
    $("sent").scrollTop = $("sent").scrollHeight;
    $("received").textContent = ends.received ? JSON.stringify(ends.received, shorten, 2) : "";
    $("speaker").textContent = ends.speaker
      ? `The signed identity says that ${ends.speaker} speaks.`
      : "The last message has no identity.";
  }
  asking = false;
}

const shorten = (key, value) =>
  typeof value === "string" && value.length > MAX_TOKEN_SHOWN ? `${value.slice(0, MAX_TOKEN_SHOWN)}…` : value;

/** A record as lines; what did not come through the gateway is struck out. */
function lines({ seq_num, headers = [], body }) {
  const through = passed.get(seq_num);
  const came = ([name, value]) => through.headers.some((one) => one[0] === name && one[1] === value);
  return [
    element("span", `#${seq_num}`),
    ...headers.map(([name, value]) =>
      element(came([name, value]) ? "span" : "del", `${name || "command"}: ${shorten("", value)}`)),
    ...(body ? [element(through.body === body ? "span" : "del", body)] : []),
  ];
}

// -- the page

const presses = {
  "chat-stop": stop,
  "chat-pose": () => send({ metadata: { __bff: forgedIdentity(), user: "bob" } }),
  "chat-bob": () => send({}, tokens.bob),
  "chat-forged": () => send({ chatId: "chat-of-bob" }),
};
for (const [id, press] of Object.entries(presses)) $(id).addEventListener("click", press);
$("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

const kept = JSON.parse(sessionStorage.getItem("chat") ?? "{}");
const { records } = await (await fetch(`/demo/chat/${SESSION}`, { cache: "no-store" })).json();
if (kept.pending && kept.first <= records.length) {
  ({ first, pending } = kept);
  cursor = first - 1;
  read();
} else cursor = records.length - 1;
document.body.dataset.chat = "ready";

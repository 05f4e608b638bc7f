// The playground: asks the gateway as a browser does, and shows each answer. No library, no build.

const SESSIONS = "/api/v1/sessions";
const POLL_SECONDS = 2;
const LIST_EVERY = 3; // polls
const ROWS = 12;

const $ = (id) => document.getElementById(id);
const tokens = await (await fetch("/demo/tokens", { cache: "no-store" })).json();
let selected = "chat-live";
let polling = true;
let reset = 0;

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Ask the gateway, and write a row about the answer. */
async function ask(path, token = tokens.ann) {
  const started = performance.now();
  const response = await fetch(path, { headers: { authorization: `Bearer ${token}` }, cache: "no-cache" });
  const body = await response.json();
  row(path, response, body, performance.now() - started);
  if (token === tokens.ann) limit(response.headers);
  return { response, body };
}

const copyOf = (headers) => (headers.get("cache-status") ?? "").replace("bff; ", "");

function row(path, { status, headers }, body, took) {
  const copy = copyOf(headers);
  const tone = status >= 500 ? "bad" : status >= 400 ? "warn" : "good";
  const line = document.createElement("tr");
  line.append(
    element("td", new Date().toLocaleTimeString("en-GB")),
    element("td", path.replace(SESSIONS, "") || "the chat list"),
    element("td", body.code ? `${status} ${body.code}` : status, tone),
    element("td", copy || "—", copy.startsWith("hit;") ? "warn" : copy === "hit" ? "good" : ""),
    element("td", headers.has("age") ? `${headers.get("age")} s` : "—"),
    element("td", headers.get("x-ratelimit-remaining") ?? "—"),
    element("td", `${took.toFixed(0)} ms`),
  );
  $("answers").prepend(line);
  while ($("answers").rows.length > ROWS) $("answers").lastChild.remove();
}

function limit(headers) {
  if (!headers.has("x-ratelimit-limit")) return;
  $("meter").max = headers.get("x-ratelimit-limit");
  $("meter").value = headers.get("x-ratelimit-remaining");
  $("meter").low = $("meter").max / 4;
  reset = Number(headers.get("x-ratelimit-reset"));
  countdown();
}

function countdown() {
  if (!reset) return;
  const seconds = Math.max(0, Math.ceil((reset - Date.now()) / 1000));
  if (!seconds) $("meter").value = $("meter").max;
  $("left").textContent = `${$("meter").value} of ${$("meter").max} left, all of them again in ${seconds} s`;
}

async function list() {
  const { response, body } = await ask(SESSIONS);
  if (!response.ok) return;
  $("chats").replaceChildren(...body.data.map((session) => {
    const button = element("button", session.externalId);
    button.setAttribute("aria-current", session.externalId === selected);
    button.append(element("small", session.closedAt ? "closed" : "open"));
    button.addEventListener("click", () => select(session.externalId));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }).map(keepFocus()));
  $("lacking").hidden = !body.unavailable;
  $("lacking").textContent = `${body.unavailable?.length ?? 0} cannot be loaded now`;
}

/** The list is made anew with each answer; who stands on one of its buttons stays there. */
function keepFocus() {
  const name = $("chats").contains(document.activeElement) ? document.activeElement.firstChild.data : null;
  return (item) => {
    const button = item.firstChild;
    if (name !== null && button.firstChild.data === name) queueMicrotask(() => button.focus());
    return item;
  };
}

async function show() {
  const name = selected;
  const held = await (await fetch(`/demo/upstream/${name}`, { cache: "no-store" })).json();
  const { response, body } = await ask(`${SESSIONS}/${name}`);
  if (name !== selected) return { response, body };
  $("name").textContent = name;
  $("held").replaceChildren(...lines(held, response.ok ? body : held));
  $("shown").replaceChildren(...lines(body, body));
  const age = response.headers.get("age");
  $("how").textContent = response.ok ? `${copyOf(response.headers)}, ${age} s old` : `refused: ${response.status}`;
  return { response, body };
}

/** JSON of *value* as lines; those that *kept* does not have are marked. */
function lines(value, kept, depth = 0, prefix = "", suffix = "", gone = false) {
  const line = (text) => {
    const made = element(gone ? "del" : "span", text);
    made.style.paddingInlineStart = `${2 * depth}ch`; // spaces would be struck out too
    return made;
  };
  if (value === null || typeof value !== "object") return [line(prefix + JSON.stringify(value) + suffix)];
  const members = Object.entries(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!members.length) return [line(prefix + open + close + suffix)];
  const inner = members.flatMap(([key, member], index) => {
    const [has, its] = Array.isArray(value)
      ? [kept?.includes?.(member), member]
      : [kept != null && key in kept && (kept[key] !== null || member === null), kept?.[key]];
    const name = Array.isArray(value) ? "" : `${JSON.stringify(key)}: `;
    return lines(member, its, depth + 1, name, index < members.length - 1 ? "," : "", gone || !has);
  });
  return [line(prefix + open), ...inner, line(close + suffix)];
}

function select(name) {
  selected = name;
  for (const button of $("chats").querySelectorAll("button"))
    button.setAttribute("aria-current", button.firstChild.data === name);
  return show();
}

const say = (text, tone) => {
  $("result").textContent = text;
  $("result").className = tone ?? "";
};

const told = ({ response, body }) =>
  say(
    response.ok
      ? `${response.status}: ${copyOf(response.headers)}, ${response.headers.get("age")} s old`
      : `${response.status} ${body.code}: ${body.error}`,
    response.ok ? "good" : "warn",
  );

async function burst() {
  const answers = await Promise.all(Array.from({ length: 20 }, () => ask(`${SESSIONS}/${selected}`)));
  const hits = answers.filter(({ response }) => response.ok).length;
  say(`${hits} of 20 answered, ${20 - hits} refused; upstream was asked once at most.`, hits === 20 ? "good" : "warn");
}

/** A sandboxed frame has an origin of its own, which no gateway allows. */
function stranger() {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts");
  frame.hidden = true;
  frame.title = "Another origin";
  frame.src = "/demo/stranger.html";
  const listen = ({ data, source }) => {
    if (source !== frame.contentWindow) return;
    if (data === "ready") {
      frame.contentWindow.postMessage({ url: `${location.origin}${SESSIONS}/${selected}`, token: tokens.ann }, "*");
      return;
    }
    say(data, data.startsWith("Blocked") ? "good" : "bad");
    removeEventListener("message", listen);
    frame.remove();
  };
  addEventListener("message", listen);
  document.body.append(frame);
}

async function outage() {
  const on = $("outage").getAttribute("aria-pressed") !== "true";
  await fetch("/demo/outage", { method: on ? "PUT" : "DELETE" });
  $("outage").setAttribute("aria-pressed", on);
  say(on ? "Upstream answers 500 to everything now: watch the copies age." : "Upstream answers again.");
}

const presses = {
  poll: () => {
    polling = !polling;
    $("poll").setAttribute("aria-pressed", polling);
  },
  again: async () => told(await show()),
  burst,
  wrong: async () => told(await ask(`${SESSIONS}/${selected}`, tokens.wrong)),
  expired: async () => told(await ask(`${SESSIONS}/${selected}`, tokens.expired)),
  unnamed: async () => told(await ask(`${SESSIONS}/chat-of-bob`)),
  stranger,
  outage,
};
for (const [id, press] of Object.entries(presses)) $(id).addEventListener("click", press);

setInterval(countdown, 1000);
for (let turn = 0; ; turn++) {
  if (polling) {
    if (turn % LIST_EVERY === 0) await list();
    await show();
  }
  document.body.dataset.turn = turn;
  await new Promise((done) => setTimeout(done, POLL_SECONDS * 1000));
}

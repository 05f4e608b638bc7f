// The playground: sends requests to the gateway, and shows each answer. No library, no build step.

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

/** Send a request to the gateway, and add a row for the answer. */
async function request(path, token = tokens.ann) {
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
  $("left").textContent = `${$("meter").value} of ${$("meter").max} left, reset in ${seconds} s`;
}

async function list() {
  const { response, body } = await request(SESSIONS);
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
  $("unavailable").hidden = !body.unavailable;
  $("unavailable").textContent = `${body.unavailable?.length ?? 0} cannot be loaded now`;
}

/** Each answer replaces the buttons of the list; the focus returns to the same chat. */
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
  const upstream = await (await fetch(`/demo/upstream/${name}`, { cache: "no-store" })).json();
  const { response, body } = await request(`${SESSIONS}/${name}`);
  if (name !== selected) return { response, body };
  $("name").textContent = name;
  $("upstream").replaceChildren(...lines(upstream, response.ok ? body : upstream));
  $("shown").replaceChildren(...lines(body, body));
  const age = response.headers.get("age");
  $("how").textContent = response.ok ? `${copyOf(response.headers)}, ${age} s old` : `refused: ${response.status}`;
  return { response, body };
}

/** JSON of *value* as lines; lines that *shown* lacks are struck out. */
function lines(value, shown, depth = 0, prefix = "", suffix = "", removed = false) {
  const line = (text) => {
    const made = element(removed ? "del" : "span", text);
    made.style.paddingInlineStart = `${2 * depth}ch`; // not spaces: they would be struck out
    return made;
  };
  if (value === null || typeof value !== "object") return [line(prefix + JSON.stringify(value) + suffix)];
  const members = Object.entries(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!members.length) return [line(prefix + open + close + suffix)];
  const inner = members.flatMap(([key, member], index) => {
    const [isShown, shownMember] = Array.isArray(value)
      ? [shown?.includes?.(member), member]
      : [shown != null && key in shown && (shown[key] !== null || member === null), shown?.[key]];
    const name = Array.isArray(value) ? "" : `${JSON.stringify(key)}: `;
    const comma = index < members.length - 1 ? "," : "";
    return lines(member, shownMember, depth + 1, name, comma, removed || !isShown);
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

const sayAnswer = ({ response, body }) =>
  say(
    response.ok
      ? `${response.status}: ${copyOf(response.headers)}, ${response.headers.get("age")} s old`
      : `${response.status} ${body.code}: ${body.error}`,
    response.ok ? "good" : "warn",
  );

async function burst() {
  const answers = await Promise.all(Array.from({ length: 20 }, () => request(`${SESSIONS}/${selected}`)));
  const hits = answers.filter(({ response }) => response.ok).length;
  say(`${hits} of 20 answered, ${20 - hits} refused; the gateway sent upstream one request at most.`, hits === 20 ? "good" : "warn");
}

/** A sandboxed frame has the origin "null", which the gateway does not allow. */
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
  say(on ? "Upstream answers every request with 500: the copies grow old." : "Upstream works again.");
}

const presses = {
  poll: () => {
    polling = !polling;
    $("poll").setAttribute("aria-pressed", polling);
  },
  again: async () => sayAnswer(await show()),
  burst,
  wrong: async () => sayAnswer(await request(`${SESSIONS}/${selected}`, tokens.wrong)),
  expired: async () => sayAnswer(await request(`${SESSIONS}/${selected}`, tokens.expired)),
  unnamed: async () => sayAnswer(await request(`${SESSIONS}/chat-of-bob`)),
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

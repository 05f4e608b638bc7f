// The playground: sends requests to the gateway, and shows each answer. No library, no build step.

import { renew, tokens } from "./tokens.js";

const SESSIONS = "/api/v1/sessions";
const POLL_SECONDS = 2;
const LIST_EVERY = 3; // polls, if the gateway sends no events
const ROWS = 12;
const ONE_LINE = 72; // characters of a JSON value that is written on one line
// What the words of Cache-Status mean, by the first that an answer's header contains.
const MEANINGS = [
  ["stale-if-error", "Trigger.dev did not answer, so the gateway sent its last copy instead of an error."],
  ["collapsed", "Another request had asked Trigger.dev already. Both waited for the same answer."],
  ["fwd=miss", "The gateway had no copy, so this request waited until Trigger.dev had sent one."],
  ["fwd=stale", "The gateway’s copy was too old to send, so this request waited for a new one."],
  ["stale", "The copy was a little too old. The gateway sent it at once, and asked Trigger.dev for a new one in the background."],
  ["hit", "The gateway had a fresh copy in memory, and asked nobody."],
];

const $ = (id) => document.getElementById(id);
const demo = async (path) => (await fetch(`/demo/${path}`, { cache: "no-store" })).json();
const viewers = Object.keys(tokens).filter((name) => name.startsWith("viewer"));
let selected = "chat-live";
let polling = true;
let watching = true;
let stopList; // ends the event stream of the list
let reset = 0;
let listed = ""; // when the list arrived that the page shows
let sent = 0;
let presses = 0; // how often the outage button was pressed

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Send a request to the gateway, and add a row for the answer. */
async function request(path, token = tokens.ann) {
  const name = `${location.origin}${path}#${++sent}`; // no server sees the fragment
  const took = element("td", "–");
  measured.set(name, took);
  const response = await fetch(name, { headers: { authorization: `Bearer ${token}` }, cache: "no-cache" });
  const body = await response.json();
  row(path, response, body, took);
  if (token === tokens.ann) {
    limit(response.headers);
    if (response.status === 401) await renew(); // the next poll sends another token
  }
  return { response, body };
}

// The browser tells when it began to send: before that, a request waits for one of its six connections.
const measured = new Map();
new PerformanceObserver((entries) => {
  for (const { name, requestStart, responseEnd } of entries.getEntries()) {
    const took = measured.get(name);
    measured.delete(name);
    if (took && requestStart) took.textContent = `${(responseEnd - requestStart).toFixed(0)} ms`;
  }
}).observe({ type: "resource" });

const copyOf = (headers) => (headers.get("cache-status") ?? "").replace("bff; ", "");
const clock = () => new Date().toLocaleTimeString("en-GB");

/** Make a word of Cache-Status that explains itself. */
function word(copy) {
  const made = element("button", copy, "word");
  made.type = "button";
  made.setAttribute("aria-describedby", "meaning");
  return made;
}

/** Show in *place* where a copy comes from and how old it is; the word keeps its focus. */
function tellCopy(place, { headers }) {
  if (!place.querySelector(".word")) place.replaceChildren(word(""), "");
  place.querySelector(".word").textContent = copyOf(headers);
  place.lastChild.data = `, ${headers.get("age")} s old`;
}

function explain({ target }) {
  const meaning = target.matches?.(".word") && MEANINGS.find(([name]) => target.textContent.includes(name));
  if (!meaning) return;
  const { left, bottom, top } = target.getBoundingClientRect();
  const box = $("meaning");
  box.textContent = meaning[1];
  box.showPopover();
  box.style.left = `${Math.max(8, Math.min(left, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${bottom + 6 + box.offsetHeight < innerHeight ? bottom + 6 : top - 6 - box.offsetHeight}px`;
}
const hide = () => $("meaning").hidePopover();
for (const event of ["pointerover", "focusin"]) document.addEventListener(event, explain);
// The pointer may move onto the explanation without closing it.
document.addEventListener("pointerout", ({ relatedTarget }) => relatedTarget !== $("meaning") && follow());
document.addEventListener("focusout", hide);
document.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
// The word under the pointer or with the focus keeps its explanation, although it scrolls.
function follow() {
  const isOpen = $("meaning").matches(":popover-open");
  hide();
  if (isOpen) explain({ target: document.querySelector(".word:hover") ?? document.activeElement });
}
addEventListener("scroll", follow, { capture: true, passive: true });

function row(path, { status, headers }, body, took) {
  const copy = copyOf(headers);
  const tone = status >= 500 ? "bad" : status >= 400 ? "warn" : "good";
  const line = document.createElement("tr");
  line.append(
    element("td", clock()),
    element("td", path.replace(SESSIONS, "") || "the chat list"),
    element("td", body.code ? `${status} ${body.code}` : status, tone),
    cell(copy ? word(copy) : "—", copy.startsWith("hit;") ? "warn" : copy === "hit" ? "good" : ""),
    element("td", headers.has("age") ? `${headers.get("age")} s` : "—"),
    element("td", headers.get("x-ratelimit-remaining") ?? "—"),
    took,
  );
  waiting.push(line);
  addRows();
}

// A new row would move the word under the pointer away, whose explanation is being read: it waits.
const waiting = [];
function addRows() {
  if ($("meaning").matches(":popover-open") && document.querySelector("#answers .word:hover, #meaning:hover")) return;
  for (const line of waiting.splice(0).slice(-ROWS)) $("answers").prepend(line);
  while ($("answers").rows.length > ROWS) $("answers").lastChild.remove();
}
$("meaning").addEventListener("toggle", addRows);

function cell(content, className) {
  const made = element("td", "", className);
  made.append(content);
  return made;
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
  if (!response.ok) {
    $("list-how").textContent = `${response.status} ${body.code}; the list is of ${listed || "no time"}`;
    return;
  }
  listed = clock();
  tellCopy($("list-how"), response);
  drawList(body.data, body.unavailable);
}

/** Follow the list by its event stream; returns false if the gateway sends no events. */
async function followList() {
  const chats = new Map();
  let unavailable = [];
  for (let last = ""; ; await new Promise((again) => setTimeout(again, 1000))) {
    if (!polling) continue;
    stopList = new AbortController();
    const { signal } = stopList;
    const headers = { authorization: `Bearer ${tokens.ann}`, accept: "text/event-stream", "last-event-id": last };
    const response = await fetch(SESSIONS, { headers, cache: "no-store", signal }).catch(() => undefined);
    if (response?.ok && !response.headers.get("content-type").startsWith("text/event-stream")) return false;
    if (!response?.ok) {
      $("list-how").textContent = `${response?.status ?? "no answer"}; the list is of ${listed || "no time"}`;
      continue;
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part; (part = await reader.read().catch(() => undefined)) && !part.done; ) {
      const blocks = (text + part.value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const [id, event, json] = ["id", "event", "data"].map((name) => block.match(`(?:^|\n)${name}: (.*)`)?.[1]);
        const data = json && JSON.parse(json);
        if (event === "sessions") [, unavailable] = [chats.clear(), data.unavailable];
        for (const chat of event === "sessions" ? data.data : event === "session" ? [data] : []) chats.set(chat.id, chat);
        if (event === "gone") for (const [id, chat] of chats) if ([id, chat.externalId].includes(data.id)) chats.delete(id);
        if (block.startsWith(": ")) $("list-how").textContent = `an event stream, ${block.slice(2)}`;
        if (!id) continue;
        [last, listed] = [id, clock()];
        $("list-how").textContent = `an event stream, last event at ${listed}`;
        drawList([...chats.values()], unavailable);
      }
    }
  }
}

function drawList(sessions, unavailable) {
  $("chats").replaceChildren(...sessions.map((session) => {
    const button = element("button", session.externalId);
    button.setAttribute("aria-current", session.externalId === selected);
    const state = session.closedAt ? "closed" : session.metadata?.answering ? "answering" : "open";
    button.append(element("small", state, state));
    button.addEventListener("click", () => select(session.externalId));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }).map(keepFocus()));
  $("unavailable").hidden = !unavailable?.length;
  $("unavailable").textContent = `${unavailable?.length ?? 0} cannot be loaded now`;
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
  const upstream = await demo(`upstream/${name}`);
  const { response, body } = await request(`${SESSIONS}/${name}`);
  if (name !== selected) return { response, body };
  $("name").textContent = name;
  $("upstream").replaceChildren(...lines(upstream, response.ok ? body : upstream));
  $("shown").replaceChildren(...lines(body, body));
  if (response.ok) {
    tellCopy($("how"), response);
    $("removed").textContent = removedFrom(upstream, body).join(", ") || "nothing";
  } else {
    $("how").textContent = `refused: ${response.status}`;
  }
  return { response, body };
}

/** Paths of *value* that *shown* lacks; members of a list are counted. */
function removedFrom(value, shown, path = "") {
  if (Array.isArray(value)) {
    const hidden = value.filter((member) => !shown.includes(member)).length;
    return hidden ? [`${hidden} of ${value.length} ${path}`] : [];
  }
  return Object.entries(value).flatMap(([key, member]) => {
    const name = path ? `${path}.${key}` : key;
    const other = shown[key];
    if (!(key in shown) || (other === null && member !== null)) return [name];
    return member !== null && typeof member === "object" ? removedFrom(member, other, name) : [];
  });
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
  const text = JSON.stringify(value, null, 1).replace(/\n\s*/g, " ").replace(/^([[{]) | ([\]}])$/g, "$1$2");
  const isWhole = removed || !members.length || JSON.stringify(value) === JSON.stringify(shown);
  if (isWhole && text.length <= ONE_LINE) return [line(prefix + text + suffix)];
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

let isGone = false;

/** The page polls on, because a demo may be started again at the same address. */
function gone() {
  isGone = true;
  say("No answer. Does the demo still run?", "bad");
}

function back() {
  if (isGone) say("The demo answers again.", "good");
  isGone = false;
}

const sayAnswer = ({ response, body }) =>
  say(
    response.ok
      ? `${response.status}: ${copyOf(response.headers)}, ${response.headers.get("age")} s old`
      : `${response.status} ${body.code}: ${body.error}`,
    response.ok ? "good" : "warn",
  );

async function burst() {
  const before = await demo("totals");
  const answers = await Promise.all(Array.from({ length: 20 }, () => request(`${SESSIONS}/${selected}`)));
  const after = await demo("totals");
  const hits = answers.filter(({ response }) => response.ok).length;
  say(
    `${hits} of 20 answered, ${20 - hits} refused. Meanwhile browsers asked ${after.browsers - before.browsers} times, ` +
      `Trigger.dev was asked ${times(after.upstream - before.upstream)}.`,
    hits === 20 ? "good" : "warn",
  );
}

const times = (number) => (number === 1 ? "once" : `${number} times`);

async function totals() {
  const before = presses;
  const { browsers, upstream, refused, outage } = await demo("totals");
  if (before === presses) $("outage").setAttribute("aria-pressed", outage); // another tab may have pressed it
  $("browsers").textContent = browsers;
  $("calls").textContent = upstream;
  const codes = Object.entries(refused);
  const sum = codes.reduce((all, [, number]) => all + number, 0);
  $("refused").textContent = sum
    ? `${sum} (${codes.map(([code, number]) => `${number} ${code}`).join(", ")})`
    : "nobody yet";
}

/** Each of the other viewers polls as a page does; their answers are counted and not shown. */
async function watch(name, index) {
  const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
  await pause((POLL_SECONDS * index) / viewers.length);
  for (;;) {
    if (watching && polling && !document.hidden) {
      const headers = { authorization: `Bearer ${tokens[name]}` };
      const asked = fetch(`${SESSIONS}/chat-live`, { headers, cache: "no-store" });
      await asked.then((response) => response.arrayBuffer()).catch(() => {}); // the page says so itself
    }
    await pause(POLL_SECONDS);
  }
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
  presses++;
  await fetch("/demo/outage", { method: on ? "PUT" : "DELETE" });
  presses++;
  $("outage").setAttribute("aria-pressed", on);
  say(on ? "Upstream answers every request with 500: the copies grow old." : "Upstream works again.");
}

const buttons = {
  poll: () => {
    polling = !polling;
    if (!polling) stopList?.abort();
    $("poll").setAttribute("aria-pressed", polling);
  },
  viewers: () => {
    watching = !watching;
    $("viewers").setAttribute("aria-pressed", watching);
  },
  again: async () => sayAnswer(await show()),
  burst,
  wrong: async () => sayAnswer(await request(`${SESSIONS}/${selected}`, tokens.wrong)),
  expired: async () => sayAnswer(await request(`${SESSIONS}/${selected}`, tokens.expired)),
  unnamed: async () => sayAnswer(await request(`${SESSIONS}/chat-of-bob`)),
  stranger,
  outage,
};
for (const [id, press] of Object.entries(buttons)) $(id).addEventListener("click", press);

$("others").textContent = viewers.length;
setInterval(countdown, 1000);
setInterval(() => totals().catch(() => {}), 1000);
viewers.forEach(watch);
let hasEvents = true;
await list().catch(gone);
followList().then((follows) => (hasEvents = follows));
for (let turn = 0; ; turn++) {
  if (polling) {
    if (!hasEvents && turn % LIST_EVERY === 0) await list().catch(gone);
    await show().then(back, gone);
  }
  document.body.dataset.turn = turn;
  await new Promise((done) => setTimeout(done, POLL_SECONDS * 1000));
}

// The server of the page: it knows who is signed in, and signs tokens for that person's chats.
//   GATEWAY_SIGNING_KEY=… GATEWAY_URL=http://127.0.0.1:8787 node server.mjs
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const { GATEWAY_SIGNING_KEY: key, GATEWAY_URL: gateway, PORT: port = "3000", CHATS = "chat-live,chat-closing,chat-done" } = process.env;
if (!key || !gateway) throw new Error("Set GATEWAY_SIGNING_KEY and GATEWAY_URL: bff demo prints both");
const page = readFileSync(new URL("index.html", import.meta.url), "utf8").replace("GATEWAY_URL", gateway).replace("CHAT", CHATS.split(",")[0]);

const signedIn = () => "ann"; // a stub: yours reads the session cookie of the request
const chatsOf = () => CHATS.split(","); // a stub: yours asks the database

const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
function mint(user, scopes) {
  const iat = Math.floor(Date.now() / 1000);
  const claims = { iss: "https://id.trigger.dev", aud: "https://api.trigger.dev", sub: "bff", pub: true, iat, exp: iat + 900 };
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ ...claims, scopes, act: { sub: user } })}`;
  return `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
}

createServer((request, response) => {
  const answer = (status, type, body) => response.writeHead(status, { "content-type": type, "cache-control": "no-store" }).end(body);
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  if (request.method === "GET" && pathname === "/") return answer(200, "text/html", page);
  if (request.method !== "POST" || pathname !== "/api/gateway-token") return answer(404, "text/plain", "Not found");
  const user = signedIn(request), chats = chatsOf(user), chat = searchParams.get("chat");
  if (chat !== null && !chats.includes(chat)) return answer(403, "text/plain", "Not your chat");
  const scopes = chat ? [`read:sessions:${chat}`, `write:sessions:${chat}`] : chats.slice(0, 100).map((id) => `read:sessions:${id}`);
  answer(200, "text/plain", mint(user, scopes));
}).listen(Number(port), () => console.log(`http://localhost:${port}`));

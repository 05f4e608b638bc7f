// The same job as fastify.mjs, with jose, which has no verify cache.
import { serve } from "@hono/node-server";
import { Hono } from "hono";
import { jwtVerify } from "jose";
import { LRUCache } from "lru-cache";
import { RateLimiterMemory } from "rate-limiter-flexible";
import { answerFrom, fetchSession } from "./session.mjs";

const { PORT, KEY, LIMIT, IP_LIMIT } = process.env;
const key = new TextEncoder().encode(KEY);
const rules = {
  algorithms: ["HS256"], issuer: "https://id.trigger.dev", audience: "https://api.trigger.dev",
  subject: "env_test", requiredClaims: ["exp"],
};
const callers = new RateLimiterMemory({ points: +LIMIT, duration: 60 });
const addresses = new RateLimiterMemory({ points: +IP_LIMIT, duration: 60 });
const copies = new LRUCache({ max: 100000, ttl: 3600e3 });
let ids = 0;

const app = new Hono();
const always = () => ({
  "access-control-allow-origin": "https://app.example.com",
  "access-control-expose-headers": "ETag, Age, X-Request-Id, x-ratelimit-remaining",
  vary: "Authorization, Origin", "x-content-type-options": "nosniff", "x-request-id": `h-${ids++}`,
});
app.options("*", (c) => c.body(null, 204, {
  ...always(), "access-control-allow-methods": "GET, HEAD", "access-control-max-age": "7200",
  "access-control-allow-headers": "authorization, if-none-match",
}));
app.get("/api/v1/sessions/:id", async (c) => {
  try { await addresses.consume(c.env.incoming.socket.remoteAddress); }
  catch { return c.json({ error: "limit" }, 429, always()); }
  let claims;
  try { claims = (await jwtVerify(c.req.header("authorization")?.slice(7) ?? "", key, rules)).payload; }
  catch { return c.json({ error: "token" }, 401, always()); }
  const id = c.req.param("id");
  if (!claims.scopes.includes(`read:sessions:${id}`) && !claims.scopes.includes("read:sessions"))
    return c.json({ error: "Unauthorized" }, 403, always());
  let window;
  try { window = await callers.consume(claims.act.sub); }
  catch { return c.json({ error: "limit" }, 429, always()); }
  let copy = copies.get(id);
  if (!copy) copies.set(id, (copy = await fetchSession(id)));
  const [status, headers, body] = answerFrom(copy, window, c.req.header("if-none-match"));
  return c.body(body ?? null, status, { ...always(), ...headers });
});
serve({ fetch: app.fetch, port: +PORT, hostname: "127.0.0.1" });

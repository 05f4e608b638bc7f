// Does: HS256 with a verify cache, iss, aud, exp, sub, scopes; limits per address and caller; CORS;
// preflights; a shared LRU copy with age and 304; request ids; rate-limit headers.
// Leaves out: aliases, projection, coalescing, stale copies, the budget, metrics.
import Fastify from "fastify";
import { createVerifier } from "fast-jwt";
import { LRUCache } from "lru-cache";
import { RateLimiterMemory } from "rate-limiter-flexible";
import { answerFrom, fetchSession } from "./session.mjs";

const { PORT, KEY, LIMIT, IP_LIMIT } = process.env;
const verify = createVerifier({
  key: KEY, algorithms: ["HS256"], allowedIss: "https://id.trigger.dev",
  allowedAud: "https://api.trigger.dev", allowedSub: "env_test", requiredClaims: ["exp"], cache: 10000,
});
const callers = new RateLimiterMemory({ points: +LIMIT, duration: 60 });
const addresses = new RateLimiterMemory({ points: +IP_LIMIT, duration: 60 });
const copies = new LRUCache({ max: 100000, ttl: 3600e3 });
let ids = 0;

const app = Fastify({ logger: false, keepAliveTimeout: 75000 });
app.addHook("onRequest", async (request, reply) => {
  reply.headers({
    "access-control-allow-origin": "https://app.example.com",
    "access-control-expose-headers": "ETag, Age, X-Request-Id, x-ratelimit-remaining",
    vary: "Authorization, Origin", "x-content-type-options": "nosniff", "x-request-id": `f-${ids++}`,
  });
});
app.options("/*", (request, reply) => {
  reply.code(204).headers({
    "access-control-allow-methods": "GET, HEAD", "access-control-max-age": "7200",
    "access-control-allow-headers": "authorization, if-none-match",
  }).send();
});
app.get("/api/v1/sessions/:id", async (request, reply) => {
  try { await addresses.consume(request.ip); } catch { return reply.code(429).send({ error: "limit" }); }
  let claims;
  try { claims = verify(request.headers.authorization?.slice(7) ?? ""); }
  catch { return reply.code(401).send({ error: "token" }); }
  const id = request.params.id;
  if (!claims.scopes.includes(`read:sessions:${id}`) && !claims.scopes.includes("read:sessions"))
    return reply.code(403).send({ error: "Unauthorized" });
  let window;
  try { window = await callers.consume(claims.act.sub); }
  catch { return reply.code(429).send({ error: "limit" }); }
  let copy = copies.get(id);
  if (!copy) copies.set(id, (copy = await fetchSession(id)));
  const [status, headers, body] = answerFrom(copy, window, request.headers["if-none-match"]);
  return reply.code(status).headers(headers).send(body);
});
await app.listen({ port: +PORT, host: "127.0.0.1", backlog: 4096 });

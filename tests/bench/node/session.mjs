import { Agent, request } from "node:http";

const agent = new Agent({ keepAlive: true, maxSockets: 100 });

export function fetchSession(id) {
  return new Promise((resolve, reject) => {
    const options = { port: process.env.ORIGIN, path: `/api/v1/sessions/${encodeURIComponent(id)}`, agent };
    request(options, (answer) => {
      let body = "";
      answer.on("data", (chunk) => (body += chunk));
      answer.on("end", () => resolve({ body, etag: answer.headers.etag, loaded: Date.now() }));
    }).on("error", reject).end();
  });
}

export function answerFrom(copy, window, ifNoneMatch) {
  const headers = {
    "cache-control": "private, no-cache", etag: copy.etag, "cache-status": "peer; hit",
    age: `${Math.floor((Date.now() - copy.loaded) / 1000)}`,
    "x-ratelimit-limit": process.env.LIMIT, "x-ratelimit-remaining": `${window.remainingPoints}`,
    "x-ratelimit-reset": `${Date.now() + window.msBeforeNext}`,
  };
  if (ifNoneMatch === copy.etag) return [304, headers, undefined];
  return [200, { ...headers, "content-type": "application/json; charset=utf-8" }, copy.body];
}

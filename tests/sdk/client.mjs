// The official SDK on Node: each line of JSON on standard input is a call, each line of output its result.
import { createInterface } from "node:readline";
import { RetrieveSessionResponseBody, ListSessionsResponseBody } from "@trigger.dev/core/v3";
import * as sdk from "@trigger.dev/sdk";

const scoped = (config, call) => sdk.auth.withAuth({ requestOptions: {}, ...config }, call);

const calls = {
  mint: ({ options }) => sdk.auth.createPublicToken(options),
  retrieve: ({ id, options }) => sdk.sessions.retrieve(id, options),
  update: ({ id }) => sdk.sessions.update(id, { tags: [] }),
  close: ({ id }) => sdk.sessions.close(id, {}),
  list: ({ options }) => sdk.sessions.list(options).then(({ data, pagination }) => ({ data, pagination })),
  back: async ({ options }) => {
    const second = await (await sdk.sessions.list(options)).getNextPage();
    return (await second.getPreviousPage()).data;
  },
  before: async ({ options }) => {
    const second = await (await sdk.sessions.list(options)).getNextPage();
    return (await sdk.sessions.list({ ...options, before: second.pagination.previous })).data;
  },
  iterate: async ({ options }) => {
    const seen = [];
    for await (const session of sdk.sessions.list(options)) seen.push(session.externalId ?? session.id);
    return seen;
  },
  parse: ({ schema, bodies }) =>
    bodies.map((body) => {
      const parsed = { retrieve: RetrieveSessionResponseBody, list: ListSessionsResponseBody }[schema].safeParse(body);
      return parsed.success ? { data: parsed.data } : { error: parsed.error.message };
    }),
};

const kinds = ["BadRequestError", "AuthenticationError", "PermissionDeniedError", "NotFoundError",
  "RateLimitError", "InternalServerError", "ApiConnectionError", "ApiError"];
const kind = (error) => kinds.find((name) => sdk[name] && error instanceof sdk[name]) ?? error.constructor.name;

for await (const line of createInterface({ input: process.stdin })) {
  const { call, config, ...rest } = JSON.parse(line);
  const started = performance.now();
  let answer;
  try {
    answer = { value: await scoped(config ?? {}, () => calls[call](rest)) };
  } catch (error) {
    const { status, code, param, type, message, headers } = error;
    answer = {
      kind: kind(error), status, code, param, type, message, error: error.error,
      requestId: headers?.["x-request-id"],
    };
  }
  process.stdout.write(JSON.stringify({ ...answer, seconds: (performance.now() - started) / 1000 }) + "\n");
}

// The official SDK's client as a frontend bundles it, with each answer's status and headers kept.
import { ApiClient } from "@trigger.dev/core/v3";

const fetched = [];
const original = globalThis.fetch;
globalThis.fetch = async (...args) => {
  const response = await original(...args);
  fetched.push({ status: response.status, headers: Object.fromEntries(response.headers) });
  return response;
};

const calls = {
  retrieve: (client, { id }) => client.retrieveSession(id),
  close: (client, { id }) => client.closeSession(id, {}),
  list: (client, { options }) => client.listSessions(options).then(({ data }) => data),
  iterate: async (client, { options }) => {
    const seen = [];
    for await (const session of client.listSessions(options)) seen.push(session.externalId);
    return seen;
  },
};

globalThis.ask = async (call, { url, token, retry, ...rest }) => {
  fetched.length = 0;
  try {
    const client = new ApiClient(url, token, undefined, retry ? { retry } : {});
    const value = JSON.parse(JSON.stringify(await calls[call](client, rest)));
    return { value, fetched };
  } catch ({ name, status, code, error, message }) {
    return { name, status, code, error, message, fetched };
  }
};

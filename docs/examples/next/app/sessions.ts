import useSWR, { mutate, type SWRConfiguration } from "swr";

const GATEWAY = process.env.NEXT_PUBLIC_GATEWAY_URL!;

const tokens = new Map<string, Promise<string>>(); // by the part of the chats that they name

function mint(part: string): Promise<string> {
  const minted = fetch("/api/gateway-token" + part, { method: "POST" }).then(async (response) => {
    const text = await response.text();
    if (response.ok && /^[\w-]+\.[\w-]+\.[\w-]+$/.test(text)) return text;
    throw Object.assign(new Error("no token"), { status: response.ok ? 502 : response.status });
  });
  tokens.set(part, minted);
  minted.catch(() => tokens.get(part) === minted && tokens.delete(part)); // the next poll mints again
  return minted;
}

async function ask([path, part]: [string, string], again = true): Promise<any> {
  const sent = tokens.get(part) ?? mint(part);
  const response = await fetch(GATEWAY + path, {
    headers: { authorization: `Bearer ${await sent}` },
    cache: "no-cache",
  });
  const body = await response.json();
  if (response.ok) return body;
  if (response.status === 401 && again) {
    if (tokens.get(part) === sent) tokens.delete(part); // if several requests fail at once, one mints
    return ask([path, part], false);
  }
  throw Object.assign(new Error(body.error), {
    status: response.status,
    code: body.code,
    retryAfter: Number(response.headers.get("retry-after")) || 5,
  });
}

const polling: SWRConfiguration = {
  refreshInterval: 15_000,
  onErrorRetry: (error, _key, _config, revalidate, { retryCount }) => {
    if (error.status < 500 && error.status !== 429) return; // a retry changes nothing
    setTimeout(() => revalidate({ retryCount }), (error.retryAfter ?? 5) * 1000);
  },
};

const query = (part: number) => (part ? `?part=${part}` : "");
const get = (path: string, part: number) => useSWR([path, query(part)], (key: [string, string]) => ask(key), polling);

export const useSession = (id: string, part = 0) => get(`/api/v1/sessions/${encodeURIComponent(id)}`, part);
export const useSessions = (part = 0) => get("/api/v1/sessions?page%5Bsize%5D=100", part);

/** Call it after a new chat: the tokens of the page do not name it yet. */
export const afterNewChat = () => (tokens.clear(), mutate(() => true));

/** Call it after a sign-out or a sign-in: the page keeps neither tokens nor sessions of the person before. */
export const afterSignOut = () => (tokens.clear(), mutate(() => true, undefined));

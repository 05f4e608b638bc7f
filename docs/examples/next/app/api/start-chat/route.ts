import { chatsOf, signedIn } from "../gateway-token/app";

/** The only place that may start a session: it is a paid run, and `sessions.start` needs your secret key. */
export async function POST(request: Request): Promise<Response> {
  const user = await signedIn(request);
  const chat = new URL(request.url).searchParams.get("chat") ?? "";
  if (!user || !(await chatsOf(user)).includes(chat)) return new Response(null, { status: 403 });
  // A stub: your server starts the session `chat`, and returns nothing of the answer. The demo's sessions exist already.
  return new Response(null, { status: 204 });
}

import { chatsOf, signedIn } from "./app"; // the person of a request; the ids of that person's chats, newest first
import { mintGatewayToken } from "./mint";

const CHATS_A_TOKEN = 100;

export async function POST(request: Request): Promise<Response> {
  const user = await signedIn(request);
  if (!user) return Response.json({ error: "not signed in" }, { status: 401 });
  const query = new URL(request.url).searchParams;
  const chats = await chatsOf(user);
  const chat = query.get("chat"); // a token for one chat may also write
  if (chat !== null && !chats.includes(chat)) return Response.json({ error: "not your chat" }, { status: 403 });
  const first = CHATS_A_TOKEN * Number(query.get("part") ?? 0);
  const token = chat
    ? mintGatewayToken(user, [chat], ["read", "write"])
    : mintGatewayToken(user, chats.slice(first, first + CHATS_A_TOKEN));
  return new Response(await token, { headers: { "cache-control": "no-store" } });
}

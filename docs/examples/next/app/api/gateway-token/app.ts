// Stubs: your app knows who is signed in, and which chats that person has.
const CHATS: Record<string, string[]> = {
  ann: (process.env.CHATS ?? "chat-live,chat-closing,chat-done").split(","),
  bob: [],
};

/** The person of a request. A cookie that anyone can write proves nothing: use your sign-in. */
export async function signedIn(request: Request): Promise<string | null> {
  return /(?:^|; )user=(\w+)/.exec(request.headers.get("cookie") ?? "")?.[1] ?? null;
}

/** The ids of a person's chats, newest first. */
export async function chatsOf(user: string): Promise<string[]> {
  return CHATS[user] ?? [];
}

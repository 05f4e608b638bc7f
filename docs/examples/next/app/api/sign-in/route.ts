/** A stub: it believes every name. Without one it signs out. */
export async function POST(request: Request): Promise<Response> {
  const user = new URL(request.url).searchParams.get("user") ?? "";
  const cookie = `user=${encodeURIComponent(user)}; Path=/; HttpOnly; SameSite=Lax${user ? "" : "; Max-Age=0"}`;
  return new Response(null, { status: 204, headers: { "set-cookie": cookie } });
}

import { SignJWT } from "jose";

const key = new TextEncoder().encode(process.env.GATEWAY_SIGNING_KEY);

export function mintGatewayToken(userId: string, chatIds: string[], actions = ["read"]): Promise<string> {
  return new SignJWT({
    pub: true,
    scopes: chatIds.filter(Boolean).flatMap((id) => actions.map((action) => `${action}:sessions:${id}`)),
    act: { sub: userId },
  })
    .setProtectedHeader({ alg: "HS256" })
    .setIssuer("https://id.trigger.dev")
    .setAudience("https://api.trigger.dev")
    .setSubject("bff")
    .setIssuedAt()
    .setExpirationTime("15m")
    .sign(key);
}
